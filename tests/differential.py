"""Run a pipeline on a model and hold the result against the original in ONNX Runtime.

Models are written in ONNX's text format (``onnx.parser``), so that a test shows the graph it is
about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from onnxopt.model import Interface, from_proto, to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import PassManager, parse_pipeline

Feed = Mapping[str, Any]


def parse(text: str, initializers: Mapping[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """A model from ONNX text; initializers too large to spell out are given as arrays.

    Without a header, ``<ir_version: 8, opset_import: ["" : 18]>`` is put in front.
    """
    if not text.lstrip().startswith("<"):
        text = '<ir_version: 8, opset_import: ["" : 18]>\n' + text
    model = onnx.parser.parse_model(text)
    for name, array in (initializers or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


def run(model: onnx.ModelProto, feed: Feed) -> list[Any]:
    """Run a model in ONNX Runtime at its default optimization level, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[Any] = session.run(None, dict(feed))
    return outputs


def apply(model: onnx.ModelProto, pipeline: str) -> tuple[ir.Model, dict[str, Outcome]]:
    """Run a pipeline; give the model and the last outcome of each pass."""
    optimized = from_proto(model)
    reports = PassManager(parse_pipeline(pipeline)).run(optimized)
    return optimized, {report.name: report.outcome for report in reports}


def optimize(
    model: onnx.ModelProto,
    pipeline: str,
    *feeds: Feed,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> ir.Model:
    """Run a pipeline and assert that the interface and the outputs on each feed are kept.

    ``atol`` is relative to the largest magnitude of the output. At least one feed is needed: a test
    that compares nothing is none.
    """
    assert feeds, "give at least one feed"
    optimized, _ = apply(model, pipeline)
    before = Interface.of(from_proto(model))
    assert [name for name, _ in Interface.of(optimized).inputs] == [n for n, _ in before.inputs]
    assert [name for name, _ in Interface.of(optimized).outputs] == [n for n, _ in before.outputs]
    after = to_proto(optimized)
    onnx.checker.check_model(after)
    for feed in feeds:
        assert_same(run(model, feed), run(after, feed), rtol=rtol, atol=atol)
    return optimized


def assert_same(
    expected: Sequence[Any], actual: Sequence[Any], *, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Assert that outputs agree: floats to tolerance, everything else exactly."""
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual, strict=True):
        if isinstance(one, list):
            assert_same(one, other, rtol=rtol, atol=atol)
            continue
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        if one.dtype.kind != "f":
            np.testing.assert_array_equal(other, one)
            continue
        finite = np.abs(one[np.isfinite(one)])
        scale = float(finite.max()) if finite.size else 1.0
        np.testing.assert_allclose(other, one, rtol=rtol, atol=atol * max(scale, 1e-30))


def op_types(model: ir.Model) -> list[str]:
    """Operators of the main graph and of everything inside it, in order."""
    return [node.op_type for node in model.graph.all_nodes()]


def untouched(model: onnx.ModelProto, pipeline: str, reason: str = "") -> None:
    """Assert that a pipeline leaves a model alone and, if given, that it says why.

    ``reason`` is a part of a refusal's text.
    """
    optimized, outcomes = apply(model, pipeline)
    outcomes.pop("infer-shapes", None)  # what it adds is no change to what the model computes
    assert not any(outcome.modified for outcome in outcomes.values()), op_types(optimized)
    assert op_types(optimized) == op_types(from_proto(model))
    if reason:
        reasons = [each.reason for outcome in outcomes.values() for each in outcome.refusals]
        assert any(reason in each for each in reasons), reasons
