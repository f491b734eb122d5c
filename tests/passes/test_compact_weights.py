from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxopt.passes.compact_weights.builder import DecoderBuilder
from onnxopt.passes.compact_weights.choice import CODES, combine
from onnxopt.passes.compact_weights.evaluation import decode
from onnxopt.passes.compact_weights.gaps import listed_gaps
from onnxopt.passes.compact_weights.numbers import as_they_are
from onnxopt.passes.compact_weights.positions import Sparse

from onnxopt.errors import OptionError
from onnxopt.model import from_proto, load, save, to_proto
from onnxopt.pass_manager import make_pass, parse_pipeline
from tests.differential import apply, op_types, optimize, parse, run

Array = np.ndarray[Any, Any]

COMPACT = "compact-weights"
DTYPES = (np.float32, np.float16, np.int8, np.uint8)
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)


def weights(
    shape: tuple[int, ...], sparsity: float, dtype: Any = np.float32, zero: int = 0
) -> Array:
    """Weights of which so many, at random places, are zero."""
    rng = np.random.default_rng(sum(shape))
    array = np.asarray(rng.standard_normal(shape) * 40).astype(dtype)
    array[rng.random(shape) < sparsity] = zero
    return array


def model(array: Array, opset: int = 13) -> onnx.ModelProto:
    """A model that gives a weight back, element by element chosen at run time."""
    nodes = [
        onnx.helper.make_node("Reshape", ["w", "flat"], ["all"]),
        onnx.helper.make_node("Gather", ["all", "which"], ["y"]),
    ]
    make = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(array, "w")
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [make("which", onnx.TensorProto.INT64, ["n"])],
        [make("y", weight.data_type, ["n"])],
        [weight, onnx.numpy_helper.from_array(np.array([-1], np.int64), "flat")],
    )
    version = onnx.helper.make_opsetid("", opset)
    return onnx.helper.make_model(graph, opset_imports=[version], ir_version=8)


def compact(proto: onnx.ModelProto, options: str = "") -> tuple[onnx.ModelProto, list[str]]:
    """The model with compact weights, checked to be smaller, and the codes that were used."""
    coded, outcomes = apply(proto, f"{COMPACT}{{{options}}}" if options else COMPACT)
    after = to_proto(coded)
    onnx.checker.check_model(after)
    assert outcomes[COMPACT].modified == bool(outcomes[COMPACT].rewritten)
    if outcomes[COMPACT].modified:
        assert after.ByteSize() < proto.ByteSize()
    else:
        assert len(after.graph.node) == len(proto.graph.node)
    return after, sorted(outcomes[COMPACT].rewritten)


