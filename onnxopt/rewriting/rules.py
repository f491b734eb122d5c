"""What a rewrite rule is."""

from __future__ import annotations

import abc
from typing import ClassVar, Generic, TypeVar

import onnx_ir as ir

from onnxopt.rewriting.context import Context
from onnxopt.rewriting.rewriter import Rewriter

__all__ = ["RewriteRule"]

#: What a rule's match hands to its rewrite.
M = TypeVar("M")


class RewriteRule(abc.ABC, Generic[M]):
    """One rewrite.

    Attributes:
        name: Name in counters and reports, in kebab-case.
        anchors: Operators (of the standard domain) at which `match` starts; by convention the last
            node of the pattern, so that whatever the rewrite needs stands before it.
        depth: How many steps upstream of the anchor `match` looks. A change within that distance
            wakes the anchor again.
    """

    name: ClassVar[str]
    anchors: ClassVar[tuple[str, ...]]
    depth: ClassVar[int] = 2

    @abc.abstractmethod
    def match(self, node: ir.Node, context: Context) -> M | None:
        """What `rewrite` needs if the pattern ends at this node, else None."""

    def check(self, match: M, context: Context) -> str | None:
        """Why the rewrite is not allowed here, or None when it is. May raise `Refuse` too."""
        return None

    @abc.abstractmethod
    def rewrite(self, match: M, rewriter: Rewriter) -> None:
        """Change the graph through the rewriter."""
