"""Put the bodies of local functions in the place of their calls, and drop unused functions.

A call ``y = f<a>(x)`` is replaced by a copy of the body of ``f``: inputs that the call leaves out
stay left out, attribute references become what the call says, else the function's default, else
nothing (ONNX specification, FunctionProto). Calls in bodies of control flow and in other functions
are inlined too, innermost functions first. Values and nodes keep their names, with a number added
where the name is taken.

Exact: the same operators compute the same numbers. The imports of opsets stay as they were, also
those that nothing needs any more, since they are part of the interface.

Left alone: functions whose operators mean something else in the opset of the caller, or are of a
domain that the caller does not import; functions in a domain of the runtime, which may have a
kernel for them; calls that pass a graph as an attribute; functions that call themselves; and all
calls of a function where the copies would make the file larger by more than ``max-growth-bytes`` in
total. (`onnx_ir` has an inliner too; it renames graph inputs that a function passes through, can
use a name twice when a body holds it, and adds opset imports.)
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxopt.pass_contract import Outcome, Pass, Refusal

from .calls import (
    Call,
    bytes_added,
    callees_first,
    calls_by_function,
    obstacle,
    unused,
)
from .copies import NameScope, inline_call

__all__ = ["InlineFunctions"]


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `InlineFunctions`.

    Attributes:
        max_growth_bytes: How much larger all copies together may make the file.
    """

    max_growth_bytes: int = 1 << 16

    def __post_init__(self) -> None:
        if self.max_growth_bytes < 0:
            raise ValueError("max-growth-bytes must not be negative")


class InlineFunctions(Pass):
    """Inline local functions and drop unused ones."""

    name = "inline-functions"
    Options: ClassVar[type] = _Options

    def run(self, model: ir.Model) -> Outcome:
        """Inline what can be inlined, everywhere in the model."""
        outcome = Outcome(model, False)
        if not model.functions:
            return outcome
        _drop_unused(model, outcome)
        scopes: dict[ir.Graph, NameScope] = {}
        growth = 0
        # Copies hold no calls of functions whose turn is still to come, so this stays complete.
        all_calls = calls_by_function(model)
        for function in callees_first(model):
            calls = all_calls.pop(function.identifier())
            outcome.matched["inline-call"] += len(calls)
            possible = []
            for call in calls:
                reason = obstacle(function, call, model)
                if reason is None:
                    possible.append(call)
                else:
                    outcome.refusals.append(_refusal(call, reason))
            added = bytes_added(function, possible, goes=len(possible) == len(calls))
            if growth + added > self.options.max_growth_bytes:
                reason = "copies of the function would make the file larger"
                outcome.refusals.extend(_refusal(call, reason) for call in possible)
                continue
            growth += added
            for call in possible:
                if self._is_done(outcome):
                    break
                if call.root not in scopes:
                    scopes[call.root] = NameScope(call.root)
                inline_call(function, call.node, scopes[call.root])
                outcome.rewritten["inline-call"] += 1
        for calls in all_calls.values():
            reason = "the function calls itself, or one that does"
            outcome.refusals.extend(_refusal(call, reason) for call in calls)
        _drop_unused(model, outcome)
        outcome.modified = bool(outcome.rewritten)
        return outcome

    def _is_done(self, outcome: Outcome) -> bool:
        done = outcome.rewritten["inline-call"]
        return self.max_rewrites is not None and done >= self.max_rewrites


def _drop_unused(model: ir.Model, outcome: Outcome) -> None:
    for name in unused(model):
        del model.functions[name]
        outcome.rewritten["drop-function"] += 1


def _refusal(call: Call, reason: str) -> Refusal:
    return Refusal("inline-call", reason, call.node.name or call.node.op_type)