def optimized_operators(proto: onnx.ModelProto, folder: Any) -> list[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def assert_same_weight(proto: onnx.ModelProto, array: Array) -> None:
    """Assert that the runtime, and decoding, give the weight back bit by bit."""
    which = np.arange(array.size, dtype=np.int64)
    if array.dtype.kind in "fiu":  # others cannot leave the runtime through Python
        (found,) = run(proto, {"which": which})
        assert found.tobytes() == array.tobytes()
    decoded, _ = apply(proto, "decode-weights")
    tensor = decoded.graph.initializers["w"].const_value
    assert tensor is not None
    assert tuple(tensor.shape.numpy()) == array.shape
    assert tensor.tobytes() == array.tobytes()
    assert sorted(decoded.graph.initializers) == ["flat", "w"]
    assert op_types(decoded) == ["Reshape", "Gather"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_weights_come_back_bit_by_bit(dtype: type, sparsity: float) -> None:
    array = weights((67, 31), sparsity, dtype)
    after, codes = compact(model(array))
    assert_same_weight(after, array)
    if sparsity >= 0.5:
        assert codes


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("opset", [11, 13, 18, 21])
def test_each_code_in_each_opset(code: str, opset: int, tmp_path: Any) -> None:
    values = {"constant": 0.1, "palette": 0.5, "narrow": 7.0}.get(code)
    array = weights((33, 65), 0.9)
    if code == "constant":
        array[...] = values
    elif code == "scaled":
        array = on_grid((33, 65), 127, 0)
    elif code == "palettes":
        array = np.sign(on_grid((33, 65), 127, 0)) + np.arange(33, dtype=np.float32)[:, np.newaxis]
    elif values is not None:
        array = np.where(array != 0, np.float32(values), 0).astype(np.float32)
    proto = model(array, opset)
    after, codes = compact(proto, f"codes={code}")
    assert [each.rstrip("12345678") for each in codes] == [code]
    assert_same_weight(after, array)
    assert optimized_operators(after, tmp_path) == optimized_operators(proto, tmp_path)


SCALED = "scaled|palette|bitmask|gaps|elias-fano"


def on_grid(shape: tuple[int, ...], most: int, axis: int, sparsity: float = 0.0) -> Array:
    """Random integers up to `most`, times a random scale for each channel."""
    rng = np.random.default_rng(0)
    integers = rng.integers(-most, most + 1, shape)
    integers[rng.random(shape) < sparsity] = 0
    scales = (rng.random(shape[axis]) + 0.01).astype(np.float32)
    scales = scales.reshape([-1 if each == axis else 1 for each in range(len(shape))])
    product: Array = integers.astype(np.float32) * scales
    return product


@pytest.mark.parametrize("shape", [(96, 170), (40, 24, 3, 3), (2, 88, 90)])
@pytest.mark.parametrize("most", [1, 2, 7, 100, 127])
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_scales_of_channels_are_found(
    shape: tuple[int, ...], most: int, sparsity: float, tmp_path: Any
) -> None:
    for axis in {0, 1, len(shape) - 1}:
        array = on_grid(shape, most, axis, sparsity)
        proto = model(array)
        after, codes = compact(proto, f"slack=0,codes={SCALED}")
        assert codes[0].endswith("scaled")
        bits = (2 * most).bit_length()
        assert after.ByteSize() < array.size * bits / 8 + 4 * shape[axis] + 1200
        assert_same_weight(after, array)
        assert optimized_operators(after, tmp_path) == optimized_operators(proto, tmp_path)


def test_numbers_beside_the_grid_have_no_scale() -> None:
    array = on_grid((64, 80), 127, 0)
    array[5, 7] = np.nextafter(array[5, 7], np.float32(9))
    assert compact(model(array), "codes=scaled")[1] == []
    array = on_grid((64, 80), 127, 0)
    array[3, array[3] == 0] = -0.0
    array[3, 0] = -0.0
    assert compact(model(array), "codes=scaled")[1] == []
    assert compact(model(on_grid((64, 80), 128, 0)), "codes=scaled")[1] == []
    array = on_grid((64, 80), 7, 0)
    array[2, 2] = np.inf
    assert compact(model(array), "codes=scaled")[1] == []


def test_own_product_behind_a_weight_stays() -> None:
    array = weights((64, 64), 0.9)
    text = """g (float[n, 64] x) => (float[n, 64] y) {
        wide = Cast <to = 1> (w) p = Mul (wide, s) y = MatMul (x, p)
    }"""
    given: dict[str, Array] = {
        "w": np.round(array * 20).astype(np.int8),
        "s": np.full((1, 64), 0.05, np.float32),
    }
    proto = parse(text, given)
    after, codes = compact(proto)
    assert codes
    dense, _ = apply(after, "decode-weights")
    assert op_types(dense) == ["Cast", "Mul", "MatMul"]
    once = model(on_grid((64, 64), 7, 1))
    once.graph.node[0].input[0] = "v"
    node = onnx.helper.make_node("Mul", ["w", "k"], ["v"])
    once.graph.node.insert(0, node)
    once.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(3), "k"))
    after, codes = compact(once)
    assert codes == ["palette+scaled"]
    dense, _ = apply(after, "decode-weights")
    assert op_types(dense) == ["Mul", "Reshape", "Gather"]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("colours", "group"), [(2, 1), (16, 4), (100, 8), (256, 8)])
def test_palettes_for_groups_of_channels(
    axis: int, colours: int, group: int, tmp_path: Any
) -> None:
    rng = np.random.default_rng(0)
    groups = []
    for _ in range(4):
        own = rng.standard_normal(colours).astype(np.float32)
        groups.append(own[rng.integers(0, colours, (group, 1700))])
    array = np.concatenate(groups)
    array = np.ascontiguousarray(array if axis == 0 else array.T)
    proto = model(array)
    after, codes = compact(proto)
    assert codes == ["palettes"]
    bits = (colours - 1).bit_length()
    assert after.ByteSize() < array.size * bits / 8 + 4 * 4 * (colours + group) + 1200
    assert_same_weight(after, array)
    assert optimized_operators(after, tmp_path) == optimized_operators(proto, tmp_path)


