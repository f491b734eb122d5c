"""What goes through `load` and `save` comes out as it went in."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx
import onnx.backend.test
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.errors import RuntimeRefusalError
from onnxopt.model import Interface, from_proto, load, save, to_proto
from onnxopt.runtime.worker import Worker
from tests.conformance.cases import node_cases, stored_cases
from tests.differential import parse, run

_LIGHT = pathlib.Path(onnx.backend.test.__file__).parent / "data" / "light"

#: Element types that numpy or ml_dtypes can hold, with random bits for content.
_DTYPES = [
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.FLOAT8E4M3FN,
    onnx.TensorProto.FLOAT8E4M3FNUZ,
    onnx.TensorProto.FLOAT8E5M2,
    onnx.TensorProto.FLOAT8E5M2FNUZ,
    onnx.TensorProto.FLOAT8E8M0,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.UINT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.UINT64,
    onnx.TensorProto.INT4,
    onnx.TensorProto.UINT4,
    onnx.TensorProto.FLOAT4E2M1,
    onnx.TensorProto.COMPLEX64,
    onnx.TensorProto.COMPLEX128,
]


def _saved(model: onnx.ModelProto, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The model as it was written by onnx, and as we write it."""
    source, target = folder / "in.onnx", folder / "out.onnx"
    source.write_bytes(model.SerializeToString())
    save(load(source), target)
    return source, target


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what may be spelled in two ways spelled in one."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    # onnx_ir gives nodes names, types to attributes and raw bytes to tensors.
    return to_proto(from_proto(plain))


def _opsets(holder: onnx.ModelProto | onnx.FunctionProto) -> dict[str, int]:
    return {entry.domain: entry.version for entry in holder.opset_import}


