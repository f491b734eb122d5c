"""Every operator in every revision that the runtime runs, against the runtime.

ONNX's cases are for the newest revision. Where one is valid in an older opset as well, it is run
there; where an operator took as attributes what it takes as inputs now, the case is made here.
"""

import collections
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from onnxopt.errors import UnsupportedModelError
from onnxopt.model import from_proto
from onnxopt.training import import_model
from onnxopt.training.numbers import tensor_of
from onnxopt.training.operators import BUILDERS, SIZES
from tests.conformance.cases import Case, node_cases
from tests.training.test_operators import NO_TENSORS, REFUSALS

#: Older opsets are not promised to run by the runtime.
OLDEST = 7
#: Cases that are run of each revision.
ENOUGH = 4


def revisions() -> dict[str, list[int]]:
    """By operator, the opsets with which its revisions begin."""
    begins: dict[str, set[int]] = collections.defaultdict(set)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in set(BUILDERS) | set(SIZES):
            begins[schema.name].add(schema.since_version)
    found = {}
    for name, versions in begins.items():
        old = max((version for version in versions if version <= OLDEST), default=OLDEST)
        found[name] = sorted({max(version, OLDEST) for version in versions if version >= old})
    return found


@functools.cache
def single_node_cases() -> Mapping[str, list[Case]]:
    found: dict[str, list[Case]] = collections.defaultdict(list)
    for case in node_cases():
        if len(case.model.graph.node) == 1 and not NO_TENSORS.search(case.name):
            found[case.model.graph.node[0].op_type].append(case)
    return found


def stamped(case: Case, opset: int) -> onnx.ModelProto | None:
    """The model in an older opset, where it is valid there."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.opset_import[0].version = opset
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # of several kinds, all of which say that it is not
        return None
    return model


def runtime(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any] | None:
    """What the runtime gives; None when it does not run the model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results: list[Any] = session.run(None, dict(feeds))
    except Exception:  # it has no kernel for this
        return None
    return results


def compare(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> bool:
    """Compare with the runtime; False when one of both does not run it."""
    expected = runtime(model, feeds)
    if expected is None:
        return False
    try:
        module = import_model(from_proto(model))
    except UnsupportedModelError as error:
        if not REFUSALS.search(str(error)):
            raise
        return False
    given = {name: tensor_of(np.asarray(feeds[name])) for name in module.input_names}
    with torch.no_grad():
        results = module(**given)
    results = results if isinstance(results, tuple) else (results,)
    for result, wanted in zip(results, expected, strict=True):
        assert tuple(result.shape) == np.shape(wanted)
        coarse = result.dtype in (torch.float16, torch.bfloat16)
        tolerance = 4 * torch.finfo(result.dtype).eps if coarse else 1e-4
        np.testing.assert_allclose(
            result.double().numpy(),
            np.asarray(wanted).astype(np.float64),
            rtol=tolerance,
            atol=tolerance / 10,
        )
    return True


def compare_revision(operator: str, opset: int) -> int:
    """How many cases of a revision were compared."""
    count = 0
    for case in single_node_cases().get(operator, ()):
        model = stamped(case, opset)
        if model is not None and compare(model, case.feeds[0]):
            count += 1
            if count == ENOUGH:
                break
    for inputs, attributes in OLD_FORMS.get((operator, opset), ()):
        feeds = {f"x{place}": array for place, array in enumerate(inputs)}
        assert compare(old_model(operator, opset, feeds, attributes), feeds), (operator, opset)
        count += 1
    return count


def old_model(
    operator: str, opset: int, feeds: Mapping[str, Any], attributes: Mapping[str, Any]
) -> onnx.ModelProto:
    settings = dict(attributes)
    outputs = [f"y{place}" for place in range(settings.pop("outputs", 1))]
    node = helper.make_node(operator, list(feeds), outputs, **settings)
    given = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape)
        )
        for name, array in feeds.items()
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    if operator == "TopK":
        made[1].type.tensor_type.elem_type = TensorProto.INT64
    graph = helper.make_graph([node], "old", given, made)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(3 + opset // 3, 10)
    )


