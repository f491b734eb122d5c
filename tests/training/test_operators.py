"""Every operator against ONNX's own cases: numbers forward, finite differences backward."""

import collections
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from onnxopt.errors import UnsupportedModelError
from onnxopt.model import from_proto
from onnxopt.training import OnnxModule, import_model
from onnxopt.training.numbers import tensor_of
from onnxopt.training.operators import BUILDERS, SIZES
from tests.conformance.cases import Case, node_cases, stored_cases

#: What the importer does not do, and says so.
REFUSALS = re.compile(
    r"(computing with|quantization to|) ?(element type )?"
    r"(U?INT(2|4|16|32|64)|FLOAT(4|8)\w+|STRING)"
    r"|Dropout that drops|antialiasing|column-major|padded keys"
    r"|attribute (left|right)_window_size is not known|less than 8 bits"
)
#: Types that PyTorch cannot be fed with.
NO_TENSORS = re.compile(r"FLOAT[48]|INT2|int2|e4m3|e5m2|e8m0|float4|float8|string")
#: The runtime gives what the importer gives, and not what the case asks for: the length of the
#: output is that of the tensor, not the fraction that the scale would give.
LIKE_THE_RUNTIME = {
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
}
#: Gradients that are not those of the function, or that finite differences cannot tell: straight
#: through the rounding, and of numbers cut to another type. They have tests of their own.
OTHER_GRADIENTS = {
    "Cast",
    "CastLike",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
}


def operators(case: Case) -> set[str]:
    return {node.op_type for node in case.model.graph.node if node.op_type != "Constant"}


@functools.cache
def cases_by_operator() -> Mapping[str, list[Case]]:
    """Cases made of supported operators only, by their first operator."""
    found: dict[str, list[Case]] = collections.defaultdict(list)
    for case in node_cases():
        used = operators(case)
        standard = all(node.domain == "" for node in case.model.graph.node)
        if standard and used <= set(BUILDERS) | set(SIZES) and not NO_TENSORS.search(case.name):
            found[case.model.graph.node[0].op_type].append(case)
    return found