@pytest.mark.parametrize("colours", [2, 3, 4, 5, 11, 17, 33, 65, 129, 256])
def test_palettes_of_all_widths(colours: int) -> None:
    array = (np.arange(71 * 67).reshape(71, 67) * 7 % colours / 3).astype(np.float32)
    after, codes = compact(model(array))
    assert codes == ["palette"]
    indices = -(-array.size * max(1, (colours - 1).bit_length()) // 8)
    assert after.ByteSize() < indices + array.itemsize * colours + 1500
    assert_same_weight(after, array)


@pytest.mark.parametrize("shape", [(4099,), (1, 4099), (3, 5, 7, 41), (2, 8, 1, 16, 16)])
@pytest.mark.parametrize("sparsity", [0.6, 0.95])
def test_all_ranks_and_odd_sizes(shape: tuple[int, ...], sparsity: float) -> None:
    array = weights(shape, sparsity)
    after, codes = compact(model(array))
    assert codes
    assert_same_weight(after, array)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,)])
def test_tiny_weights_stay(shape: tuple[int, ...]) -> None:
    proto = model(np.zeros(shape, np.float32))
    after, codes = compact(proto, "min-bytes=0")
    assert codes == []
    assert after.ByteSize() <= proto.ByteSize()


def test_nan_payloads_and_negative_zeros_are_kept() -> None:
    bits = np.zeros(4096, np.uint32)
    bits[::9] = 0x80000000  # -0.0
    bits[5::90] = 0x7FC12345
    bits[7::90] = 0xFFA00001  # a signalling NaN
    bits[8::300] = 0x7F800000
    array = bits.view(np.float32).reshape(64, 64)
    for options in ("", "codes=bitmask", "codes=gaps", "codes=elias-fano", "codes=palette"):
        after, codes = compact(model(array), options)
        assert codes
        assert_same_weight(after, array)
    assert compact(model(array), "codes=narrow")[1] == []


@pytest.mark.parametrize(
    ("dtype", "narrower"),
    [
        (np.float32, np.float16),
        (np.float32, ml_dtypes.bfloat16),
        (np.float32, np.int8),
        (np.float64, np.float32),
        (np.int64, np.int16),
        (np.int32, np.uint8),
        (np.uint64, np.uint32),
    ],
)
def test_numbers_that_a_narrower_type_holds(dtype: type, narrower: type) -> None:
    bits = np.random.default_rng(0).integers(1, 0x78, 3 * 700 * np.dtype(narrower).itemsize)
    array: Array = bits.astype(np.uint8).view(narrower).astype(dtype).reshape(3, 700)
    after, codes = compact(model(array), "codes=narrow")
    assert codes == ["narrow"]
    assert_same_weight(after, array)
    if array.dtype.kind == "f":
        array[1, 3] = 1 / 3
        assert compact(model(array), "codes=narrow")[1] == []


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.int64, np.uint16, ml_dtypes.bfloat16])
def test_other_element_types(dtype: Any) -> None:
    array = weights((41, 43), 0.9, dtype)
    after, codes = compact(model(array))
    assert codes
    if dtype is not ml_dtypes.bfloat16:
        assert_same_weight(after, array)


def test_most_frequent_number_need_not_be_zero() -> None:
    array = weights((64, 64), 0.9, np.uint8, zero=128)
    after, codes = compact(model(array))
    assert codes[0].startswith(("gaps", "elias-fano"))
    assert after.ByteSize() < array.nbytes / 3
    assert_same_weight(after, array)


def test_long_runs_of_zeros() -> None:
    array = np.zeros(20000, np.float32)
    array[[0, 1, 256, 257, 1500, 12000, 12001, 19999]] = np.arange(1, 9)
    for code in ("gaps", "elias-fano", "bitmask"):
        after, codes = compact(model(array), f"codes={code}")
        assert codes
        assert_same_weight(after, array)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(data=st.data())
def test_any_bits_come_back(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.float32, np.float16, np.uint8, np.int64]))
    shape = data.draw(st.lists(st.integers(1, 23), min_size=1, max_size=3).map(tuple))
    seed, sparsity = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.floats(0, 1))
    kinds = data.draw(st.integers(1, 300))
    rng = np.random.default_rng(seed)
    size = np.dtype(dtype).itemsize
    palette = rng.integers(0, 256, kinds * size).astype(np.uint8).view(dtype)
    array = palette[rng.integers(0, kinds, shape)]
    array[rng.random(shape) < sparsity] = palette[0]
    after, _ = compact(model(array), "min-bytes=0")
    assert_same_weight(after, array)


