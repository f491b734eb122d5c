"""Writing: whole or not at all, external data, and files of others."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.errors import ModelError
from onnxopt.model import (
    ExternalData,
    Interface,
    StagedModel,
    bytes_on_disk,
    copy,
    from_proto,
    light_proto,
    load,
    restore_interface,
    save,
    stage,
)
from tests.differential import parse

_WEIGHTS = np.arange(600, dtype=np.float32)
_BIG = np.arange(40_000, dtype=np.float32)


def _model(**weights: np.ndarray) -> onnx.ModelProto:
    return parse("g (float[600] x) => (float[600] y) { y = Relu(x) }", weights)


def _content(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All weights of a model file, read by onnx."""
    model = onnx.load(path)
    onnx.checker.check_model(model)
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def _files(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestExternalData:
    @pytest.mark.parametrize(
        ("choice", "had_it", "files"),
        [
            ("auto", False, ["out.onnx"]),
            ("auto", True, ["out.onnx", "out.onnx.data"]),
            ("always", False, ["out.onnx", "out.onnx.data"]),
            ("never", True, ["out.onnx"]),
        ],
    )
    def test_choice(
        self, choice: ExternalData, had_it: bool, files: list[str], tmp_path: pathlib.Path
    ) -> None:
        source = tmp_path / "source"
        source.mkdir()
        onnx.save(
            _model(w=_WEIGHTS),
            source / "in.onnx",
            save_as_external_data=had_it,
            location="in.bin",
            size_threshold=0,
        )
        (tmp_path / "target").mkdir()
        target = tmp_path / "target" / "out.onnx"
        save(load(source / "in.onnx"), target, choice)
        assert _files(tmp_path / "target") == files
        np.testing.assert_array_equal(_content(target)["w"], _WEIGHTS)
        assert bytes_on_disk(target) == sum(f.stat().st_size for f in target.parent.iterdir())

    def test_small_tensors_stay_in_the_model_file(self, tmp_path: pathlib.Path) -> None:
        weights = {"small": _WEIGHTS[:100], "large": _WEIGHTS}
        save(from_proto(_model(**weights)), tmp_path / "out.onnx", "always")
        model = onnx.load(tmp_path / "out.onnx", load_external_data=False)
        places = {tensor.name: tensor.data_location for tensor in model.graph.initializer}
        assert places == {
            "small": onnx.TensorProto.DEFAULT,
            "large": onnx.TensorProto.EXTERNAL,
        }
        assert _content(tmp_path / "out.onnx").keys() == weights.keys()

    def test_the_model_in_memory_stays_as_it_was(self, tmp_path: pathlib.Path) -> None:
        model = from_proto(_model(w=_WEIGHTS))
        before = model.graph.initializers["w"].const_value
        save(model, tmp_path / "out.onnx", "always")
        assert model.graph.initializers["w"].const_value is before

    def test_weights_of_bodies(self, tmp_path: pathlib.Path) -> None:
        proto = parse(
            """
            g (bool c, float[600] x) => (float[600] y) {
                y = If (c) <
                    then_branch = a () => (float[600] t) { t = Add(x, w) },
                    else_branch = b () => (float[600] e) { e = Neg(x) }
                >
            }
            """
        )
        body = proto.graph.node[0].attribute[0].g
        body.initializer.append(onnx.numpy_helper.from_array(_WEIGHTS, "w"))
        save(from_proto(proto), tmp_path / "out.onnx", "always")
        [tensor] = onnx.load(tmp_path / "out.onnx").graph.node[0].attribute[0].g.initializer
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), _WEIGHTS)

    def test_strings_stay_in_the_model_file(self, tmp_path: pathlib.Path) -> None:
        proto = _model(w=_WEIGHTS)
        words = [f"word {number}" for number in range(300)]
        proto.graph.initializer.append(onnx.helper.make_tensor("s", 8, [300], words))
        save(from_proto(proto), tmp_path / "out.onnx", "always")
        found = _content(tmp_path / "out.onnx")
        assert list(found["s"]) == words
        np.testing.assert_array_equal(found["w"], _WEIGHTS)

    def test_constant_nodes_with_external_tensors(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "w.bin").write_bytes(_WEIGHTS.tobytes())
        proto = parse("g () => (float[600] y) { y = Constant<value = float[1] {0}>() }")
        tensor = proto.graph.node[0].attribute[0].t
        tensor.CopyFrom(onnx.TensorProto(data_type=1, dims=[600]))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
        (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
        (tmp_path / "elsewhere").mkdir()
        save(load(tmp_path / "in.onnx"), tmp_path / "elsewhere" / "out.onnx")
        after = onnx.load(tmp_path / "elsewhere" / "out.onnx").graph.node[0].attribute[0].t
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(after), _WEIGHTS)

    def test_a_file_of_someone_else_is_not_touched(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "out.onnx.data").write_bytes(b"mine")
        (tmp_path / "out.onnx.1.data").write_bytes(b"mine too")
        save(from_proto(_model(w=_WEIGHTS)), tmp_path / "out.onnx", "always")
        assert (tmp_path / "out.onnx.data").read_bytes() == b"mine"
        assert (tmp_path / "out.onnx.1.data").read_bytes() == b"mine too"
        assert (tmp_path / "out.onnx.2.data").exists()
        np.testing.assert_array_equal(_content(tmp_path / "out.onnx")["w"], _WEIGHTS)

    def test_a_file_of_someone_else_beside_an_old_output(self, tmp_path: pathlib.Path) -> None:
        save(from_proto(_model(w=_WEIGHTS)), tmp_path / "out.onnx")
        (tmp_path / "out.onnx.data").write_bytes(b"mine")
        save(from_proto(_model(w=_WEIGHTS)), tmp_path / "out.onnx", "always")
        assert (tmp_path / "out.onnx.data").read_bytes() == b"mine"

    def test_the_old_outputs_data_is_replaced(self, tmp_path: pathlib.Path) -> None:
        target = tmp_path / "out.onnx"
        save(from_proto(_model(w=_WEIGHTS)), target, "always")
        save(from_proto(_model(w=_WEIGHTS + 1)), target, "always")
        assert _files(tmp_path) == ["out.onnx", "out.onnx.data"]
        np.testing.assert_array_equal(_content(target)["w"], _WEIGHTS + 1)

    def test_in_place_while_its_weights_are_mapped(self, tmp_path: pathlib.Path) -> None:
        target = tmp_path / "out.onnx"
        save(from_proto(_model(w=_WEIGHTS, v=_BIG)), target, "always")
        model = load(target)
        save(model, target)
        for name, array in {"w": _WEIGHTS, "v": _BIG}.items():
            np.testing.assert_array_equal(_content(target)[name], array)
            tensor = model.graph.initializers[name].const_value
            assert tensor is not None
            np.testing.assert_array_equal(tensor.numpy(), array)


