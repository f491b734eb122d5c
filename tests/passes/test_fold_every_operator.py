"""ONNX's own test cases with their inputs turned into constants: what is folded must be right."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.errors import RuntimeRefusalError
from onnxopt.model import to_proto
from onnxopt.runtime.worker import Worker
from tests.differential import apply

#: No case is left alone because the file would grow.
PIPELINE = "inline-functions,lift-constants,fold-constants{max-bytes=1000000000}"


@pytest.mark.slow
def test_every_operator_is_folded_to_what_the_runtime_computes() -> None:
    folded = 0
    wrong: list[str] = []
    with Worker(request_seconds=60) as worker:
        for name, model, expected in cases():
            optimized = to_proto(apply(model, PIPELINE)[0])
            if any(node.op_type != "Constant" for node in optimized.graph.node):
                continue
            folded += 1
            constants = worker.evaluate(optimized.SerializeToString(), {})
            try:
                original = worker.evaluate(model.SerializeToString(), {})
                tolerance = 0.0
            except RuntimeRefusalError:  # it was computed by the reference implementation
                original, tolerance = expected, 1e-2
            if not all(
                agree(np.asarray(one), np.asarray(other), tolerance)
                for one, other in zip(original, constants, strict=False)
            ):
                wrong.append(name)
    assert not wrong
    assert folded > 1000


def agree(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> bool:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return False
    if expected.dtype == np.float16:  # the runtime computes in float32 and rounds here and there
        tolerance = max(tolerance, 2e-3)
    one, other = expected.astype(np.float64), actual.astype(np.float64)
    return bool(np.allclose(other, one, rtol=tolerance, atol=tolerance, equal_nan=True))


def cases() -> Iterator[tuple[str, onnx.ModelProto, list[Any]]]:
    """Name, model without inputs, and expected outputs."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # computing the expectations divides by zero at times
        everything = collect_testcases(None)
    for case in everything:
        if case.model is None or not case.data_sets:
            continue
        inputs, outputs = case.data_sets[0]
        signature = case.model.graph.input[: len(inputs)]
        tensors = [constant(value, info) for value, info in zip(inputs, signature, strict=True)]
        if None in tensors or not all(isinstance(each, np.ndarray) for each in outputs):
            continue
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        del model.graph.input[:]
        model.graph.initializer.extend(tensors)
        yield case.name, model, list(outputs)


def constant(value: Any, info: onnx.ValueInfoProto) -> onnx.TensorProto | None:
    """An input as an initializer, if it is a tensor of the declared type and fits one."""
    if not isinstance(value, np.ndarray | np.generic) or not info.type.HasField("tensor_type"):
        return None
    array = np.asarray(value)
    if array.dtype.kind in "OUS" or math.prod(array.shape) > 1 << 20:
        return None
    tensor = onnx.numpy_helper.from_array(array, info.name)
    return tensor if tensor.data_type == info.type.tensor_type.elem_type else None
