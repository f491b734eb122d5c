"""A worklist rewriter for rules that look at single nodes.

A rule keeps match and legality apart: `RewriteRule.match` says whether the pattern is there,
`RewriteRule.check` whether the rewrite is allowed, and if not why; refusals are kept for
``--explain``.
"""

from __future__ import annotations

from onnxopt.rewriting.context import Context, Refuse
from onnxopt.rewriting.dead_code import (
    captured_values,
    drop_node,
    drop_unused_initializer,
    is_dead,
)
from onnxopt.rewriting.rewriter import Rewriter, can_replace
from onnxopt.rewriting.rules import RewriteRule
from onnxopt.rewriting.worklist import RewritePass, rewrite

__all__ = [
    "Context",
    "Refuse",
    "RewritePass",
    "RewriteRule",
    "Rewriter",
    "can_replace",
    "captured_values",
    "drop_node",
    "drop_unused_initializer",
    "is_dead",
    "rewrite",
]
