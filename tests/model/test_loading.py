"""Reading: the normal form, external data, and files that are no good."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxopt.errors import ModelError
from onnxopt.model import bytes_on_disk, from_proto, load, save
from tests.differential import parse, run

_WEIGHTS = np.arange(600, dtype=np.float32)


def external_model(folder: pathlib.Path, location: str = "weights.bin") -> pathlib.Path:
    """``y = x + w`` with the 2,400 bytes of ``w`` in a file beside the model, from byte 64 on."""
    model = parse("g (float[600] x) => (float[600] y) { y = Add(x, w) }", {"w": _WEIGHTS})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "64"), ("length", "2400")):
        tensor.external_data.add(key=key, value=value)
    path = folder / "in.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _write_weights(path: pathlib.Path) -> pathlib.Path:
    path.write_bytes(bytes(64) + _WEIGHTS.tobytes())
    return path


def _edit(path: pathlib.Path, **fields: str) -> None:
    """Change or add external data fields of the model's only initializer."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    known = {entry.key: entry.value for entry in tensor.external_data} | fields
    del tensor.external_data[:]
    for key, value in known.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


class TestExternalData:
    def test_is_mapped_and_only_when_read(self, tmp_path: pathlib.Path) -> None:
        path = external_model(tmp_path)
        _write_weights(tmp_path / "weights.bin")
        model = load(path)
        tensor = model.graph.initializers["w"].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.raw is None, "the weights were read while loading"
        array = tensor.numpy()
        np.testing.assert_array_equal(array, _WEIGHTS)
        assert not array.flags.owndata

    def test_counts_as_part_of_the_model(self, tmp_path: pathlib.Path) -> None:
        path = external_model(tmp_path)
        data = _write_weights(tmp_path / "weights.bin")
        assert bytes_on_disk(path) == path.stat().st_size + data.stat().st_size

    def test_in_a_folder_below_and_through_a_link_inside(self, tmp_path: pathlib.Path) -> None:
        path = external_model(tmp_path, "data/weights.bin")
        (tmp_path / "data").mkdir()
        _write_weights(tmp_path / "blob")
        (tmp_path / "data" / "weights.bin").symlink_to(tmp_path / "blob")
        tensor = load(path).graph.initializers["w"].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), _WEIGHTS)

    def test_of_a_model_that_is_a_link_lies_beside_the_link(self, tmp_path: pathlib.Path) -> None:
        inside, elsewhere = tmp_path / "inside", tmp_path / "elsewhere"
        inside.mkdir()
        elsewhere.mkdir()
        real = external_model(elsewhere)
        _write_weights(inside / "weights.bin")
        (elsewhere / "weights.bin").write_bytes(bytes(2464))
        (inside / "link.onnx").symlink_to(real)
        tensor = load(inside / "link.onnx").graph.initializers["w"].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), _WEIGHTS)

    def test_relative_path_and_another_working_folder(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = external_model(tmp_path)
        _write_weights(tmp_path / "weights.bin")
        monkeypatch.chdir(tmp_path)
        model = load(path.name)
        monkeypatch.chdir("/")
        tensor = model.graph.initializers["w"].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), _WEIGHTS)

    @pytest.mark.parametrize("location", ["../weights.bin", "a/../../weights.bin", "/etc/hosts"])
    def test_outside_the_folder(self, location: str, tmp_path: pathlib.Path) -> None:
        (tmp_path / "sub").mkdir()
        _write_weights(tmp_path / "weights.bin")
        with pytest.raises(ModelError, match="outside the model's folder"):
            load(external_model(tmp_path / "sub", location))

    def test_link_that_leaves_the_folder(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "sub").mkdir()
        path = external_model(tmp_path / "sub")
        (tmp_path / "sub" / "weights.bin").symlink_to(_write_weights(tmp_path / "secret"))
        with pytest.raises(ModelError, match=r"'weights\.bin' is a link that leaves"):
            load(path)

    def test_folder_link_that_leaves_the_folder(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "other").mkdir()
        _write_weights(tmp_path / "other" / "weights.bin")
        (tmp_path / "sub" / "data").symlink_to(tmp_path / "other")
        with pytest.raises(ModelError, match="is a link that leaves"):
            load(external_model(tmp_path / "sub", "data/weights.bin"))

    def test_hard_link(self, tmp_path: pathlib.Path) -> None:
        path = external_model(tmp_path)
        os.link(_write_weights(tmp_path / "original"), tmp_path / "weights.bin")
        with pytest.raises(ModelError, match="several hard links"):
            load(path)

    def test_missing(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(ModelError, match=r"'weights\.bin' is missing"):
            load(external_model(tmp_path))

    def test_too_short(self, tmp_path: pathlib.Path) -> None:
        path = external_model(tmp_path)
        (tmp_path / "weights.bin").write_bytes(bytes(2463))
        with pytest.raises(ModelError, match="'w' ends at byte 2464, the file has 2463"):
            load(path)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"length": "2396"}, "'w' needs 2400 bytes but the model says that 2396"),
            ({"offset": "-4"}, "'w' needs 2400 bytes"),
            ({"offset": "much"}, "not a number"),
            ({"location": ""}, "names no file"),
            ({"checksum": "0" * 40}, "does not match the checksum"),
        ],
    )
    def test_wrong_fields(
        self, fields: dict[str, str], message: str, tmp_path: pathlib.Path
    ) -> None:
        path = external_model(tmp_path)
        _write_weights(tmp_path / "weights.bin")
        load(path)
        _edit(path, **fields)
        with pytest.raises(ModelError, match=message):
            load(path)

    def test_right_checksum(self, tmp_path: pathlib.Path) -> None:
        path = external_model(tmp_path)
        data = _write_weights(tmp_path / "weights.bin")
        _edit(path, checksum=hashlib.sha1(data.read_bytes()).hexdigest().upper())
        assert load(path).graph.initializers["w"].const_value is not None

    def test_in_bodies_and_attributes_is_checked_too(self, tmp_path: pathlib.Path) -> None:
        body = """
            g (bool c) => (float[600] y) {
                y = If (c) <
                    then_branch = a () => (float[600] t) <float[600] w = {}> { t = Identity(w) },
                    else_branch = b () => (float[600] e) { e = Constant<value = float[1] {0}>() }
                >
            }
        """
        for place in ("initializer", "attribute"):
            model = onnx.parser.parse_model(
                '<ir_version: 8, opset_import: ["" : 18]>' + body.replace("<float[600] w = {}>", "")
            )
            then, other = model.graph.node[0].attribute
            tensor = (
                then.g.initializer.add(name="w", data_type=1, dims=[600])
                if place == "initializer"
                else other.g.node[0].attribute[0].t
            )
            tensor.CopyFrom(onnx.TensorProto(name="w", data_type=1, dims=[600]))
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="../elsewhere.bin")
            path = tmp_path / "in.onnx"
            path.write_bytes(model.SerializeToString())
            with pytest.raises(ModelError, match="outside the model's folder"):
                load(path)