def run(module: OnnxModule, feeds: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    given = {name: tensor_of(np.asarray(feeds[name])) for name in module.input_names}
    with torch.no_grad():
        results = module(**given)
    return results if isinstance(results, tuple) else (results,)


def assert_alike(given: torch.Tensor, expected: Any, case: Case) -> None:
    expected = np.asarray(expected)
    assert tuple(given.shape) == expected.shape
    rtol, atol = max(case.tolerance.rtol, 1e-4), max(case.tolerance.atol, 1e-5)
    if given.dtype in (torch.float16, torch.bfloat16):  # a few steps of their mantissa
        rtol = atol = 4 * torch.finfo(given.dtype).eps
    if expected.dtype.kind in "biuf":
        assert given.numpy().dtype == expected.dtype
    np.testing.assert_allclose(
        given.double().numpy(), expected.astype(np.float64), rtol=rtol, atol=atol
    )


@pytest.mark.parametrize("operator", sorted(cases_by_operator()))
def test_the_cases_of_an_operator(operator: str) -> None:
    compared = 0
    for case in cases_by_operator()[operator]:
        try:
            module = import_model(from_proto(case.model))
        except UnsupportedModelError as error:
            if not REFUSALS.search(str(error)):
                raise
            continue
        if case.name in LIKE_THE_RUNTIME:
            continue
        for feeds, expected in zip(case.feeds, case.expected, strict=True):
            results = run(module, feeds)
            for given, wanted in zip(results, expected, strict=True):
                try:
                    assert_alike(given, wanted, case)
                except AssertionError as error:
                    raise AssertionError(f"{case.name}: {error}") from None
        compared += 1
    assert compared > 0


def test_enough_cases_are_compared() -> None:
    count = sum(map(len, cases_by_operator().values()))
    assert count > 1300
    missing = (set(BUILDERS) | set(SIZES)) - {
        operator
        for cases in cases_by_operator().values()
        for case in cases
        for operator in operators(case)
    }
    assert missing == {"GlobalLpPool"}  # tested with the revisions


@pytest.mark.parametrize("kind", ["pytorch-converted", "pytorch-operator"])
def test_the_models_that_onnx_keeps(kind: str) -> None:
    """Old ones, of opset 6: broadcasting along an axis, and modes as attributes."""
    compared = 0
    for case in stored_cases(kind):
        module = import_model(from_proto(case.model))
        for feeds, expected in zip(case.feeds, case.expected, strict=True):
            for given, wanted in zip(run(module, feeds), expected, strict=True):
                np.testing.assert_allclose(given.numpy(), wanted, rtol=1e-3, atol=1e-5)
        compared += 1
    assert compared > 30


def differentiable(case: Case) -> bool:
    """Whether a case is one node with floats in and out, and small."""
    nodes = [node for node in case.model.graph.node if node.op_type != "Constant"]
    if len(nodes) != 1 or nodes[0].op_type in OTHER_GRADIENTS or case.name in LIKE_THE_RUNTIME:
        return False
    if "edge_cases" in case.name:
        return False  # points at which there is no derivative
    floats = [np.asarray(array) for array in case.feeds[0].values() if is_real(array)]
    return bool(floats) and sum(array.size for array in floats) <= 20_000


def is_real(array: Any) -> bool:
    return np.asarray(array).dtype in (np.float32, np.float64) and np.size(array) > 0


#: Inputs that no gradient flows through: statistics, scales of Resize, bounds of Range.
CHOICES = {
    "BatchNormalization": {3, 4},
    "Resize": {1, 2},
    "Upsample": {1},
    "Range": {0, 1, 2},
    "OneHot": {0, 1},
    "Pad": {2},
}
#: Functions with kinks or steps that a random point may hit; the point is moved off whole numbers.
OFFSET = 0.0137


@pytest.mark.parametrize("operator", sorted(set(BUILDERS) - OTHER_GRADIENTS))
def test_the_gradients_of_an_operator(operator: str) -> None:
    cases = [
        case
        for case in cases_by_operator().get(operator, ())
        if case.model.graph.node[-1].op_type == operator and differentiable(case)
    ]
    checked = 0
    for case in cases[:: max(len(cases) // 6, 1)]:
        try:
            module = import_model(from_proto(case.model)).double()
        except UnsupportedModelError:
            continue
        checked += check_gradients(module, case, operator)
    if checked == 0:
        assert operator in WITHOUT_GRADIENTS
    else:
        assert operator not in WITHOUT_GRADIENTS


#: Operators on integers or booleans, or that make some of them, or that are not among the cases.
WITHOUT_GRADIENTS = {
    *("And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
    *("ConstantOfShape", "ConvInteger", "Equal", "EyeLike", "Greater", "GreaterOrEqual", "Hardmax"),
    *("IsInf", "IsNaN", "Less", "LessOrEqual", "MatMulInteger", "NonZero", "Not", "Or", "Range"),
    *("GlobalLpPool", "Trilu", "Xor"),
}


def check_gradients(module: OnnxModule, case: Case, operator: str) -> bool:
    """Compare with finite differences; False when no float flows through."""
    names = [value.name for value in case.model.graph.input]
    flowing, fixed = {}, {}
    for place, name in enumerate(names):
        array = np.asarray(case.feeds[0][name])
        if is_real(array) and place not in CHOICES.get(operator, ()):
            offset = OFFSET * np.sin(np.arange(array.size) + 1).reshape(array.shape)
            moved = np.asarray(array.astype(np.float64) + offset)
            flowing[name] = torch.from_numpy(moved).requires_grad_()
        else:
            fixed[name] = tensor_of(array.astype(np.float64) if is_real(array) else array)

    def function(*tensors: torch.Tensor) -> Any:
        results = module(**dict(zip(flowing, tensors, strict=True)), **fixed)
        results = results if isinstance(results, tuple) else (results,)
        return tuple(each for each in results if each.requires_grad and each.isfinite().all())

    if not flowing or not function(*flowing.values()):
        return False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            assert torch.autograd.gradcheck(
                function, tuple(flowing.values()), fast_mode=True, nondet_tol=1e-9
            )
        except Exception as error:
            raise AssertionError(f"{case.name}: {error}") from error
    return True
