import json
import pathlib

import numpy as np
import onnx
import pytest

from tests.cli.conftest import files, run, weights
from tests.differential import parse

PIPELINE = ("--passes", "eliminate-identities")


def op_types(path: pathlib.Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_writes_the_result_and_prints_what_changed(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE)
    assert result.exit_code == 0, result.output
    assert op_types(tmp_path / "out.onnx") == ["MatMul", "Relu", "Neg"]
    assert "eliminate-identities" in result.stdout
    assert "Verified on" in result.stdout
    for row in ("file size", "nodes", "kernels run", "load time", "latency"):
        assert row in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert result.stderr == ""


def test_json_is_all_there_is_on_stdout(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE, "--json")
    document = json.loads(result.stdout)
    assert document["before"]["nodes"] == 5
    assert document["after"]["nodes"] == 3
    assert document["verified"] is True
    assert document["target"] == str(tmp_path / "out.onnx")


def test_report_is_the_same_document(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    report = tmp_path / "report.json"
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE, "--json", "--report", report)
    assert json.loads(report.read_text()) == json.loads(result.stdout)


def test_quiet_prints_nothing(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "out.onnx").exists()


def test_dry_run_writes_nothing(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = files(tmp_path)
    result = run("optimize", model, *PIPELINE, "--dry-run")
    assert result.exit_code == 0
    assert "not written" in result.stdout
    assert files(tmp_path) == before


def test_in_place_replaces_the_input(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert run("optimize", model, "--in-place", *PIPELINE).exit_code == 0
    assert op_types(model) == ["MatMul", "Relu", "Neg"]
    assert list(files(tmp_path)) == ["model.onnx"]


def test_skip_leaves_a_pass_out(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = run(
        "optimize", model, tmp_path / "out.onnx", *PIPELINE, "--skip", "eliminate-identities"
    )
    assert result.exit_code == 0
    assert (tmp_path / "out.onnx").read_bytes() == model.read_bytes()
    assert "Nothing to improve" in result.stdout


def test_no_verify_says_so(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE, "--no-verify")
    assert result.exit_code == 0
    assert "verification is off" in result.stdout
    assert "latency" not in result.stdout


def test_no_speed_guard_does_not_time(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE, "--no-speed-guard")
    assert "Verified on" in result.stdout
    assert "latency" not in result.stdout


def test_explain_lists_what_was_left_alone(tmp_path: pathlib.Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(parse("g (float[n] x) => (float[n] y) { y = Identity(x) }"), model)
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE, "--explain")
    assert result.exit_code == 0
    assert "Left alone" in result.stdout
    assert "it names a graph output that is made elsewhere" in result.stdout


def test_external_data_is_written_beside_the_model(tmp_path: pathlib.Path) -> None:
    model = tmp_path / "model.onnx"
    text = "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w) b = Identity(a) y = Neg(b) }"
    onnx.save(parse(text, {"w": weights(0, 64, 64)}), model)
    result = run(
        "optimize", model, tmp_path / "out.onnx", *PIPELINE, "--external-data", "always", "--quiet"
    )
    assert result.exit_code == 0
    assert (tmp_path / "out.onnx.data").stat().st_size >= 64 * 64 * 4


def test_data_input_and_shape_reach_the_feeds(tmp_path: pathlib.Path) -> None:
    # Gather with ids over the table's 4 rows fails, so only what is given lets the model run.
    model = tmp_path / "model.onnx"
    text = """g (int64[k] ids, float[m] x) => (float[k, 4] y, float[m] z) {
        s = Add(ids, one) a = Gather(w, s) b = Identity(a) y = Neg(b) z = Relu(x)
    }"""
    onnx.save(parse(text, {"w": weights(), "one": np.array(3, np.int64)}), model)
    values = ("--input", "ids=0,-1", "--shape", "x:7")
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE, *values, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verified"] is True

    np.savez(tmp_path / "feeds.npz", ids=np.array([[0], [-1]]), x=np.zeros((2, 5), np.float32))
    data = ("--data", tmp_path / "feeds.npz")
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE, *data, "--json")
    assert json.loads(result.stdout)["feeds"] == 2


def test_recipe_gives_settings_and_the_command_line_goes_before_it(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    np.savez(folder / "feeds.npz", x=weights(1, 3, 4))
    recipe = folder / "recipe.toml"
    recipe.write_text('passes = "eliminate-no-ops"\ndata = "feeds.npz"\nguard-speed = false\n')
    output = tmp_path / "out.onnx"
    first = json.loads(run("optimize", model, output, "--recipe", recipe, "--json").stdout)
    assert (first["pipeline"], first["feeds"], first["speed"]) == ("eliminate-no-ops", 3, None)
    result = run("optimize", model, output, "--recipe", recipe, *PIPELINE, "--json")
    assert json.loads(result.stdout)["pipeline"] == "eliminate-identities"


@pytest.mark.parametrize("choice", [["--verify-each"], ["--threads", "2"], ["--seconds", "0.1"]])
def test_other_options_are_taken(
    model: pathlib.Path, tmp_path: pathlib.Path, choice: list[str]
) -> None:
    result = run("optimize", model, tmp_path / "out.onnx", *PIPELINE, *choice)
    assert result.exit_code == 0
    assert "Verified on" in result.stdout


def test_tolerance_of_nothing_undoes_what_rounds(tmp_path: pathlib.Path) -> None:
    model = tmp_path / "model.onnx"
    text = "g (float[8] x) => (float[8] y) { a = Mul(x, s) b = Mul(a, t) y = Add(b, x) }"
    scales = {"s": np.array(1.1, np.float32), "t": np.array(0.7, np.float32)}
    onnx.save(parse(text, scales), model)
    arguments = ("optimize", model, tmp_path / "out.onnx", "--passes", "fuse-affine", "--json")
    loose = json.loads(run(*arguments, "--no-speed-guard").stdout)
    assert (loose["changed"], loose["undone"]) == (True, [])
    strict = json.loads(run(*arguments, "--no-speed-guard", "--tolerance", "0,0").stdout)
    assert strict["changed"] is False
    assert [each["name"] for each in strict["undone"]] == ["fuse-affine"]


def test_undone_pass_is_named_with_its_reason(
    model: pathlib.Path, tmp_path: pathlib.Path, wrong_pass: str
) -> None:
    result = run(
        "optimize", model, tmp_path / "out.onnx", "--passes", f"{wrong_pass},{PIPELINE[1]}"
    )
    assert result.exit_code == 0, result.output
    assert "Undone" in result.stdout
    assert f"{wrong_pass}: output 'y'" in result.stdout
    assert op_types(tmp_path / "out.onnx") == ["MatMul", "Relu", "Neg"]


def test_explain_tells_of_every_node_where_a_pass_quantizes(tmp_path: pathlib.Path) -> None:
    generator = np.random.default_rng(0)
    model = parse(
        "g (float[n, 16] x) => (float[n, 4] y) { [one] a = Gemm(x, w1) [two] y = Tanh(a) }",
        {"w1": generator.standard_normal((16, 4)).astype(np.float32)},
    )
    source, samples, page = tmp_path / "m.onnx", tmp_path / "data.npz", tmp_path / "page.html"
    onnx.save(model, source)
    np.savez(samples, x=generator.standard_normal((8, 16)).astype(np.float32))
    arguments = (source, "--dry-run", "--data", samples, "--seconds", "0.05", "--explain")
    result = run("optimize", *arguments, "--report", page)
    assert result.exit_code == 0, result.output
    assert "Every node of the original" in result.stdout
    assert "Tanh" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "Node by node" in page.read_text()