def _floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _old_forms() -> Iterator[tuple[str, int, list[np.ndarray], dict[str, Any]]]:
    x = _floats(2, 8, 4, 6)
    for bounds in ({}, {"min": -0.5}, {"max": 0.25}, {"min": -0.5, "max": 0.25}):
        yield "Clip", 7, [x], bounds
    pool = {"kernel_shape": [2, 2], "storage_order": 0, "strides": [2, 2]}
    yield "MaxPool", 8, [x], pool
    yield "DepthToSpace", 7, [x], {"blocksize": 2}
    for power in (1, 2, 3):
        yield "GlobalLpPool", 7, [x], {"p": power}
    groups = [x, _floats(2, seed=1), _floats(2, seed=2)]
    yield "GroupNormalization", 18, groups, {"num_groups": 2, "epsilon": 1e-3}
    yield "MeanVarianceNormalization", 13, [x], {"axes": [0, 2]}
    yield "MeanVarianceNormalization", 13, [x], {}
    for mode in ("constant", "reflect", "edge"):
        yield "Pad", 7, [x], {"pads": [0, 0, 1, 2, 0, 0, 2, 0], "mode": mode}
    yield "Pad", 7, [x], {"pads": [0, 0, 1, 2, 0, 0, -1, 0], "value": 1.5}
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum"):
        yield from _old_reductions(f"Reduce{kind}", np.abs(x) + 0.1)
    yield from _old_reductions("ReduceSumSquare", x)
    scales = np.array([1, 1, 2, 1.5], np.float32)
    for mode in ("nearest", "linear"):
        yield "Resize", 10, [x, scales], {"mode": mode}
        yield "Upsample", 7, [x], {"mode": mode, "scales": [1.0, 1.0, 2.0, 3.0]}
        yield "Upsample", 9, [x, scales], {"mode": mode}
        for coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
            settings = {"mode": mode, "coordinate_transformation_mode": coordinates}
            yield "Resize", 11, [x, np.zeros(0, np.float32), scales], settings
            down = np.array([1, 1, 0.6, 0.5], np.float32)
            yield "Resize", 11, [x, np.zeros(0, np.float32), down], settings
    for nearest in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
        settings = {"nearest_mode": nearest, "coordinate_transformation_mode": "asymmetric"}
        yield "Resize", 11, [x, np.zeros(0, np.float32), scales], settings
    crop = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    roi = np.array([0, 0, 0.2, -0.1, 1, 1, 0.8, 1.2], np.float32)
    yield "Resize", 11, [x, roi, scales], {**crop, "extrapolation_value": 7.0}
    indices = np.array([[0, -1, 2]], np.int64)
    updates = _floats(1, 3, seed=3)
    yield "Scatter", 9, [_floats(2, 5), np.abs(indices), updates], {"axis": 1}
    yield "Slice", 7, [x], {"starts": [1, -3], "ends": [100, -1], "axes": [1, 3]}
    yield "Slice", 7, [x], {"starts": [0, 2], "ends": [1, 5]}
    thin = _floats(1, 3, 1, 5)
    for opset in (7, 11):
        yield "Squeeze", opset, [thin], {"axes": [0, 2]}
        yield "Squeeze", opset, [thin], {}
        yield "Unsqueeze", opset, [_floats(3, 5)], {"axes": [0, 3]}
    yield "Split", 7, [x], {"axis": 1, "split": [3, 5], "outputs": 2}
    yield "TopK", 7, [_floats(3, 7)], {"k": 3, "axis": 1, "outputs": 2}
    for operator in ("Softmax", "LogSoftmax", "Hardmax"):
        for opset in (7, 11):
            for axis in (0, 1, 2, 3):
                yield operator, opset, [x], {"axis": axis}
            yield operator, opset, [x], {}
    yield "Gemm", 7, [_floats(3, 4), _floats(5, 4), _floats(5)], {"transB": 1, "alpha": 0.5}


def _old_reductions(
    operator: str, x: np.ndarray
) -> Iterator[tuple[str, int, list[np.ndarray], dict[str, Any]]]:
    for opset in (7, 11, 13):
        if operator == "ReduceSum" and opset == 13:
            continue
        for settings in ({}, {"axes": [1, 3]}, {"axes": [2], "keepdims": 0}, {"keepdims": 0}):
            yield operator, opset, [x], settings


OLD_FORMS: dict[tuple[str, int], list[tuple[list[np.ndarray], dict[str, Any]]]] = {}
for _operator, _opset, _inputs, _attributes in _old_forms():
    OLD_FORMS.setdefault((_operator, _opset), []).append((_inputs, _attributes))

#: Revisions that the runtime has no kernel for: deprecated ones, and some of the newest.
NOT_RUN = {
    ("DequantizeLinear", 28),
    ("GlobalLpPool", 22),
    ("QuantizeLinear", 28),
    ("Scatter", 11),
    ("Upsample", 10),
}


@pytest.mark.parametrize("operator", sorted(revisions()))
def test_the_revisions_of_an_operator(operator: str) -> None:
    for opset in revisions()[operator]:
        assert compare_revision(operator, opset) or (operator, opset) in NOT_RUN, opset


def test_old_forms_are_of_revisions_that_there_are() -> None:
    for operator, opset in OLD_FORMS:
        assert opset in revisions()[operator], (operator, opset)
