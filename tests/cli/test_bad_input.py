"""Whatever is wrong with the input: one clear sentence, a non-zero exit, and nothing lost."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.runtime.worker import Worker
from tests.cli.conftest import files, run, weights
from tests.differential import parse

Fails = Callable[..., str]
PIPELINE = ("--passes", "eliminate-identities")


@pytest.fixture
def output(tmp_path: pathlib.Path) -> pathlib.Path:
    """An output of an earlier run, which must survive."""
    path = tmp_path / "out.onnx"
    path.write_bytes(b"an earlier output")
    return path


@pytest.fixture
def external(tmp_path: pathlib.Path) -> pathlib.Path:
    """A model with its weights in ``weights.bin``, in a folder of its own."""
    folder = tmp_path / "external"
    folder.mkdir()
    text = "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w) y = Identity(a) }"
    onnx.save_model(
        parse(text, {"w": weights(0, 64, 64)}),
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return folder / "model.onnx"


def change_external(model: pathlib.Path, key: str, value: str) -> None:
    proto = onnx.load_model(model, load_external_data=False)
    tensor = proto.graph.initializer[0]
    entries = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
    del tensor.external_data[:]
    for name, text in entries.items():
        tensor.external_data.add(key=name, value=text)
    model.write_bytes(proto.SerializeToString())


# The file


def test_missing_file(tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    fails("optimize", tmp_path / "none.onnx", output, says=("none.onnx does not exist",))


def test_folder(tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    fails("optimize", tmp_path, output, says=("cannot be read",))


def test_not_a_model(tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    model = tmp_path / "model.onnx"
    model.write_text("This is a text, and no model.\n" * 20)
    fails("optimize", model, output, says=("model.onnx is not an ONNX model",))


def test_empty_file(tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    model = tmp_path / "model.onnx"
    model.touch()
    fails("optimize", model, output, says=("model.onnx is not an ONNX model",))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_file(
    model: pathlib.Path, output: pathlib.Path, fails: Fails, share: float
) -> None:
    content = model.read_bytes()
    model.write_bytes(content[: int(share * len(content))])
    fails("optimize", model, output, says=("model.onnx",))


def test_dangling_input(tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    proto = parse("g (float[n] x) => (float[n] y) { a = Relu(x) y = Add(a, x) }")
    proto.graph.node[1].input[1] = "nowhere"
    model = tmp_path / "model.onnx"
    model.write_bytes(proto.SerializeToString())
    fails("optimize", model, output, *PIPELINE, says=("model.onnx", "nowhere"))


def test_dangling_input_without_verification(
    tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    proto = parse("g (float[n] x) => (float[n] y) { a = Relu(x) y = Add(a, x) }")
    proto.graph.node[1].input[1] = "nowhere"
    model = tmp_path / "model.onnx"
    model.write_bytes(proto.SerializeToString())
    fails("optimize", model, output, *PIPELINE, "--no-verify", says=("model.onnx", "nowhere"))


def test_cycle(tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    proto = parse("g (float[n] x) => (float[n] y) { a = Relu(x) y = Add(a, x) }")
    proto.graph.node[0].input[0] = "y"
    model = tmp_path / "model.onnx"
    model.write_bytes(proto.SerializeToString())
    fails("optimize", model, output, *PIPELINE, says=("model.onnx",))


# External data


def test_missing_external_file(external: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    (external.parent / "weights.bin").unlink()
    fails("optimize", external, output, says=("'weights.bin' is missing", str(external.parent)))


def test_external_file_too_short(
    external: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    data = external.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:-4])
    fails("optimize", external, output, says=("'weights.bin' is too short", "tensor 'w'"))


def test_external_length_that_does_not_fit_the_tensor(
    external: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    change_external(external, "length", "1000")
    fails("optimize", external, output, says=("tensor 'w' needs 16384 bytes", "1000"))


def test_wrong_checksum(external: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    change_external(external, "checksum", "0" * 40)
    fails("optimize", external, output, says=("'weights.bin' does not match the checksum",))


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin"])
def test_external_path_outside_the_folder(
    external: pathlib.Path, output: pathlib.Path, fails: Fails, location: str
) -> None:
    (external.parent / "weights.bin").rename(external.parent.parent / "weights.bin")
    change_external(external, "location", location)
    fails("optimize", external, output, says=(location, "outside the model's folder"))


def test_absolute_external_path(external: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    change_external(external, "location", str(external.parent / "weights.bin"))
    fails("optimize", external, output, says=("outside the model's folder",))


def test_external_link_out_of_the_folder(
    external: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    data = external.parent / "weights.bin"
    data.rename(external.parent.parent / "secret.bin")
    data.symlink_to(external.parent.parent / "secret.bin")
    fails("optimize", external, output, says=("'weights.bin' is a link that leaves",))


# The output


def test_output_is_the_input(model: pathlib.Path, fails: Fails) -> None:
    fails("optimize", model, model, says=("is the input itself", "--in-place"))


def test_output_is_a_link_to_the_input(
    model: pathlib.Path, tmp_path: pathlib.Path, fails: Fails
) -> None:
    (tmp_path / "link.onnx").symlink_to(model)
    fails("optimize", model, tmp_path / "link.onnx", says=("is the input itself", "--in-place"))


def test_missing_output_folder(model: pathlib.Path, tmp_path: pathlib.Path, fails: Fails) -> None:
    target = tmp_path / "none" / "out.onnx"
    fails("optimize", model, target, *PIPELINE, says=("none does not exist",))


def test_output_is_a_folder(model: pathlib.Path, tmp_path: pathlib.Path, fails: Fails) -> None:
    (tmp_path / "out").mkdir()
    fails("optimize", model, tmp_path / "out", *PIPELINE, says=("out is a folder",))


def test_output_below_a_file(model: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    target = output / "out.onnx"
    fails("optimize", model, target, *PIPELINE, says=("out.onnx is not a folder",))


def refuse(code: int) -> Callable[..., Any]:
    def raising(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return raising


def test_unwritable_output_folder(
    model: pathlib.Path, output: pathlib.Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir

    def mkdir(path: str, *arguments: Any, **options: Any) -> None:
        if pathlib.Path(path).parent == output.parent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    fails("optimize", model, output, *PIPELINE, says=("cannot write", "permission denied"))


@pytest.mark.parametrize("choice", ["never", "always"])
def test_full_disk(
    model: pathlib.Path,
    output: pathlib.Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    arguments = ("optimize", model, output, *PIPELINE, "--external-data", choice)
    fails(*arguments, says=("cannot write", "out.onnx", "the disk is full"))


def test_full_disk_in_place(
    model: pathlib.Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    fails("optimize", model, "--in-place", *PIPELINE, says=("the disk is full",))


def test_report_in_a_missing_folder_is_noticed_first(
    model: pathlib.Path, tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    report = tmp_path / "none" / "report.json"
    fails("optimize", model, output, *PIPELINE, "--report", report, says=("does not exist",))


def test_report_must_not_replace_the_model(
    model: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    fails("optimize", model, output, *PIPELINE, "--report", model, says=("is a model",))


# The runtime


def test_custom_operator_is_optimized_around(tmp_path: pathlib.Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 18, "mine": 1]>
    g (float[n] x) => (float[n] y) {
        a = Identity(x) b = mine.Special(a) c = Identity(b) y = Neg(c)
    }"""
    model = tmp_path / "model.onnx"
    model.write_bytes(parse(text).SerializeToString())
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE)
    assert result.exit_code == 0, result.output
    assert "Outputs were not compared" in result.stdout
    assert "mine.Special" in result.stdout
    found = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert found == ["Special", "Neg"]