class TestBadFiles:
    def test_missing(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(ModelError, match="does not exist"):
            load(tmp_path / "none.onnx")

    def test_folder(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(ModelError, match="cannot be read"):
            load(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"\x08", b"not a model at all", b"\x00" * 64])
    def test_no_model(self, content: bytes, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "in.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is not an ONNX model"):
            load(path)

    def test_truncated(self, tmp_path: pathlib.Path) -> None:
        model = parse("g (float[600] x) => (float[600] y) { y = Add(x, w) }", {"w": _WEIGHTS})
        content = model.SerializeToString()
        path = tmp_path / "in.onnx"
        for length in range(1, len(content), 97):
            path.write_bytes(content[:length])
            with pytest.raises(ModelError):
                load(path)


def _sparse(
    name: str, dims: list[int], values: np.ndarray, indices: np.ndarray
) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(
        dims=dims,
        values=onnx.numpy_helper.from_array(values, name),
        indices=onnx.numpy_helper.from_array(indices, f"{name}_indices"),
    )


_SPARSE_VALUES = np.array([1.5, -2.0, 7.0], np.float32)
_LINEAR = np.array([1, 5, 11], np.int64)
_COORDINATES = np.array([[0, 1], [1, 1], [2, 3]], np.int64)
_DENSE = np.array([[0, 1.5, 0, 0], [0, -2, 0, 0], [0, 0, 0, 7]], np.float32)


class TestSparse:
    @pytest.mark.parametrize("indices", [_LINEAR, _COORDINATES], ids=["linear", "coordinates"])
    def test_initializer(self, indices: np.ndarray, tmp_path: pathlib.Path) -> None:
        model = parse("g (float[3, 4] x) => (float[3, 4] y) { y = Add(x, w) }")
        model.graph.sparse_initializer.append(_sparse("w", [3, 4], _SPARSE_VALUES, indices))
        before = model.SerializeToString()
        path = tmp_path / "in.onnx"
        path.write_bytes(before)
        save(load(path), tmp_path / "out.onnx")
        after = onnx.load(tmp_path / "out.onnx")
        onnx.checker.check_model(after)
        feed = {"x": np.ones((3, 4), np.float32)}
        np.testing.assert_array_equal(run(after, feed)[0], run(model, feed)[0])
        np.testing.assert_array_equal(run(after, feed)[0], _DENSE + 1)
        from_proto(model)
        assert model.SerializeToString() == before, "the argument was changed"

    @pytest.mark.parametrize("indices", [_LINEAR, _COORDINATES], ids=["linear", "coordinates"])
    def test_in_a_body(self, indices: np.ndarray) -> None:
        model = parse(
            """
            g (bool c, float[3, 4] x) => (float[3, 4] y) {
                y = If (c) <
                    then_branch = a () => (float[3, 4] t) { t = Add(x, w) },
                    else_branch = b () => (float[3, 4] e) { e = Neg(x) }
                >
            }
            """
        )
        sparse = _sparse("w", [3, 4], _SPARSE_VALUES, indices)
        model.graph.node[0].attribute[0].g.sparse_initializer.append(sparse)
        loaded = from_proto(model)
        body = loaded.graph[0].attributes["then_branch"].as_graph()
        tensor = body.initializers["w"].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), _DENSE)

    @pytest.mark.parametrize("indices", [_LINEAR, _COORDINATES], ids=["linear", "coordinates"])
    def test_constant_node(self, indices: np.ndarray, tmp_path: pathlib.Path) -> None:
        model = parse("g (float[3, 4] x) => (float[3, 4] y) { w = Constant() y = Add(x, w) }")
        attribute = model.graph.node[0].attribute.add(
            name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR
        )
        attribute.sparse_tensor.CopyFrom(_sparse("", [3, 4], _SPARSE_VALUES, indices))
        path = tmp_path / "in.onnx"
        path.write_bytes(model.SerializeToString())
        save(load(path), tmp_path / "out.onnx")
        after = onnx.load(tmp_path / "out.onnx")
        onnx.checker.check_model(after)
        feed = {"x": np.zeros((3, 4), np.float32)}
        np.testing.assert_array_equal(run(after, feed)[0], _DENSE)

    def test_of_other_types(self) -> None:
        model = parse("g (int64[4] x) => (int64[4] y) { y = Add(x, w) }")
        values, indices = np.array([9], np.int64), np.array([2], np.int64)
        model.graph.sparse_initializer.append(_sparse("w", [4], values, indices))
        tensor = from_proto(model).graph.initializers["w"].const_value
        assert tensor is not None
        assert tensor.dtype == ir.DataType.INT64
        np.testing.assert_array_equal(tensor.numpy(), [0, 0, 9, 0])

    @pytest.mark.parametrize("index", [12, -13, 10**12])
    def test_index_outside(self, index: int) -> None:
        model = parse("g (float[3, 4] x) => (float[3, 4] y) { y = Add(x, w) }")
        indices = np.array([0, 1, index], np.int64)
        model.graph.sparse_initializer.append(_sparse("w", [3, 4], _SPARSE_VALUES, indices))
        with pytest.raises(ModelError, match="indices outside"):
            from_proto(model)


