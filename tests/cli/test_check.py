import json
import pathlib

import numpy as np
import onnx
import pytest

from tests.cli.conftest import TEXT, files, run, weights
from tests.differential import parse


def variant(folder: pathlib.Path, text: str, **initializers: np.ndarray) -> pathlib.Path:
    path = folder / "other.onnx"
    onnx.save(parse(text, initializers or {"w": weights()}), path)
    return path


def test_models_that_agree_exit_0(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = variant(
        tmp_path,
        "g (float[n, 4] x) => (float[n, 4] y) { a = MatMul(x, w) b = Relu(a) y = Neg(b) }",
    )
    before = files(tmp_path)
    result = run("check", model, other)
    assert result.exit_code == 0, result.output
    assert "agree" in result.stdout
    assert files(tmp_path) == before


def test_first_layer_that_differs_is_named(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = variant(tmp_path, TEXT.replace("c = Relu(b)", "c = Abs(b)"))
    result = run("check", model, other, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["agree"] is False
    assert document["layer"]["value"] == "c"
    assert document["layer"]["first_node"] == "Relu"
    assert document["layer"]["second_node"] == "Abs"
    assert document["layer"]["agreed"] == 2
    text = run("check", model, other)
    assert text.exit_code == 1
    assert "First layer that differs" in text.stdout
    assert max(map(len, text.stdout.splitlines())) <= 100


def test_many_layers_are_looked_at_in_order(tmp_path: pathlib.Path) -> None:
    steps = [f"v{i} = Add(v{i - 1}, one)" for i in range(1, 60)]
    body = " ".join(["v0 = Relu(x)", *steps, "y = Neg(v59)"])
    text = f"g (float[3] x) => (float[3] y) <float one = {{1}}> {{ {body} }}"
    first = tmp_path / "first.onnx"
    onnx.save(parse(text), first)
    other = tmp_path / "other.onnx"
    onnx.save(
        parse(text.replace("v40 = Add", "v40 = Sub").replace("v50 = Add", "v50 = Sub")), other
    )
    document = json.loads(run("check", first, other, "--json").stdout)
    assert (document["layer"]["value"], document["layer"]["agreed"]) == ("v40", 40)


def test_difference_behind_all_shared_values_is_said(tmp_path: pathlib.Path) -> None:
    text = "g (float[n] x) => (float[n] y) { a = Relu(x) y = Neg(a) }"
    first = tmp_path / "first.onnx"
    onnx.save(parse(text), first)
    other = variant(tmp_path, text.replace("Neg", "Exp"))
    result = run("check", first, other)
    assert result.exit_code == 1
    assert "lies behind them" in " ".join(result.stdout.split())


def test_other_interface_is_reported_first(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = variant(
        tmp_path,
        """g (float[n, 4] x) => (float[n, 4] y, float[n, 4] a) {
            a = MatMul(x, w) b = Relu(a) y = Neg(b)
        }""",
    )
    document = json.loads(run("check", model, other, "--json").stdout)
    assert document["agree"] is False
    assert document["interface"] == ["output 'a' is only in the second"]
    assert {each["output"] for each in document["differences"]} == {"y"}
    assert all(each["agrees"] for each in document["differences"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("g (float[n, 4] z) => (float[n, 4] y) { y = MatMul(z, w) }", "input 'z' is only in"),
        ("g (float[3, 4] x) => (float[3, 4] y) { y = MatMul(x, w) }", ""),
        ("g (float[n, 4] x) => (float[n, 2] y) { y = MatMul(x, v) }", "output 'y' is ['n', 4]"),
    ],
)
def test_interfaces_that_cannot_be_held_together(
    model: pathlib.Path, tmp_path: pathlib.Path, text: str, says: str
) -> None:
    other = variant(tmp_path, text, w=weights(), v=weights(0, 4, 2))
    result = run("check", model, other, "--json", "--shape", "x:3,4")
    assert result.exit_code == 1, result.output
    assert says in " ".join(json.loads(result.stdout)["interface"])


def test_tolerance_decides(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = variant(tmp_path, TEXT, w=weights() * np.float32(1.01))
    assert run("check", model, other).exit_code == 1
    assert run("check", model, other, "--tolerance", "0.1,0.1").exit_code == 0


def test_model_that_cannot_be_run_is_trouble(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other.onnx"
    text = "g (bfloat16[n] x) => (bfloat16[n] y) { y = Cos(x) }"
    other.write_bytes(parse(text).SerializeToString())
    for pair in ((model, other), (other, model)):
        result = run("check", *pair)
        assert result.exit_code == 2
        assert "ONNX Runtime refuses" in result.stderr
        assert "other.onnx" in result.stderr


def test_quiet_leaves_the_exit_code(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = variant(tmp_path, TEXT.replace("Relu", "Abs"))
    result = run("check", model, other, "--quiet")
    assert (result.exit_code, result.output) == (1, "")


def test_layers_of_a_quantized_model_come_with_their_noise(tmp_path: pathlib.Path) -> None:
    from onnxopt.passes.quantize.plan import Mode

    from tests.passes.quantize.lowered import lowered

    generator = np.random.default_rng(0)
    float_model = parse(
        "g (float[n, 16] x) => (float[n, 4] y) {"
        " [a_product_with_quite_a_long_name_as_exporters_give_them_to_nodes_of_modules]"
        " a = Gemm(x, w1)"
        " r = Relu(a) [last] y = Gemm(r, w2) }",
        {
            "w1": generator.standard_normal((16, 16)).astype(np.float32),
            "w2": generator.standard_normal((16, 4)).astype(np.float32),
        },
    )
    feed = {"x": generator.standard_normal((64, 16)).astype(np.float32)}
    quantized, _ = lowered(float_model, Mode.STATIC, feed)
    first, second = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    onnx.save(float_model, first)
    onnx.save(quantized, second)
    page = tmp_path / "page.html"
    result = run("check", first, second, "--json", "--report", page)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    layers = document["noise"]
    assert {each["layer"] for each in layers} >= {"last"}
    assert [each["sqnr_db"] for each in layers] == sorted(each["sqnr_db"] for each in layers)
    assert all(each["reason"] for each in layers if each["sqnr_db"] < 60)
    assert document["layer"] is None
    assert "the worst first" in page.read_text()
    text = run("check", first, second)
    assert "Signal to noise of layers" in text.stdout
    assert max(map(len, text.stdout.splitlines())) <= 100
