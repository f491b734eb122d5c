"""What stays in 8 bits between products, and what leaves them."""

from __future__ import annotations

import numpy as np
import pytest
from onnxopt.passes.infer_shapes import InferShapes

from onnxopt.model import from_proto
from onnxopt.regions import Follower, FollowerKind, follower
from tests.differential import parse

_CONSTANTS: dict[str, np.ndarray] = {
    "half": np.array(0.5, np.float32),
    "minus": np.array(-0.5, np.float32),
    "endless": np.array(np.inf, np.float32),
    "vector": np.arange(1, 5, dtype=np.float32),
    "shape": np.array([0, -1], np.int64),
    "ones": np.ones(4, np.float32),
    "zeros": np.zeros(4, np.float32),
    "uneven": np.array([1, 2, 1, 1], np.float32),
    "sizes": np.array([1, 1, 2, 2], np.float32),
}


def _last(body: str) -> Follower | None:
    used = {name: array for name, array in _CONSTANTS.items() if name in body}
    model = from_proto(
        parse(f"g (float[N, 4, 6, 4] x, float[N, 4, 6, 4] z) => (y) {{ {body} }}", used)
    )
    InferShapes()(model)
    return follower(model.graph[-1])


@pytest.mark.parametrize(
    ("body", "kind", "activations", "constants"),
    [
        ("y = Reshape(x, shape)", FollowerKind.PASS, (0,), ()),
        ("y = Transpose<perm=[0, 2, 3, 1]>(x)", FollowerKind.PASS, (0,), ()),
        ("y = MaxPool<kernel_shape=[2, 2]>(x)", FollowerKind.PASS, (0,), ()),
        ('y = Resize<mode="nearest">(x, , sizes)', FollowerKind.PASS, (0,), ()),
        ("y = GlobalAveragePool(x)", FollowerKind.COMPUTE, (0,), ()),
        ("y = Sigmoid(x)", FollowerKind.COMPUTE, (0,), ()),
        ("y = Concat<axis=1>(x, z, x)", FollowerKind.COMPUTE, (0, 1, 2), ()),
        ("y = Add(x, z)", FollowerKind.COMPUTE, (0, 1), ()),
        ("y = Mul(x, vector)", FollowerKind.COMPUTE, (0,), (1,)),
        ("y = Add(vector, x)", FollowerKind.COMPUTE, (1,), (0,)),
        ("y = Mul(x, minus)", FollowerKind.COMPUTE, (0,), (1,)),
        ("y = HardSwish(x)", FollowerKind.HARD_SWISH, (0,), ()),
    ],
)
def test_what_follows(
    body: str, kind: FollowerKind, activations: tuple[int, ...], constants: tuple[int, ...]
) -> None:
    found = _last(body)
    assert found is not None
    assert (found.kind, found.activations, found.constants) == (kind, activations, constants)


@pytest.mark.parametrize(
    ("body", "factor", "summand"),
    [
        ("y = Mul(x, half)", 0.5, 0.0),
        ("y = Add(minus, x)", 1.0, -0.5),
        ("y = BatchNormalization(x, ones, ones, zeros, ones)", 1 / np.sqrt(1 + 1e-5), 1.0),
    ],
)
def test_the_same_step_for_all_numbers_is_another_scale(
    body: str, factor: float, summand: float
) -> None:
    found = _last(body)
    assert found is not None
    assert found.kind is FollowerKind.AFFINE
    assert (found.factor, found.summand) == pytest.approx((factor, summand), rel=1e-6)


def test_hard_sigmoid_has_a_slope_and_an_offset() -> None:
    found = _last("y = HardSigmoid<alpha=0.25, beta=0.75>(x)")
    assert found is not None
    assert found.kind is FollowerKind.HARD_SIGMOID
    assert (found.factor, found.summand) == (0.25, 0.75)


@pytest.mark.parametrize(
    "body",
    [
        "y = HardSigmoid<alpha=-0.25>(x)",
        "y = HardSigmoid<beta=1.5>(x)",
        'y = Resize<mode="linear">(x, , sizes)',
        "y = Softmax(x)",
        "y = AveragePool<kernel_shape=[2, 2]>(x)",
        "y = LeakyRelu(x)",
        "y = Sub(x, z)",
        "y = Add(x, endless)",
        "y = BatchNormalization(x, uneven, ones, zeros, ones)",
        "i = Cast<to=7>(x) y = Reshape(i, shape)",
        "y, m = MaxPool<kernel_shape=[2, 2]>(x)",
    ],
)
def test_what_leaves(body: str) -> None:
    assert _last(body) is None


def test_without_element_types_nothing_follows() -> None:
    """Whole numbers travel through the same operators."""
    model = from_proto(parse("g (float[N] x) => (y) { a = Neg(x) b = Sigmoid(a) y = Neg(b) }"))
    assert follower(model.graph[1]) is None
    InferShapes()(model)
    assert follower(model.graph[1]) is not None