def test_running_twice_changes_nothing() -> None:
    array = weights((128, 64), 0.9)
    once, codes = compact(model(array))
    twice, outcomes = apply(once, COMPACT)
    assert codes
    assert not outcomes[COMPACT].modified
    assert to_proto(twice).SerializeToString() == once.SerializeToString()
    again, _ = apply(once, f"decode-weights,{COMPACT}")
    assert to_proto(again).ByteSize() == once.ByteSize()
    third, _ = apply(to_proto(again), f"decode-weights,{COMPACT}")
    assert to_proto(third).SerializeToString() == to_proto(again).SerializeToString()


MATMULS = """g (float[n, 64] x) => (float[n, 64] y) {
    a = MatMul(x, p) b = Relu(a) c = MatMul(b, q) d = Add(c, x) y = MatMul(d, p)
}"""


def test_several_weights_share_small_constants_and_readers_stay() -> None:
    p, q = weights((64, 64), 0.8), weights((64, 64), 0.9)
    q[0, 0] = 3
    proto = parse(MATMULS, {"p": p, "q": q})
    feed = {"x": np.ones((3, 64), np.float32)}
    optimized = optimize(proto, COMPACT, feed, rtol=0, atol=0)
    contents = [
        tensor.const_value.tobytes()
        for tensor in optimized.graph.initializers.values()
        if tensor.const_value is not None and tensor.const_value.nbytes <= 8
    ]
    assert len(contents) - len(set(contents)) <= 2  # shapes are parts of their own
    assert op_types(optimized).count("MatMul") == 3
    assert not {"p", "q"} & set(optimized.graph.initializers)


def test_bodies_of_control_flow(tmp_path: Any) -> None:
    text = """g (bool c, float[n, 64] x) => (float[n, 64] y) {
        y = If (c) <
            then_branch = t () => (float[n, 64] a) { a = MatMul(x, p) },
            else_branch = e () => (float[n, 64] b) { b = MatMul(x, q) }>
    }"""
    proto = parse(text, {"p": weights((64, 64), 0.9)})
    inner = onnx.numpy_helper.from_array(weights((64, 64), 0.7), "q")
    proto.graph.node[0].attribute[1].g.initializer.append(inner)
    x = np.ones((2, 64), np.float32)
    optimized = optimize(
        proto, COMPACT, *({"c": np.array(c), "x": x} for c in (True, False)), rtol=0, atol=0
    )
    after = to_proto(optimized)
    assert after.ByteSize() < proto.ByteSize() / 2
    assert optimized_operators(after, tmp_path) == optimized_operators(proto, tmp_path)
    branch = next(each.g for each in after.graph.node[-1].attribute if each.name == "else_branch")
    assert not [each for each in branch.initializer if each.name == "q"]
    dense, _ = apply(after, "decode-weights")
    assert op_types(dense) == ["If", "MatMul", "MatMul"]


QDQ = """g (float[1, 8, 6, 6] x) => (float[1, 40, 6, 6] y)
    <float s = {0.02}, uint8 z = {128}, float t = {0.05}, int8 u = {0}> {
    a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)
    v = DequantizeLinear(w, scales, points)
    c = Conv <pads = [1, 1, 1, 1]> (b, v)
    d = QuantizeLinear(c, t, z) y = DequantizeLinear(d, t, z)
}"""


def test_quantized_weights_and_not_their_scales(tmp_path: Any) -> None:
    arrays = {
        "w": weights((40, 8, 3, 3), 0.8, np.int8),
        "scales": np.full(40, 0.01, np.float32),
        "points": np.zeros(40, np.int8),
    }
    proto = parse(QDQ, arrays)
    proto.graph.node[2].attribute.append(onnx.helper.make_attribute("axis", 0))
    feed = {"x": np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)}
    optimized = optimize(proto, f"{COMPACT}{{min-bytes=0}}", feed, rtol=0, atol=0)
    assert {"scales", "points"} <= set(optimized.graph.initializers)
    assert "w" not in optimized.graph.initializers
    operators = optimized_operators(to_proto(optimized), tmp_path)
    assert operators == optimized_operators(proto, tmp_path)
    assert "QLinearConv" in operators


