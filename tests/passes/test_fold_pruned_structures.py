"""fold-pruned-channels: residual nets, gates, joins and splits, shuffles, groups; exported nets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from onnxopt.model import to_proto
from tests.differential import optimize, parse, untouched
from tests.passes.pruning import PASS, folded, normal, pruned, refused, removed

FEEDS = ({"x": normal(2, 3, 9, 11)}, {"x": normal(1, 3, 12, 8)})


def net(text: str, constants: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    return parse(f"g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {{ {text} }}", constants)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


RESIDUAL = """a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  b = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w2, b2)  d = HardSwish(c)
    e = Conv <pads = [1, 1, 1, 1]> (d, w3, b3)  f = Add(e, b)  g0 = Relu(f)  y = Conv(g0, w4)"""


def residual(
    stem: tuple[int, ...], inner: tuple[int, ...], last: tuple[int, ...]
) -> onnx.ModelProto:
    constants = {
        "w1": pruned(8, 3, 3, 3, dead=stem),
        "w2": pruned(12, 8, 3, 3, dead=inner),
        "w3": pruned(8, 12, 3, 3, dead=last),
        "w4": normal(5, 8, 1, 1),
        **{f"b{layer}": normal(size) + 1 for layer, size in ((1, 8), (2, 12), (3, 8))},
    }
    return net(RESIDUAL, constants)


def test_residual_addition_needs_all_its_members() -> None:
    # One carrier for the padded reader in the block, one of the channels within it.
    folded(residual((1, 4, 5), (0, 7, 9), (1, 4, 5)), 2 + 2, *FEEDS)
    assert removed(residual((1, 4, 5), (), (2, 6))) == 0
    # A channel that stays for another reason is a carrier as good as any.
    folded(residual((1, 4, 5), (), (1, 4, 6)), 2, *FEEDS)


def test_gate_of_a_squeeze_and_excite_block() -> None:
    gate = pruned(8, 2, 1, 1)
    model = net(
        """a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  b = Relu(a)  p0 = GlobalAveragePool(b)
        r = Conv(p0, w2, b2)  s = Relu(r)  t = Conv(s, w3, b3)  u = Sigmoid(t)
        m = Mul(b, u)  y = Conv <pads = [1, 1, 1, 1]> (m, w4)""",
        {
            "w1": pruned(8, 3, 3, 3),
            "b1": normal(8) + 1,
            "w2": normal(2, 8, 1, 1),
            "b2": normal(2) + 1,
            "w3": gate,
            "b3": normal(8),
            "w4": normal(5, 8, 3, 3),
        },
    )
    folded(model, 2, *FEEDS)
    # Where the gate depends on the input the channel varies, unless what it opens is 0.
    for value, count in ((1.0, 0), (0.0, 3)):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        for tensor in other.graph.initializer:
            if tensor.name == "w3":
                tensor.CopyFrom(onnx.numpy_helper.from_array(normal(8, 2, 1, 1), "w3"))
            if tensor.name == "b1":
                bias = np.full(8, value, np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(bias, "b1"))
        assert removed(other) == count
        optimize(other, PASS, *FEEDS)


TWO = """a = Conv(x, w1, b1)  b = Sigmoid(a)  c = Conv(x, w2, b2)  d = Tanh(c)"""
TWO_CONSTANTS = {
    "w1": pruned(8, 3, 1, 1),
    "b1": normal(8) + 1,
    "w2": pruned(6, 3, 1, 1, dead=(0, 2)),
    "b2": normal(6) + 1,
}


def test_concat() -> None:
    text = f"{TWO}  e = Concat <axis = 1> (b, x, d)  y = Conv(e, w3)"
    folded(net(text, {**TWO_CONSTANTS, "w3": normal(5, 17, 3, 3)}), 5, *FEEDS)
    # One carrier for both parts.
    text = f"{TWO}  e = Concat <axis = 1> (b, x, d)  y = Conv <pads = [0, 1, 0, 0]> (e, w3)"
    folded(net(text, {**TWO_CONSTANTS, "w3": normal(5, 17, 3, 3)}), 4, *FEEDS)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split(opset: int) -> None:
    sizes = {11: "<axis = 1, split = [3, 5]> (b)", 13: "<axis = 1> (b, z)", 18: "<axis = 1> (b, z)"}
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {{
            a = Conv(x, w1, b1)  b = Sigmoid(a)  c, d = Split {sizes[opset]}
            e = Conv(c, w3)  f = Conv(d, w4)  y = Add(e, f)
        }}""",
        {
            "w1": pruned(8, 3, 1, 1),
            "b1": normal(8) + 1,
            "w3": normal(5, 3, 1, 1),
            "w4": normal(5, 5, 1, 1),
            **({"z": ints(3, 5)} if opset > 11 else {}),
        },
    )
    optimized = folded(model, 3, *FEEDS)
    shapes = {value.shape[1] for node in optimized.graph for value in node.outputs if value.shape}
    assert {2, 3, 5} >= shapes