def test_model_that_the_runtime_has_no_kernel_for(
    tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    model = tmp_path / "model.onnx"
    text = "g (bfloat16[n] x) => (bfloat16[n] y) { a = Identity(x) y = Cos(a) }"
    model.write_bytes(parse(text).SerializeToString())
    fails("optimize", model, output, *PIPELINE, says=("ONNX Runtime refuses", "model.onnx", "Cos"))


def test_opset_from_the_future(tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    model = tmp_path / "model.onnx"
    proto = parse("g (float[n] x) => (float[n] y) { a = Identity(x) y = Neg(a) }")
    proto.opset_import[0].version = 999
    model.write_bytes(proto.SerializeToString())
    fails("optimize", model, output, *PIPELINE, says=("ONNX Runtime refuses", "model.onnx"))


def test_model_without_opset(tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails) -> None:
    model = tmp_path / "model.onnx"
    proto = parse("g (float[n] x) => (float[n] y) { a = Identity(x) y = Neg(a) }")
    del proto.opset_import[:]
    model.write_bytes(proto.SerializeToString())
    fails("optimize", model, output, *PIPELINE, says=("model.onnx",))


@pytest.mark.parametrize("method", ["open", "run"])
def test_model_that_crashes_the_runtime(
    model: pathlib.Path,
    output: pathlib.Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    real = getattr(Worker, method)

    def dying(self: Worker, *arguments: Any, **options: Any) -> Any:
        """Stop the child first, so that it dies while it has the request."""
        self.start()
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (self._process.pid, signal.SIGKILL)).start()
        return real(self, *arguments, **options)

    monkeypatch.setattr(Worker, method, dying)
    said = fails("optimize", model, output, *PIPELINE, says=("model.onnx", "crashed", "SIGKILL"))
    assert "--shape" not in said


def test_model_that_nothing_made_up_fits(
    tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    model = tmp_path / "model.onnx"
    text = """g (int64[k] ids) => (float[k, 4] y) <int64 far = {100}> {
        s = Add(ids, far) a = Gather(w, s) y = Identity(a)
    }"""
    onnx.save(parse(text, {"w": weights()}), model)
    says = ("no made-up input", "'ids'", "--input ids=VALUE")
    fails("optimize", model, output, *PIPELINE, says=says)


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--passes", "eliminate-identity"), "did you mean 'eliminate-identities'?"),
        (("--passes", "eliminate-identities{depth=3}"), "no option 'depth'"),
        (("--passes", "eliminate-identities{"), "braces"),
        ((*PIPELINE, "--skip", "fuse-affine"), "cannot skip 'fuse-affine'"),
        ((*PIPELINE, "--input", "z=1"), "no input 'z'; it has x"),
        ((*PIPELINE, "--input", "x=one"), "'one' is not a value for input 'x'"),
        ((*PIPELINE, "--input", "x=1,2,3"), "do not fit input 'x'"),
        ((*PIPELINE, "--input", "x=none.npy"), "none.npy"),
        ((*PIPELINE, "--shape", "z:1,4"), "no input 'z'"),
        ((*PIPELINE, "--shape", "x:1,4,4"), "2 dimensions"),
        ((*PIPELINE, "--shape", "x:1,5"), "x"),
        ((*PIPELINE, "--data", "none.npz"), "none.npz does not exist"),
        ((*PIPELINE, "--recipe", "none.toml"), "none.toml cannot be read"),
    ],
)
def test_option_that_does_not_fit(
    model: pathlib.Path,
    output: pathlib.Path,
    fails: Fails,
    options: tuple[str, ...],
    says: str,
) -> None:
    fails("optimize", model, output, *options, says=(says,))


@pytest.mark.parametrize(
    "options",
    [
        ("--shape", "x"),
        ("--shape", "x:1,a"),
        ("--shape", "x:-2,4"),
        ("--input", "x"),
        ("--threads", "0"),
        ("--tolerance", "1"),
        ("--tolerance", "a,b"),
        ("--tolerance", "-1,0"),
        ("--external-data", "sometimes"),
        ("--verify-each", "--no-verify"),
        ("--pases", "exact"),
    ],
)
def test_usage_error_exits_2_and_shows_how(
    model: pathlib.Path, output: pathlib.Path, options: tuple[str, ...]
) -> None:
    before = files(output.parent)
    result = run("optimize", model, output, *options)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert files(output.parent) == before


def test_misspelt_option_suggests_the_nearest(model: pathlib.Path, output: pathlib.Path) -> None:
    assert "--passes" in run("optimize", model, output, "--pases", "exact").stderr


def test_output_left_out(model: pathlib.Path) -> None:
    result = run("optimize", model)
    assert result.exit_code == 2
    assert "--in-place" in result.stderr


def test_data_that_does_not_fit(
    model: pathlib.Path, tmp_path: pathlib.Path, output: pathlib.Path, fails: Fails
) -> None:
    data = tmp_path / "feeds.npz"
    np.savez(data, y=weights())
    arguments = ("optimize", model, output, *PIPELINE, "--data", data)
    fails(*arguments, says=("no array for input 'x'",))
    data.write_bytes(b"no archive")
    fails(*arguments, says=("not a readable .npz",))
    np.savez(data, x=weights(0, 3, 5))
    fails(*arguments, says=("x",))
    (tmp_path / "empty").mkdir()
    fails("optimize", model, output, *PIPELINE, "--data", tmp_path / "empty", says=("no .npz",))


def test_pass_that_raises_is_undone_with_a_reproducer(
    model: pathlib.Path, tmp_path: pathlib.Path, wrong_pass: str
) -> None:
    folder = tmp_path / "failure"
    passes = f"{PIPELINE[1]},raise-on-relu"
    result = run(
        "optimize", model, tmp_path / "out.onnx", "--passes", passes, "--reproducer", folder
    )
    assert result.exit_code == 0, result.output
    assert "RuntimeError: met a Relu" in " ".join(result.stdout.split())
    assert sorted(path.name for path in folder.iterdir()) == [
        "failure.json",
        "model.onnx",
        "pipeline.txt",
    ]
    assert len(onnx.load(folder / "model.onnx").graph.node) == 3


def test_other_commands_say_it_as_clearly(tmp_path: pathlib.Path, fails: Fails) -> None:
    missing = tmp_path / "none.onnx"
    says = ("none.onnx does not exist",)
    fails("inspect", missing, says=says)
    fails("bench", missing, says=says)
    fails("check", missing, missing, says=says, code=2)
    fails("bisect", missing, says=says, code=2)
    fails("passes", "fuse-afine", says=("did you mean 'fuse-affine'?",))