def test_overridable_initializers_and_outputs_stay() -> None:
    array = np.zeros((64, 64), np.float32)
    text = "g (float[n, 64] x, float[64, 64] p) => (float[n, 64] y) { y = MatMul(x, p) }"
    proto = parse(text, {"p": array})
    assert compact(proto)[1] == []
    text = "g (float[n, 64] x) => (float[n, 64] y, float[64, 64] p) { y = MatMul(x, p) }"
    assert compact(parse(text, {"p": array}))[1] == []


@pytest.mark.parametrize(("opset", "codes"), [(8, []), (9, ["narrow"]), (10, ["narrow"])])
def test_old_opsets(opset: int, codes: list[str]) -> None:
    array = np.arange(1, 4097).astype(np.float16).astype(np.float32).reshape(64, 64)
    array[::2] = 0
    assert compact(model(array, opset), "codes=narrow|bitmask")[1] == codes


def test_options() -> None:
    proto = model(weights((64, 64), 0.9))
    assert compact(proto, "min-bytes=16385")[1] == []
    assert compact(proto, "min-bytes=16384")[1] != []
    assert compact(proto, "codes=bitmask|palette")[1] == ["bitmask"]
    for wrong in (
        *("min-bytes=-1", "codes=huffman", "slack=-0.1", "max-memory=-1"),
        *("max-load=1", "max-load=-2", "max-load=nan", "joined-bytes=-1"),
    ):
        with pytest.raises(OptionError):
            parse_pipeline(f"{COMPACT}{{{wrong}}}")


def test_slack_lets_a_longer_code_that_is_lighter_to_load_win() -> None:
    proto = model(weights((512, 512), 0.9))
    shortest, codes = compact(proto, "slack=0")
    assert codes == ["elias-fano"]
    lighter, codes = compact(proto, "slack=0.1")
    assert codes[0].startswith("gaps")
    assert shortest.ByteSize() < lighter.ByteSize() < shortest.ByteSize() * 1.1
    array = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    assert_same_weight(shortest, array)
    assert_same_weight(lighter, array)


@pytest.mark.parametrize("width", range(1, 9))
def test_distances_of_all_widths(width: int) -> None:
    array = np.zeros(30000, np.float32)
    where = np.cumsum(np.random.default_rng(0).integers(1, 1 << width, 200))
    array[where] = np.arange(1, 201)
    after, codes = compact(model(array), "codes=gaps,slack=0")
    assert len(codes) == 1
    assert_same_weight(after, array)


@pytest.mark.parametrize("width", range(1, 8))
@pytest.mark.parametrize("rare", [0.0, 0.003, 0.05])
def test_long_distances_are_listed(width: int, rare: float) -> None:
    rng = np.random.default_rng(0)
    distances = rng.integers(1, 1 << width, 3000)
    long = rng.random(3000) < rare
    distances[long] = rng.integers(1 << width, 900, np.count_nonzero(long))
    where = np.cumsum(distances) - 1
    array = np.zeros(where[-1] + 300, np.float32)
    array[where] = np.arange(1, 3001)
    proto = model(array)
    positions = listed_gaps(Sparse(array, array[-1:], where), width)
    numbers = as_they_are(positions.stored)
    decoder = combine(DecoderBuilder(0), positions, numbers, array.shape)
    (found,) = decode(decoder.nodes, decoder.tensors, decoder.outputs, 17, 8)
    assert found.tobytes() == array.tobytes()
    after, codes = compact(proto, "codes=gaps,slack=0")
    assert len(codes) == 1
    assert_same_weight(after, array)


def test_a_list_of_long_distances_is_shorter_where_numbers_are_long() -> None:
    array = weights((700, 700), 0.8)
    after, codes = compact(model(array), "slack=0.01")
    assert codes == ["gaps4"]
    assert after.ByteSize() < array.nbytes / 4.3
    assert_same_weight(after, array)


