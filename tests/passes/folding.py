"""What the tests of `fold-constants` share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.model import from_proto, to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.worker import shared_worker

PASS = "fold-constants"
WORKER = "onnxopt.passes.fold_constants.runtime_evaluation.shared_worker"
WEIGHT = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
ROWS = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}


def size(model: onnx.ModelProto) -> int:
    return int(to_proto(from_proto(model)).ByteSize())


def assert_not_larger(model: onnx.ModelProto, optimized: ir.Model, allowance: int = 0) -> None:
    assert to_proto(optimized).ByteSize() <= size(model) + allowance


def one_run(model: onnx.ModelProto, pipeline: str = PASS) -> tuple[ir.Model, Outcome]:
    """The result of a single round, with its outcome."""
    optimized = from_proto(model)
    reports = PassManager(parse_pipeline(pipeline), rounds=1).run(optimized)
    return optimized, reports[-1].outcome


def x2() -> dict[str, np.ndarray]:
    return {"x": np.array([1, 2], np.float32)}


def reasons(outcome: Outcome) -> set[str]:
    return {refusal.reason for refusal in outcome.refusals}


def count_sessions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of nodes of each session that is opened from now on."""
    sessions: list[int] = []

    class Counting:
        def evaluate(self, model: bytes, feed: Mapping[str, Any], seconds: float) -> list[Any]:
            sessions.append(len(onnx.ModelProto.FromString(model).graph.node))
            return shared_worker().evaluate(model, feed, seconds)

    monkeypatch.setattr(WORKER, Counting)
    return sessions