class TestCopy:
    @pytest.mark.parametrize("external", [False, True])
    def test_the_copy_holds_the_same_and_stands_alone(
        self, external: bool, tmp_path: pathlib.Path
    ) -> None:
        (tmp_path / "source").mkdir()
        source, target = tmp_path / "source" / "in.onnx", tmp_path / "out.onnx"
        onnx.save(
            _model(w=_WEIGHTS), source, save_as_external_data=external, location="in.bin",
            size_threshold=0,
        )  # fmt: skip
        copy(source, target)
        assert _files(tmp_path) == [*["out.onnx", "out.onnx.data"][: 1 + external], "source"]
        shutil.rmtree(source.parent)
        np.testing.assert_array_equal(_content(target)["w"], _WEIGHTS)

    def test_a_copy_that_fails_leaves_the_old_output(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
        onnx.save(_model(w=_WEIGHTS), source)
        target.write_bytes(b"old")

        def full(source: object, target: pathlib.Path) -> NoReturn:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(ModelError, match="the disk is full"):
            copy(source, target)
        assert target.read_bytes() == b"old"
        assert _files(tmp_path) == ["in.onnx", "out.onnx"]


class TestWholeOrNotAtAll:
    @pytest.fixture(params=["never", "always"])
    def old(self, request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
        """An output of an earlier run, as one file or with external data."""
        target = tmp_path / "out.onnx"
        save(from_proto(_model(w=_BIG)), target, request.param)
        return target

    def _assert_old_is_there(self, target: pathlib.Path, files: list[str]) -> None:
        assert _files(target.parent) == files
        np.testing.assert_array_equal(_content(target)["w"], _BIG)

    @pytest.mark.parametrize("choice", ["never", "always"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_full_disk(
        self,
        old: pathlib.Path,
        choice: ExternalData,
        code: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def full(descriptor: int) -> NoReturn:
            raise OSError(code, os.strerror(code))

        files = _files(old.parent)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ModelError, match=r"cannot write .*: the disk"):
            save(from_proto(_model(w=_BIG + 1)), old, choice)
        self._assert_old_is_there(old, files)

    @pytest.mark.parametrize("choice", ["never", "always"])
    @pytest.mark.parametrize("survived", [0, 1])
    def test_move_that_fails(
        self,
        old: pathlib.Path,
        choice: ExternalData,
        survived: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        files = _files(old.parent)
        real, calls = os.replace, iter(range(100))

        def fail(source: Any, target: Any) -> None:
            if pathlib.Path(target) == old and survived:
                raise OSError(errno.EIO, "input/output error")
            if next(calls) == 0 and not survived:
                raise OSError(errno.EIO, "input/output error")
            real(source, target)

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(ModelError, match="cannot write"):
            save(from_proto(_model(w=_BIG + 1)), old, choice)
        monkeypatch.undo()
        self._assert_old_is_there(old, files)

    def test_interrupt(self, old: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(descriptor: int) -> NoReturn:
            raise KeyboardInterrupt

        files = _files(old.parent)
        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(from_proto(_model(w=_BIG + 1)), old)
        self._assert_old_is_there(old, files)

    def test_staging_does_not_touch_the_old(self, old: pathlib.Path) -> None:
        files = _files(old.parent)
        staged = stage(from_proto(_model(w=_BIG + 1)), old)
        assert isinstance(staged, StagedModel)
        np.testing.assert_array_equal(_content(staged.path)["w"], _BIG + 1)
        assert staged.bytes == bytes_on_disk(staged.path)
        np.testing.assert_array_equal(_content(old)["w"], _BIG)
        staged.discard()
        self._assert_old_is_there(old, files)

    def test_commit_leaves_no_folder(self, old: pathlib.Path) -> None:
        stage(from_proto(_model(w=_BIG + 1)), old, "never").commit()
        assert [name for name in _files(old.parent) if name.startswith(".")] == []
        np.testing.assert_array_equal(_content(old)["w"], _BIG + 1)

    def test_missing_folder(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(ModelError, match=r"the folder .* does not exist"):
            save(from_proto(_model()), tmp_path / "none" / "out.onnx")

    def test_target_is_a_folder(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(ModelError, match="is a folder"):
            save(from_proto(_model()), tmp_path)

    def test_parent_is_a_file(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ModelError, match="is not a folder"):
            save(from_proto(_model()), tmp_path / "file" / "out.onnx")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_read_only_folder(self, tmp_path: pathlib.Path) -> None:
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(ModelError, match="permission denied"):
                save(from_proto(_model()), tmp_path / "out.onnx")
        finally:
            tmp_path.chmod(0o700)

    def test_weights_with_too_few_bytes(self, old: pathlib.Path, tmp_path: pathlib.Path) -> None:
        proto = _model(w=_BIG)
        proto.graph.initializer[0].raw_data = bytes(100)
        files = _files(tmp_path)
        with pytest.raises(ModelError, match="'w'"):
            save(from_proto(proto), old, "never")
        self._assert_old_is_there(old, files)


def _sparse_file(path: pathlib.Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)  # takes no room on the disk


def _huge_model(folder: pathlib.Path, tensors: int) -> pathlib.Path:
    """A model with 1 GiB of zeros a tensor in a file that takes no room."""
    proto = parse("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    for index in range(tensors):
        tensor = proto.graph.initializer.add(name=f"w{index}", data_type=1, dims=[2**28])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "huge.bin"), ("offset", index * 2**30), ("length", 2**30)):
            tensor.external_data.add(key=key, value=str(value))
    _sparse_file(folder / "huge.bin", tensors * 2**30)
    (folder / "in.onnx").write_bytes(proto.SerializeToString())
    return folder / "in.onnx"


class TestOverTwoGiB:
    def test_loads_lazily_and_is_refused_as_one_file(self, tmp_path: pathlib.Path) -> None:
        path = _huge_model(tmp_path, 3)
        model = load(path)
        assert bytes_on_disk(path) > 3 * 2**30
        assert light_proto(model).ByteSize() < 2000
        with pytest.raises(ModelError, match=r"would be 3\.0 GiB.*allow external data"):
            stage(model, tmp_path / "out.onnx", "never")
        assert _files(tmp_path) == ["huge.bin", "in.onnx"]

    @pytest.mark.slow
    def test_is_written_with_external_data(self, tmp_path: pathlib.Path) -> None:
        path = _huge_model(tmp_path, 3)
        model = load(path)
        model.meta.clear()  # as a model that was never in two files
        staged = stage(model, tmp_path / "out.onnx")
        try:
            assert staged.bytes > 3 * 2**30
            again = load(staged.path)
            for index in range(3):
                tensor = again.graph.initializers[f"w{index}"].const_value
                assert tensor is not None
                assert tensor.nbytes == 2**30
                assert not tensor.numpy()[:: 2**20].any()
        finally:
            staged.discard()


class TestInterface:
    def test_difference_names_what_changed(self) -> None:
        before = Interface.of(from_proto(_model()))
        model = from_proto(_model())
        assert before.difference(Interface.of(model)) is None
        model.graph.outputs[0].name = "z"
        message = before.difference(Interface.of(model))
        assert message is not None
        assert "outputs" in message
        assert "'y'" in message
        assert "'z'" in message

    @pytest.mark.parametrize("what", ["opset", "metadata", "type", "shape"])
    def test_difference_sees(self, what: str) -> None:
        before = Interface.of(from_proto(_model()))
        model = from_proto(_model())
        output = model.graph.outputs[0]
        if what == "opset":
            model.opset_imports[""] = 19
        elif what == "metadata":
            model.metadata_props["a"] = "b"
        elif what == "type":
            output.type = ir.TensorType(ir.DataType.DOUBLE)
        else:
            output.shape = ir.Shape([None])
        assert before.difference(Interface.of(model)) is not None

    def test_restore_puts_types_and_symbols_back(self) -> None:
        proto = parse("g (float[N, 4] x) => (float[N, M] y) { y = Relu(x) }")
        model = from_proto(proto)
        before = Interface.of(model)
        model.graph.inputs[0].shape = ir.Shape([1, 4])
        model.graph.outputs[0].shape = ir.Shape(["N", 4])
        restore_interface(model, before)
        assert before.difference(Interface.of(model)) is None
        other = from_proto(proto)
        model.graph.outputs[0].shape = None
        restore_interface(model, other)
        assert before.difference(Interface.of(model)) is None


def test_light_proto_has_no_large_weights_and_checks() -> None:
    proto = parse("g (float[600] x) => (float[600] y) { y = Add(x, w) }", {"w": _WEIGHTS})
    model = from_proto(proto)
    light = light_proto(model)
    assert [value.name for value in light.graph.input] == ["x", "w"]
    assert light.graph.input[1].type.tensor_type.elem_type == 1
    onnx.checker.check_model(light, full_check=True)
    assert list(model.graph.initializers) == ["w"]
    assert list(light_proto(model, 4000).graph.initializer) == list(proto.graph.initializer)