class TestInterfaces:
    def _required(self, model: onnx.ModelProto) -> list[str]:
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return [value.name for value in session.get_inputs()]

    def _saved(self, model: onnx.ModelProto, folder: pathlib.Path) -> onnx.ModelProto:
        (folder / "in.onnx").write_bytes(model.SerializeToString())
        save(load(folder / "in.onnx"), folder / "out.onnx")
        return onnx.load(folder / "out.onnx")

    @pytest.mark.parametrize("ir_version", [3, 8])
    def test_initializers_that_are_inputs(self, ir_version: int, tmp_path: pathlib.Path) -> None:
        text = f'<ir_version: {ir_version}, opset_import: ["" : 9]>'
        model = parse(text + "g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
        weights = np.array([3, 4], np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
        after = self._saved(model, tmp_path)
        assert self._required(after) == self._required(model) == ["x"]
        # Only from IR version 4 on can initializers be overridden.
        assert len(after.graph.input) == (1 if ir_version == 3 else 2)
        feed = {"x": np.zeros(2, np.float32)}
        np.testing.assert_array_equal(run(after, feed)[0], weights)
        onnx.checker.check_model(after)

    @pytest.mark.parametrize(
        "text",
        [
            "g (float[2] unused, float[2] x) => (float[2] y) { y = Relu(x) }",
            "g (float[2] x) => (float[2] y, float[2] x) { y = Relu(x) }",
            "g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {1, 2}> { y = Relu(x) }",
            "g (float[N, ?, 3] x) => (float[N, M, 1] y) { y = ReduceMax<axes = [2]>(x) }",
            "g (seq(float[2]) x) => (int64 y) { y = SequenceLength(x) }",
            "g (optional(float[2]) x) => (bool y) { y = OptionalHasElement(x) }",
        ],
    )
    def test_inputs_and_outputs(self, text: str, tmp_path: pathlib.Path) -> None:
        model = parse('<ir_version: 8, opset_import: ["" : 15]>' + text)
        after = self._saved(model, tmp_path)
        assert list(after.graph.input) == list(model.graph.input)
        assert list(after.graph.output) == list(model.graph.output)


@pytest.mark.parametrize("reader", [load, bytes_on_disk])
def test_path_types(reader: Callable[[object], object], tmp_path: pathlib.Path) -> None:
    path = external_model(tmp_path)
    _write_weights(tmp_path / "weights.bin")
    assert reader(str(path)) is not None
    assert reader(path) is not None