@pytest.mark.parametrize("name", sorted(path.stem for path in _LIGHT.glob("*.onnx")))
def test_light_nets(name: str, tmp_path: pathlib.Path) -> None:
    source = _LIGHT / f"{name}.onnx"
    save(load(source), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size <= source.stat().st_size
    before, after = onnx.load(source), onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(after)
    assert list(after.graph.output) == list(before.graph.output)
    assert [node.op_type for node in after.graph.node] == [n.op_type for n in before.graph.node]


@pytest.mark.parametrize("part", range(4))
def test_node_cases(part: int, tmp_path: pathlib.Path) -> None:
    for case in node_cases()[part::4]:
        _, target = _saved(case.model, tmp_path)
        after = onnx.load(target)
        assert list(after.graph.input) == list(case.model.graph.input), case.name
        assert list(after.graph.output) == list(case.model.graph.output), case.name
        assert _opsets(after) == _opsets(case.model), case.name
        assert after.ir_version == max(4, case.model.ir_version), case.name
        assert [n.op_type for n in after.graph.node] == [
            n.op_type for n in case.model.graph.node
        ], case.name
        assert after == _plain(case.model), case.name


@pytest.mark.parametrize("kind", ["simple", "pytorch-converted", "pytorch-operator"])
def test_stored_cases(kind: str, tmp_path: pathlib.Path, worker: Worker) -> None:
    compared = 0
    for case in stored_cases(kind):
        source, target = _saved(case.model, tmp_path)
        onnx.checker.check_model(str(target))
        assert Interface.of(load(target)) == Interface.of(load(source)), case.name
        try:
            session = worker.open(source).session
        except RuntimeRefusalError:
            continue  # older or newer than the runtime
        outputs = [worker.run(session, feed) for feed in case.feeds]
        session = worker.open(target).session
        for feed, expected in zip(case.feeds, outputs, strict=True):
            for one, other in zip(expected, worker.run(session, feed), strict=True):
                np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
                compared += 1
    assert compared >= 15


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(request_seconds=60) as started:
        yield started


@pytest.mark.parametrize("dtype", _DTYPES, ids=onnx.TensorProto.DataType.Name)
@pytest.mark.parametrize("count", [7, 160_001], ids=["small", "streamed"])
def test_weights_keep_every_bit(dtype: int, count: int, tmp_path: pathlib.Path) -> None:
    bits = ir.DataType(dtype).bitwidth
    content = np.random.default_rng(3).bytes((count * bits + 7) // 8)
    if bits == 4:
        content = content[:-1] + bytes([content[-1] & 0x0F])  # the last half byte is padding
    name = onnx.TensorProto.DataType.Name(dtype)
    model = onnx.ModelProto(ir_version=13, graph=onnx.GraphProto(name="weights"))
    model.opset_import.add(version=25)
    model.graph.initializer.add(name="w", data_type=dtype, dims=[count], raw_data=content)
    model.graph.node.add(op_type="Identity", input=["w"], output=["y"])
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", dtype, [count]))
    source, target = _saved(model, tmp_path)
    after = onnx.load(target)
    onnx.checker.check_model(after)
    [weight] = after.graph.initializer
    assert (weight.data_type, list(weight.dims), weight.name) == (dtype, [count], "w"), name
    assert weight.raw_data == content
    assert target.stat().st_size <= source.stat().st_size


@pytest.mark.parametrize("field", ["float_data", "int32_data", "int64_data"])
def test_weights_in_typed_fields(field: str, tmp_path: pathlib.Path) -> None:
    dtype = {
        "float_data": onnx.TensorProto.FLOAT,
        "int32_data": onnx.TensorProto.BFLOAT16,
        "int64_data": onnx.TensorProto.INT64,
    }[field]
    model = parse("g (float[1] x) => (float[1] y) { y = Identity(x) }")
    tensor = model.graph.initializer.add(name="w", data_type=dtype, dims=[3])
    getattr(tensor, field).extend([1, 2, 3])
    expected = onnx.numpy_helper.to_array(tensor)
    _, target = _saved(model, tmp_path)
    [after] = onnx.load(target).graph.initializer
    assert after.data_type == dtype
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(after), expected)


def test_string_tensors(tmp_path: pathlib.Path) -> None:
    model = parse(
        """
        g () => (string[3] y, string[2] z) <string[3] w = {"a", "", "\u03b2"}> {
            y = Identity(w)
            z = Constant<value_strings = ["one", "two"]>()
        }
        """
    )
    _, target = _saved(model, tmp_path)
    after = onnx.load(target)
    assert list(after.graph.initializer[0].string_data) == [b"a", b"", "\u03b2".encode()]
    assert [list(array) for array in run(after, {})] == [["a", "", "\u03b2"], ["one", "two"]]


def test_streamed_weights_keep_names_order_and_notes(tmp_path: pathlib.Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "big_one": np.arange(20_000, dtype=np.float32),
        "small": np.arange(3, dtype=np.float32),
        "big_two": np.arange(30_000, dtype=np.float64),
    }
    model = parse("g (float[1] x) => (float[1] y) { y = Identity(x) }", arrays)
    model.graph.initializer[0].doc_string = "the first"
    entry = model.graph.initializer[2].metadata_props.add()
    entry.key, entry.value = "scheme", "none"
    source, target = _saved(model, tmp_path)
    after = onnx.load(target)
    found = {tensor.name: tensor for tensor in after.graph.initializer}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found[name]), array)
    assert found["big_one"].doc_string == "the first"
    assert [(e.key, e.value) for e in found["big_two"].metadata_props] == [("scheme", "none")]
    assert target.stat().st_size <= source.stat().st_size
    loaded = load(source)
    order = list(loaded.graph.initializers)
    save(loaded, target)
    assert list(loaded.graph.initializers) == order


