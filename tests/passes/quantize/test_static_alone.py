"""The pipeline ``quantize{scheme=static}`` by itself, on models as exporters leave them."""

import pathlib
import shlex

import numpy as np
import onnx
import pytest
from onnxopt.passes.quantize import solving
from typer.testing import CliRunner, Result

import onnxopt
from onnxopt.accuracy import Budget
from onnxopt.cli.main import app
from onnxopt.report.run import RunReport
from tests.differential import parse
from tests.passes.quantize.lowered import decibels, kernels, run_at

RNG = np.random.default_rng(0)
PIPELINE = "quantize{scheme=static}"

#: Bodies with what the exact passes would have cleared away, and shapes of inputs and constants.
NETS: dict[str, tuple[str, tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "batch norm behind a convolution": (
        """g (float[N, 8, 9, 9] x) => (float[N, 5] y) {
            i = Identity(w1)
            a = Conv<pads=[1, 1, 1, 1]>(x, i)
            b = BatchNormalization(a, s, o, m, v)
            r = Relu(b)
            d = Dropout(r)
            c = Conv(d, w2, b2)
            p = GlobalAveragePool(c)
            t = Constant<value = int64[2] {0, -1}>()
            f = Reshape(p, t)
            y = Gemm<transB=1, alpha=0.5>(f, w3, b3)
        }""",
        (8, 9, 9),
        {
            "w1": (32, 8, 3, 3),
            **dict.fromkeys(("s", "o", "m", "v"), (32,)),
            "w2": (48, 32, 3, 3),
            "b2": (48,),
            "w3": (5, 48),
            "b3": (5,),
        },
    ),
    "a bias added from the left, weights turned": (
        """g (float[N, 7, 24] x) => (float[N, 7, 10] y) {
            t = Transpose(w1)
            a = MatMul(x, t)
            b = Add(b1, a)
            r = Relu(b)
            c = MatMul(r, w2)
            y = Add(c, b2)
        }""",
        (7, 24),
        {"w1": (96, 24), "b1": (96,), "w2": (96, 10), "b2": (10,)},
    ),
    "rows by a reshape": (
        """g (float[N, 7, 24] x) => (float[M, 10] y) {
            s = Constant<value = int64[2] {-1, 24}>()
            f = Reshape(x, s)
            a = Gemm(f, w1, b1)
            r = Relu(a)
            y = Gemm(r, w2, b2)
        }""",
        (7, 24),
        {"w1": (24, 96), "b1": (96,), "w2": (96, 10), "b2": (10,)},
    ),
}


def _array(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.3).astype(np.float32)


def _saved(net: str, folder: pathlib.Path) -> tuple[onnx.ModelProto, pathlib.Path, pathlib.Path]:
    """The model, its path, and the path of samples."""
    body, shape, shapes = NETS[net]
    constants = {name: _array(*dims) for name, dims in shapes.items()}
    if "v" in constants:
        constants["v"] = np.abs(constants["v"]) + 0.5
    model = parse(body, constants)
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "data.npz", x=_array(12, *shape) * 3)
    return model, folder / "net.onnx", folder / "data.npz"


def _optimized(source: pathlib.Path, data: pathlib.Path) -> RunReport:
    return onnxopt.optimize(
        source,
        source.with_name("out.onnx"),
        data=data,
        passes=PIPELINE,
        budget=Budget(min_agreement=None),  # random outputs decide nothing
        goal="size",
        seconds=0.05,
        guard_speed=False,
    )


@pytest.mark.parametrize("net", NETS)
def test_it_does_without_the_exact_passes(net: str, tmp_path: pathlib.Path) -> None:
    model, source, data = _saved(net, tmp_path)
    report = _optimized(source, data)
    assert report.undone == []
    result = onnx.load(tmp_path / "out.onnx")
    assert "DynamicQuantizeLinear" not in {node.op_type for node in result.graph.node}
    ran = kernels(result, tmp_path)
    assert not ran.keys() & {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
    for batch in (1, 5):
        feed = {"x": np.load(data)["x"][:batch]}
        (expected,), (actual,) = run_at(model, feed), run_at(result, feed)
        assert expected.shape == actual.shape
        assert decibels(expected, actual) > 20


def _command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_without_data_it_says_what_to_give(tmp_path: pathlib.Path) -> None:
    _, source, _ = _saved("rows by a reshape", tmp_path)
    before = source.read_bytes()
    result = _command("optimize", source, tmp_path / "out.onnx", "--passes", PIPELINE)
    assert result.exit_code != 0
    said = " ".join(result.stderr.split())
    assert "--data" in said
    assert "quantize" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out.onnx").exists()
    assert source.read_bytes() == before


def test_a_failure_inside_it_can_be_seen_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, source, data = _saved("rows by a reshape", tmp_path)

    def fail(*_: object) -> None:
        raise RuntimeError("no range for it")

    monkeypatch.setattr(solving, "sizes_of", fail)
    report = _optimized(source, data)
    (undone,) = report.undone
    assert "no range for it" in undone.reason
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()
    folder = tmp_path / "out.onnx.failure"
    assert (folder / "pipeline.txt").read_text() == f"{PIPELINE}\n"
    words = shlex.split(undone.reproducer)
    assert words[:2] == ["onnxopt", "optimize"]
    assert words[words.index("--data") + 1] == str(data)
    again = _command(*words[1:])
    assert "no range for it" in " ".join(again.stdout.split())