@pytest.mark.parametrize("parts", ["Split <axis = 1> (b)", "Split <axis = 1, num_outputs = 2> (b)"])
def test_split_in_equal_parts(parts: str) -> None:
    opset = 18 if "num_outputs" in parts else 13
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {{
            a = Conv(x, w1, b1)  b = Sigmoid(a)  c, d = {parts}
            e = Conv(c, w3)  f = Conv(d, w4)  y = Add(e, f)
        }}""",
        {
            "w1": pruned(8, 3, 1, 1),
            "b1": normal(8) + 1,
            "w3": normal(5, 4, 1, 1),
            "w4": normal(5, 4, 1, 1, seed=1),
        },
    )
    folded(model, 3, *FEEDS)


@pytest.mark.parametrize(
    ("text", "constants", "width"),
    [
        ("c = Slice(b, i, j, k)", {"i": ints(1), "j": ints(6), "k": ints(1)}, 5),
        ("c = Slice(b, i, j, k)", {"i": ints(-6, 0), "j": ints(2**62, 4), "k": ints(1, 2)}, 6),
        ("c = Gather <axis = 1> (b, i)", {"i": ints(7, 1, 0, -4, 5)}, 5),
    ],
)
def test_selection(text: str, constants: dict[str, np.ndarray], width: int) -> None:
    arrays = {"w1": pruned(8, 3, 1, 1), "b1": normal(8) + 1, "w3": normal(5, width, 3, 3)}
    # Channels that are not selected are not read.
    model = net(f"a = Conv(x, w1, b1)  b = Sigmoid(a)  {text}  y = Conv(c, w3)", arrays | constants)
    unread = set(range(8)) - set(np.arange(8)[_chosen(constants)].tolist())
    folded(model, len({1, 4, 5} | unread), *FEEDS)


def _chosen(constants: Mapping[str, np.ndarray]) -> slice | np.ndarray:
    if "j" not in constants:
        return constants["i"]
    return slice(int(constants["i"][0]), int(constants["j"][0]))


def test_every_other_channel_is_left_alone() -> None:
    arrays = {"w1": pruned(8, 3, 1, 1), "b1": normal(8), "w3": normal(5, 4, 1, 1)}
    steps = {"i": ints(0), "j": ints(8), "k": ints(1), "m": ints(2)}
    text = "a = Conv(x, w1, b1)  b = Sigmoid(a)  c = Slice(b, i, j, k, m)  y = Conv(c, w3)"
    untouched(net(text, arrays | steps), PASS, "every so many")


SHUFFLE = """a = Conv(x, w1, b1)  b = Relu(a)
    c = Reshape(b, z1)  d = Transpose <perm = [0, 2, 1, 3, 4]> (c)  e = Reshape(d, z2)
    y = Conv <group = {groups}> (e, w2)"""


def shuffle(dead: tuple[int, ...], groups: int = 1) -> onnx.ModelProto:
    constants = {
        "w1": pruned(8, 3, 1, 1, dead=dead),
        "b1": normal(8) + 1,
        "z1": ints(0, 2, 4, 9, 11),
        "z2": ints(0, 8, 9, 11),
        "w2": normal(6, 8 // groups, 1, 1),
    }
    text = SHUFFLE.format(groups=groups)
    return parse(f"g (float[n, 3, 9, 11] x) => (float[n, 6, 9, 11] y) {{ {text} }}", constants)


def test_channel_shuffle() -> None:
    feed = {"x": normal(2, 3, 9, 11)}
    folded(shuffle((1, 5, 2, 6)), 4, feed)
    folded(shuffle((4, 5, 6, 7)), 4, feed)
    assert removed(shuffle((0, 1, 5))) == 2  # the first half would keep three, the second two
    optimize(shuffle((0, 1, 5)), PASS, feed)
    assert "channels that others stand beside" in refused(shuffle((0, 1, 5)))


def test_dynamic_shape_beside_the_channels() -> None:
    model = net(
        """a = Conv(x, w1, b1)  b = Relu(a)  s = Shape(b)  n0 = Slice(s, i0, i1)
        t = Slice(s, i2, i4)  q1 = Concat <axis = 0> (n0, g2, t)  c = Reshape(b, q1)
        d = Transpose <perm = [0, 2, 1, 3, 4]> (c)  q2 = Concat <axis = 0> (n0, k, t)
        e = Reshape(d, q2)  y = Conv(e, w2)""",
        {
            "w1": pruned(8, 3, 1, 1, dead=(0, 4)),
            "b1": normal(8) + 1,
            "w2": normal(5, 8, 1, 1),
            "i0": ints(0),
            "i1": ints(1),
            "i2": ints(2),
            "i4": ints(4),
            "g2": ints(2, 4),
            "k": ints(8),
        },
    )
    folded(model, 2, *FEEDS)


@pytest.mark.parametrize(
    ("inputs", "outputs", "count"),
    [((0, 5), (), 2), ((0, 1, 5), (), 2), ((0, 1), (), 0), ((), (0, 3), 2), ((), (0, 1), 0)],
)
def test_groups_lose_equal_numbers(
    inputs: tuple[int, ...], outputs: tuple[int, ...], count: int
) -> None:
    model = net(
        """a = Conv(x, w1, b1)  b = Sigmoid(a)  c = Conv <group = 2> (b, w2, b2)  d = Sigmoid(c)
        y = Conv(d, w3)""",
        {
            "w1": pruned(8, 3, 1, 1, dead=inputs),
            "b1": normal(8),
            "w2": pruned(6, 4, 3, 3, dead=outputs),
            "b2": normal(6),
            "w3": normal(5, 6, 1, 1),
        },
    )
    optimized = folded(model, count, *FEEDS)
    assert optimized.graph.initializers["w2"].shape == (
        6 - (count if outputs else 0),
        4 - (count // 2 if inputs else 0),
        3,
        3,
    )


def test_padded_groups_have_a_carrier_each() -> None:
    model = net(
        """a = Conv(x, w1, b1)  b = Sigmoid(a)
        c = Conv <group = 2, pads = [1, 1, 1, 1]> (b, w2)  y = Conv(c, w3)""",
        {
            "w1": pruned(12, 3, 1, 1, dead=(0, 1, 2, 6, 9, 10)),
            "b1": normal(12),
            "w2": normal(6, 6, 3, 3),
            "w3": normal(5, 6, 1, 1),
        },
    )
    folded(model, 4, *FEEDS)


def test_depthwise_with_several_outputs_a_channel() -> None:
    model = net(
        """a = Conv(x, w1, b1)  b = Sigmoid(a)  c = Conv <group = 8> (b, w2, b2)
        d = Relu(c)  y = Conv(d, w3)""",
        {
            "w1": pruned(8, 3, 1, 1),
            "b1": normal(8),
            "w2": normal(16, 1, 3, 3),
            "b2": normal(16) + 1,
            "w3": normal(5, 16, 1, 1),
        },
    )
    optimized = folded(model, 3, *FEEDS)
    assert optimized.graph.initializers["w2"].shape == (10, 1, 3, 3)
    assert optimized.graph.initializers["w3"].shape == (5, 10, 1, 1)


def test_bytes_and_products_fall_in_proportion() -> None:
    dead = tuple(range(0, 32, 2))
    model = net(
        """a = Conv(x, w1)  b = Relu(a)  c = Conv <pads = [1, 1, 1, 1]> (b, w2)  d = Relu(c)
        y = Conv(d, w3)""",
        {
            "w1": pruned(32, 3, 3, 3, dead=dead),
            "w2": pruned(32, 32, 3, 3, dead=dead),
            "w3": normal(5, 32, 3, 3),
        },
    )
    optimized = folded(model, 32, *FEEDS)  # without a bias they are 0, so no carrier is needed
    assert optimized.graph.initializers["w2"].shape == (16, 16, 3, 3)
    assert to_proto(optimized).ByteSize() < 0.35 * model.ByteSize()