def several(count: int, dtype: Any = np.float32) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model that reads so many small sparse weights of other shapes, and the weights."""
    arrays = {
        f"w{index}": weights((70 + 9 * index, 5, *([3] * (index % 3))), 0.8, dtype)
        for index in range(count)
    }
    nodes = [onnx.helper.make_node("Reshape", [name, "flat"], [f"f{name}"]) for name in arrays]
    nodes.append(onnx.helper.make_node("Concat", [f"f{name}" for name in arrays], ["all"], axis=0))
    nodes.append(onnx.helper.make_node("Gather", ["all", "which"], ["y"]))
    proto = model(next(iter(arrays.values())))
    del proto.graph.node[:], proto.graph.initializer[0]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    return proto, arrays


def assert_same_weights(proto: onnx.ModelProto, arrays: dict[str, Array]) -> None:
    flat = np.concatenate([array.reshape(-1) for array in arrays.values()])
    (found,) = run(proto, {"which": np.arange(flat.size)})
    assert found.tobytes() == flat.tobytes()
    decoded, _ = apply(proto, "decode-weights")
    assert set(decoded.graph.initializers) == {"flat", *arrays}
    for name, array in arrays.items():
        tensor = decoded.graph.initializers[name].const_value
        assert tensor is not None
        assert tuple(tensor.shape.numpy()) == array.shape
        assert tensor.tobytes() == array.tobytes()
    assert set(op_types(decoded)) == {"Reshape", "Concat", "Gather"}


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_small_tensors_are_stored_together(opset: int, dtype: Any, tmp_path: Any) -> None:
    proto, arrays = several(6, dtype)
    proto.opset_import[0].version = opset
    apart, _ = compact(proto, "joined-bytes=0,min-bytes=256")
    joined, codes = compact(proto, "min-bytes=256")
    assert [code.split("+")[-1] for code in codes] == ["joined"]
    assert joined.ByteSize() < apart.ByteSize() - 500
    assert_same_weights(joined, arrays)
    assert_same_weights(apart, arrays)
    assert optimized_operators(joined, tmp_path) == optimized_operators(proto, tmp_path)


def test_scaled_tensors_are_stored_together_with_scales_of_their_own() -> None:
    proto, arrays = several(3)
    for index, name in enumerate(arrays):
        sizes = np.random.default_rng(index).integers(-127, 128, arrays[name].shape)
        integers = np.where(arrays[name] == 0, 0, sizes).astype(np.float32)
        integers.reshape(len(integers), -1)[:, 0] = 127
        scales = np.linspace(0.1, 0.9, len(integers), dtype=np.float32)
        arrays[name] = integers * scales.reshape(-1, *([1] * (integers.ndim - 1)))
    del proto.graph.initializer[1:]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    after, codes = compact(proto)
    assert [code.split("+")[-2:] for code in codes] == [["scaled", "joined"]]
    assert_same_weights(after, arrays)


def test_tensors_with_other_frequent_numbers_are_stored_apart() -> None:
    proto, arrays = several(4)
    for name, zero in (("w1", np.nan), ("w3", -0.0)):
        arrays[name][arrays[name] == 0] = zero
    del proto.graph.initializer[1:]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    after, _ = apply(proto, f"{COMPACT}{{min-bytes=0}}")
    splits = [node for node in after.graph if node.op_type == "Split"]
    assert [len(node.outputs) for node in splits] == [2]
    assert_same_weights(to_proto(after), arrays)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_not_a_number_among_scaled_ones_is_no_matter() -> None:
    array = on_grid((40, 50), 127, 0)
    array[3] = np.nan
    after, _ = compact(model(array))
    assert_same_weight(after, array)
    array[3, 1:] = 0.5
    assert_same_weight(compact(model(array))[0], array)


def test_only_so_much_is_stored_together() -> None:
    proto, arrays = several(6)
    sizes = sorted(array.nbytes for array in arrays.values())
    joined, _ = apply(proto, f"{COMPACT}{{min-bytes=0,joined-bytes={sizes[0] + sizes[1]}}}")
    splits = [node for node in joined.graph if node.op_type == "Split"]
    assert [len(node.outputs) for node in splits] == [2]
    assert_same_weights(to_proto(joined), arrays)


def test_names_of_what_is_stored_together_may_be_lost() -> None:
    proto, _ = several(5)
    after = from_proto(compact(proto)[0])
    for index, value in enumerate(list(after.graph.initializers.values())):
        after.graph.initializers.pop(value.name or "")
        value.name = f"i{index}"
        after.graph.initializers.add(value)
    for index, node in enumerate(after.graph):
        for place, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"v{index}_{place}"
    decoded, _ = apply(to_proto(after), "decode-weights")
    assert not {"BitShift", "CumSum", "ScatterElements"} & set(op_types(decoded))
    folded, _ = apply(to_proto(after), "decode-weights,fold-constants{max-bytes=100000}")
    assert "Split" not in op_types(folded)
    which = {"which": np.arange(200)}
    np.testing.assert_array_equal(run(proto, which)[0], run(to_proto(folded), which)[0])


def test_parts_of_what_is_stored_together_may_be_read_elsewhere() -> None:
    proto, arrays = several(4)
    proto.graph.node.append(onnx.helper.make_node("Shape", ["w0"], ["s"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.INT64, [2]))
    after, codes = compact(proto)
    assert "joined" in codes[0]
    assert run(after, {"which": np.arange(3)})[1].tolist() == list(arrays["w0"].shape)
    decoded, _ = apply(after, "decode-weights")
    assert set(decoded.graph.initializers) == {"flat", *arrays}


def test_tensors_that_cannot_stay_together_are_stored_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onnxopt.passes.compact_weights import compact as module

    real = module.optimized

    def keeps_splits(model: ir.Model) -> Any:
        found = real(model)
        splits = [node for node in model.graph if node.op_type == "Split"]
        found.names |= {output.name for node in splits for output in node.outputs}
        return found

    monkeypatch.setattr(module, "optimized", keeps_splits)
    proto, arrays = several(4)
    after, codes = compact(proto, "min-bytes=256")
    assert codes
    assert not [code for code in codes if "joined" in code]
    assert_same_weights(after, arrays)


# What loading takes


class Loading:
    """Stands for the measurement: the dense model's time, and so much for each byte made."""

    def __init__(self, seconds_each: float) -> None:
        self.seconds_each = seconds_each
        self.measured = 0

    def __call__(self, model: ir.Model) -> float:
        self.measured += 1
        dense = all(name in model.graph.initializers for name in ("p", "q"))
        nodes = len([node for node in model.graph if node.op_type == "ScatterElements"])
        return 1.0 if dense else 1.0 + nodes * self.seconds_each