def test_streamed_weight_that_is_an_overridable_input(tmp_path: pathlib.Path) -> None:
    array = np.arange(40_000, dtype=np.float32)
    model = parse("g (float[40000] x, float[40000] w) => (float[40000] y) { y = Add(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    _, target = _saved(model, tmp_path)
    after = onnx.load(target)
    assert [value.name for value in after.graph.input] == ["x", "w"]
    np.testing.assert_array_equal(run(after, {"x": array})[0], 2 * array)
    np.testing.assert_array_equal(run(after, {"x": array, "w": 0 * array})[0], array)


def test_everything_around_the_graph_is_kept(tmp_path: pathlib.Path) -> None:
    model = parse(
        """
        <ir_version: 10, opset_import: ["" : 21, "corp.ops" : 3, "local" : 1],
         producer_name: "maker", producer_version: "1.2", domain: "org.example",
         model_version: 7, doc_string: "what it is for", metadata_props: ["author": "someone"]>
        g (float[N, 4] x, float[1] unused) => (float[N, 4] y) <float[N, 4] t, float[N, 4] a> {
            a = corp.ops.Twist<angle = 3>(x)
            t = local.twice(a)
            y = Identity(t)
        }
        <domain: "local", opset_import: ["" : 21], doc_string: "doubles">
        twice (v) => (w) { w = Add(v, v) }
        """
    )
    model.graph.doc_string = "the graph"
    model.graph.node[0].doc_string = "the node"
    model.graph.input[0].doc_string = "the input"
    entry = model.graph.metadata_props.add()
    entry.key, entry.value = "stage", "exported"
    _, target = _saved(model, tmp_path)
    after = onnx.load(target)
    for field in (
        "ir_version",
        "producer_name",
        "producer_version",
        "domain",
        "model_version",
        "doc_string",
        "metadata_props",
    ):
        assert getattr(after, field) == getattr(model, field), field
    assert _opsets(after) == _opsets(model)
    assert list(after.graph.input) == list(model.graph.input)
    assert {info.name: info.type for info in after.graph.value_info} == {
        info.name: info.type for info in model.graph.value_info
    }
    assert after.graph.doc_string == "the graph"
    assert after.graph.metadata_props == model.graph.metadata_props
    assert after.graph.node[0] == model.graph.node[0]
    assert after.functions[0].doc_string == "doubles"
    assert _opsets(after.functions[0]) == _opsets(model.functions[0])


def test_training_information_is_kept(tmp_path: pathlib.Path) -> None:
    cases = {case.name: case for case in stored_cases("simple")}
    model = parse("g (float[1] x) => (float[1] y) { y = Identity(x) }")
    info = model.training_info.add()
    info.algorithm.CopyFrom(cases["test_gradient_of_add"].model.graph)
    info.initialization_binding.add(key="a", value="b")
    _, target = _saved(model, tmp_path)
    assert list(onnx.load(target).training_info) == [info]


@pytest.mark.parametrize("opset", range(7, 27))
def test_opsets(opset: int, tmp_path: pathlib.Path) -> None:
    model = parse(
        f'<ir_version: 4, opset_import: ["" : {opset}]> g (float[2] x) => (float[2] y) '
        "{ y = Relu(x) }"
    )
    _, target = _saved(model, tmp_path)
    after = onnx.load(target)
    assert (after.opset_import[0].version, after.ir_version) == (opset, 4)
    onnx.checker.check_model(after)


def test_types_of_inner_values_are_not_added(tmp_path: pathlib.Path) -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) <float[2] a> { a = Relu(x) b = Neg(a) y = Abs(b) }"
    )
    source = tmp_path / "in.onnx"
    source.write_bytes(model.SerializeToString())
    loaded = load(source)
    for node in loaded.graph:
        node.outputs[0].type, node.outputs[0].shape = (
            ir.TensorType(ir.DataType.FLOAT),
            ir.Shape([2]),
        )
    save(loaded, tmp_path / "out.onnx")
    after = onnx.load(tmp_path / "out.onnx")
    assert [info.name for info in after.graph.value_info] == ["a"]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4])
def test_in_memory_proto_round_trip(dtype: type) -> None:
    array: np.ndarray = np.arange(-3, 4).astype(dtype)
    model = parse("g (float[1] x) => (float[1] y) { y = Identity(x) }")
    model.graph.initializer.append(ir.serde.serialize_tensor(ir.tensor(array, name="w")))
    before = model.SerializeToString(deterministic=True)
    after = to_proto(from_proto(model))
    assert model.SerializeToString(deterministic=True) == before, "the argument was changed"
    found = ir.serde.deserialize_tensor(after.graph.initializer[0]).numpy()
    assert found.dtype == dtype
    assert found.tobytes() == array.tobytes()