@pytest.mark.parametrize(
    ("seconds_each", "limit", "left"),
    [(0.4, "2", 0), (0.6, "2", 1), (3.0, "2", 2), (3.0, "0", 0), (3.0, "9", 0)],
)
def test_tensors_that_would_take_too_long_to_decode_stay_dense(
    seconds_each: float, limit: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxopt.passes.compact_weights import loading

    measure = Loading(seconds_each)
    monkeypatch.setattr(loading, "load_seconds", measure)
    monkeypatch.setattr(loading, "_UNNOTICED_BYTES", 0)
    proto = parse(MATMULS, {"p": weights((64, 64), 0.75), "q": weights((64, 64), 0.96)})
    coded, outcomes = apply(proto, f"{COMPACT}{{codes=gaps,joined-bytes=0,max-load={limit}}}")
    stay = {"p", "q"} & set(coded.graph.initializers)
    assert len(stay) == left
    assert outcomes[COMPACT].modified == (left < 2)
    assert [each.node for each in outcomes[COMPACT].refusals] == sorted(stay)
    assert all("not worth" in each.reason for each in outcomes[COMPACT].refusals)
    if left == 1:
        assert stay == {"p"}  # it saves least
    assert bool(measure.measured) == (limit != "0")
    feed = {"x": np.ones((2, 64), np.float32)}
    np.testing.assert_array_equal(run(proto, feed)[0], run(to_proto(coded), feed)[0])
    names = [each.name for each in to_proto(coded).graph.initializer]
    assert len(names) == len(set(names))
    if left == 2:
        assert sorted(names) == ["p", "q"]


def test_time_to_load_is_measured() -> None:
    from onnxopt.passes.compact_weights.loading import load_seconds

    assert 0 < load_seconds(from_proto(model(weights((64, 64), 0.9)))) < 60


def test_decoders_that_make_too_much_are_left_out() -> None:
    array = weights((256, 256), 0.6, np.int8)
    assert compact(model(array))[1] != []
    assert compact(model(array), "max-memory=5")[1] == []
    array = weights((256, 256), 0.9)
    assert compact(model(array), "max-memory=5")[1] != []
    assert compact(model(array), "max-memory=3")[1] == []


def test_sparse_initializers_where_asked_for(tmp_path: Any) -> None:
    arrays = {"p": weights((64, 64), 0.9), "q": weights((64, 64), 0.5)}
    arrays["p"][0, :3] = -0.0
    proto = parse(MATMULS, arrays)
    feed = {"x": np.ones((2, 64), np.float32)}
    optimized = optimize(proto, f"{COMPACT}{{codes=sparse-initializer}}", feed, rtol=0, atol=0)
    after = to_proto(optimized)
    onnx.checker.check_model(after)
    assert [each.values.name for each in after.graph.sparse_initializer] == ["p"]
    assert [each.name for each in after.graph.initializer] == ["q"]
    assert after.ByteSize() < proto.ByteSize() - 64 * 64 * 4 + 413 * 12 + 100
    assert optimized_operators(after, tmp_path) == optimized_operators(proto, tmp_path)
    dense = from_proto(after).graph.initializers["p"].const_value
    assert dense is not None
    assert dense.tobytes() == arrays["p"].tobytes()
    for external in ("never", "always"):
        save(optimized, tmp_path / "model.onnx", external)
        loaded = load(tmp_path / "model.onnx").graph.initializers["p"].const_value
        assert loaded is not None
        assert loaded.tobytes() == arrays["p"].tobytes()
        ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    beside = optimize(proto, f"{COMPACT}{{codes=sparse-initializer|gaps}}", feed)
    assert not to_proto(beside).graph.sparse_initializer


def test_at_most_so_many_are_coded() -> None:
    coded = from_proto(parse(MATMULS, {"p": weights((64, 64), 0.8), "q": weights((64, 64), 0.9)}))
    pass_ = make_pass(COMPACT)
    pass_.max_rewrites = 1
    assert pass_.run(coded).rewritten.total() == 1
    assert len({"p", "q"} & set(coded.graph.initializers)) == 1


# What the runtime makes of it decides


def test_decoder_that_is_not_folded_is_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxopt.passes.compact_weights import compact as module

    proto = parse(MATMULS, {"p": weights((64, 64), 0.8), "q": weights((64, 64), 0.9)})
    real = module.optimized

    def keeps_q(model: ir.Model) -> Any:
        found = real(model)
        if "q" not in model.graph.initializers:
            found.names |= {"q"}
        return found

    monkeypatch.setattr(module, "optimized", keeps_q)
    coded, outcomes = apply(proto, COMPACT)
    assert "q" in coded.graph.initializers
    assert "p" not in coded.graph.initializers
    assert [each.node for each in outcomes[COMPACT].refusals] == ["q"]
    assert "does not fold" in outcomes[COMPACT].refusals[0].reason
    feed = {"x": np.ones((2, 64), np.float32)}
    np.testing.assert_array_equal(run(proto, feed)[0], run(to_proto(coded), feed)[0])


def test_other_kernels_are_searched_for_the_tensor_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onnxopt.passes.compact_weights import compact as module

    arrays = {"p": weights((64, 64), 0.8), "q": weights((64, 64), 0.9)}
    proto = parse(MATMULS, arrays)
    real = module.optimized

    def other_operator_with_p(model: ir.Model) -> Any:
        found = real(model)
        if "p" not in model.graph.initializers:
            found.operators["Gemm"] += 1
        return found

    monkeypatch.setattr(module, "optimized", other_operator_with_p)
    coded, outcomes = apply(proto, COMPACT)
    assert "p" in coded.graph.initializers
    assert "q" not in coded.graph.initializers
    assert [each.node for each in outcomes[COMPACT].refusals] == ["p"]
    dense, _ = apply(to_proto(coded), "decode-weights")
    assert set(dense.graph.initializers) == {"p", "q"}


def test_wrong_decoder_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxopt.passes.compact_weights import compact as module

    def off_by_one(*arguments: Any) -> list[Array]:
        (found,) = map(np.array, real(*arguments))
        found.reshape(-1).view(np.uint32)[7] += 1
        return [found]

    real = module.decode
    monkeypatch.setattr(module, "decode", off_by_one)
    coded, outcomes = apply(model(weights((64, 64), 0.9)), COMPACT)
    assert not outcomes[COMPACT].modified
    assert "bit by bit" in outcomes[COMPACT].refusals[0].reason
    assert op_types(coded) == ["Reshape", "Gather"]


def test_model_that_the_runtime_does_not_load_is_left_alone() -> None:
    proto = model(weights((64, 64), 0.9))
    proto.opset_import.add(domain="custom", version=1)
    proto.graph.node.add(op_type="Strange", domain="custom", input=["w"], output=["z"])
    coded, outcomes = apply(proto, COMPACT)
    assert not outcomes[COMPACT].modified
    assert "does not load" in outcomes[COMPACT].refusals[0].reason
    assert "w" in coded.graph.initializers
    assert len(coded.graph.initializers) == 2
