"""The whole road: what is undone, what is written, what is said, and what is never touched."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxopt
import onnxopt.instruments.guard
import onnxopt.pass_manager
from onnxopt.errors import FeedError, ModelError, OnnxoptError, OptionError
from onnxopt.model import Interface, from_proto, load, to_proto
from onnxopt.pass_contract import Outcome, Pass
from onnxopt.pass_manager import available_passes
from onnxopt.report.run import RunReport
from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule
from onnxopt.settings import Settings
from tests.differential import assert_same, op_types, parse, run

_TEXT = """
g (float[N, 4] x) => (float[N, 4] y) {
    a = Identity(x)
    b = Relu(a)
    c = Abs(b)
    y = Neg(c)
}
"""
_FEED = {"x": np.array([[-1, 2, -3, 4]], np.float32)}


class _Swap(RewriteRule[ir.Node]):
    """Another operator in the place of one; wrong unless the two are the same."""

    name = "swap"
    anchors: ClassVar[tuple[str, ...]] = ("Neg",)
    after = "Abs"

    def match(self, node: ir.Node, context: Context) -> ir.Node | None:
        return node

    def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
        rewriter.replace(match.outputs[0], rewriter.op(self.after, match.inputs))


class Wrong(RewritePass):
    """-x = |x|, which it is not."""

    name = "wrong"

    def rules(self) -> list[RewriteRule[Any]]:
        return [_Swap()]


class _Halve(_Swap):
    name = "halve"
    anchors: ClassVar[tuple[str, ...]] = ("Abs",)

    def match(self, node: ir.Node, context: Context) -> ir.Node | None:
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        return node if producer is not None and producer.op_type == "Relu" else None

    def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
        assert match.inputs[0] is not None
        rewriter.replace(match.outputs[0], match.inputs[0])


class Good(RewritePass):
    """|relu(x)| = relu(x)."""

    name = "good"

    def rules(self) -> list[RewriteRule[Any]]:
        return [_Halve()]


class Raises(Pass):
    """Fails on every model."""

    name = "raises"

    def run(self, model: ir.Model) -> Outcome:
        raise IndexError("list index out of range")


class Large(Pass):
    """Adds weights that are never read by much."""

    name = "large"

    def run(self, model: ir.Model) -> Outcome:
        if "extra" in model.graph.initializers:
            return Outcome(model, False)
        value = ir.Value(name="extra", const_value=ir.tensor(np.zeros(4000, np.float32)))
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([4000])
        model.graph.register_initializer(value)
        return Outcome(model, True)


class BreaksInterface(Pass):
    """Renames an output."""

    name = "breaks-interface"

    def run(self, model: ir.Model) -> Outcome:
        model.graph.outputs[0].name = "z"
        return Outcome(model, True)


class Unrunnable(RewritePass):
    """Puts an operator that no runtime knows."""

    name = "unrunnable"

    def rules(self) -> list[RewriteRule[Any]]:
        rule = _Swap()
        rule.after = "NoSuchOperator"
        return [rule]


_OURS: dict[str, type[Pass]] = {
    kind.name: kind for kind in (Wrong, Good, Raises, Large, BreaksInterface, Unrunnable)
}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    table: Mapping[str, Any] = {
        **{name: available_passes()[name] for name in available_passes()},
        **_OURS,
    }
    monkeypatch.setattr(onnxopt.pass_manager, "available_passes", lambda: table)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "in.onnx"
    path.write_bytes(parse(_TEXT).SerializeToString())
    return path


def _optimize(
    source: pathlib.Path, passes: str, **options: Any
) -> tuple[RunReport, onnx.ModelProto]:
    target = source.with_name("out.onnx")
    before = source.read_bytes()
    report = onnxopt.optimize(source, target, passes=passes, **{"guard_speed": False, **options})
    assert source.read_bytes() == before, "the input was written to"
    model = onnx.load(target)
    onnx.checker.check_model(model)
    assert_same(run(onnx.load(source), _FEED), run(model, _FEED))
    assert Interface.of(load(target)) == Interface.of(load(source))
    assert target.stat().st_size <= source.stat().st_size
    left = {path.name for path in source.parent.iterdir()} - {"in.onnx", "out.onnx"}
    assert left <= {"out.onnx.failure"}
    return report, model


def _ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


class TestGood:
    def test_a_result(self, source: pathlib.Path) -> None:
        report, model = _optimize(source, "eliminate-identities,good")
        assert _ops(model) == ["Relu", "Neg"]
        assert (report.before.nodes, report.after.nodes) == (4, 2)
        assert report.before.ops == {"Identity": 1, "Relu": 1, "Abs": 1, "Neg": 1}
        assert report.changed
        assert report.verified
        assert report.undone == []
        assert report.feeds == 4
        assert all(difference.agrees for difference in report.differences)
        assert report.after.bytes == source.with_name("out.onnx").stat().st_size
        assert report.before.load_seconds is not None
        assert report.speed is None

    def test_nothing_to_improve_is_the_input_byte_by_byte(self, source: pathlib.Path) -> None:
        report, _ = _optimize(source, "fuse-gelu")
        assert not report.changed
        assert source.with_name("out.onnx").read_bytes() == source.read_bytes()
        assert any("the output is the input" in note for note in report.notes)
        assert report.after == report.before

    def test_a_pass_that_adds_too_many_bytes_runs_thriftily(self, source: pathlib.Path) -> None:
        """Widening h adds bytes, negating c takes some away; only the second is done."""
        text = """g (float[N, 4] x) => (float[N, 4] y) <float[4] c = {1, 2, 3, 4}> {
            d = Neg(c)
            a = Add(x, d)
            w = Cast<to = 1>(h)
            m = MatMul(x, w)
            s = ReduceSum(m, last)
            y = Add(a, s)
        }"""
        weights = {"h": np.ones((4, 64), np.float16), "last": np.array([1])}
        onnx.save(parse(text, weights), source)
        passes = "fold-constants{max-bytes=4096},eliminate-dead-code"
        report, model = _optimize(source, passes)
        assert report.undone == []
        assert report.pipeline == "fold-constants{max-bytes=0},eliminate-dead-code"
        assert any("fold-constants ran as" in note for note in report.notes)
        assert "Neg" not in _ops(model)

    def test_skip(self, source: pathlib.Path) -> None:
        report, model = _optimize(source, "eliminate-identities,good", skip=("good",))
        assert "Abs" in _ops(model)
        assert report.pipeline == "eliminate-identities"

    def test_the_report_is_json(self, source: pathlib.Path) -> None:
        report, _ = _optimize(source, "eliminate-identities,wrong")
        document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert document["schema_version"] == 1
        assert document["undone"][0]["name"] == "wrong"
        assert document["passes"][0]["name"] == "eliminate-identities"
        assert document["environment"]["versions"]["onnxruntime"]

    def test_dry_run(self, source: pathlib.Path) -> None:
        target = source.with_name("out.onnx")
        report = onnxopt.optimize(source, target, passes="good", dry_run=True, guard_speed=False)
        assert report.changed
        assert not target.exists()

    def test_without_a_target(self, source: pathlib.Path) -> None:
        report = onnxopt.optimize(source, passes="good", guard_speed=False)
        assert report.after.nodes == 3
        assert [path.name for path in source.parent.iterdir()] == ["in.onnx"]

    def test_steps_are_told(self, source: pathlib.Path) -> None:
        steps: list[str] = []
        report = onnxopt.optimize(source, passes="good", seconds=0.05, on_step=steps.append)
        runs = [f"verifying, sample {each + 1} of {report.feeds}" for each in range(report.feeds)]
        assert steps == [
            "loading",
            "optimizing: good",
            "verifying",
            *runs,
            "timing beside the original",
        ]

    def test_speed_is_measured(self, source: pathlib.Path) -> None:
        report, _ = _optimize(source, "good", guard_speed=True, seconds=0.05)
        assert report.speed is not None
        assert report.before.latency is not None
        assert report.after.latency is not None
        assert report.speed.low <= report.speed.median <= report.speed.high


class TestUndone:
    @pytest.mark.parametrize(
        "passes",
        [
            "wrong,eliminate-identities,good",
            "eliminate-identities,wrong,good",
            "eliminate-identities,good,wrong",
        ],
    )
    @pytest.mark.parametrize("verify", ["end", "each"])
    def test_a_wrong_pass_alone(self, passes: str, verify: str, source: pathlib.Path) -> None:
        report, model = _optimize(source, passes, verify=verify)
        assert [undone.name for undone in report.undone] == ["wrong"]
        assert "output 'y'" in report.undone[0].reason
        assert _ops(model) == ["Relu", "Neg"]
        assert report.verified

    def test_several(self, source: pathlib.Path) -> None:
        report, model = _optimize(
            source, "breaks-interface,wrong,good,raises,unrunnable,large,eliminate-identities"
        )
        assert {undone.name for undone in report.undone} == {
            "wrong",
            "raises",
            "large",
            "breaks-interface",
            "unrunnable",
        }
        assert _ops(model) == ["Relu", "Neg"]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("large", "the file grows from"),
            ("breaks-interface", "outputs changed"),
            ("unrunnable", "ONNX Runtime refuses the model"),
            ("raises", "IndexError: list index out of range"),
        ],
    )
    @pytest.mark.parametrize("verify", ["end", "each"])
    def test_reasons(self, name: str, reason: str, verify: str, source: pathlib.Path) -> None:
        report, model = _optimize(source, f"{name},good", verify=verify)
        assert [undone.name for undone in report.undone] == [name]
        assert reason in report.undone[0].reason
        assert _ops(model) == ["Identity", "Relu", "Neg"]

    def test_the_wrong_pass_is_found_in_a_model_that_is_stored_compactly(
        self, tmp_path: pathlib.Path
    ) -> None:
        """Without its storage pass the model is larger, whatever is left out."""
        text = """g (float[N, 64] x) => (float[N, 64] y) {
            a = MatMul(x, w) b = Relu(a) c = Abs(b) y = Neg(c) }"""
        w = np.zeros((64, 64), np.float32)
        w[::3, ::5] = np.arange(22 * 13).reshape(22, 13)
        dense, compact = tmp_path / "dense.onnx", tmp_path / "in.onnx"
        onnx.save(parse(text, {"w": w}), dense)
        onnxopt.optimize(dense, compact, passes="compact", skip=("eliminate-no-ops",))
        dense.unlink()
        target = tmp_path / "out.onnx"
        report = onnxopt.optimize(
            compact, target, passes="exact,good,wrong,eliminate-identities", guard_speed=False
        )
        assert [each.name for each in report.undone] == ["wrong"]
        assert target.stat().st_size <= compact.stat().st_size
        assert report.passes[-1].name == "compact-weights"

    def test_all_passes_wrong_gives_the_input(self, source: pathlib.Path) -> None:
        report, _ = _optimize(source, "wrong,large,raises")
        assert len(report.undone) == 3
        assert not report.changed
        assert source.with_name("out.onnx").read_bytes() == source.read_bytes()

    def test_slower(self, source: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever leaves out the Abs is slow, says a clock that is made up."""

        def race(worker: Any, trials: Any, feed: Any, **_: Any) -> list[list[float]]:
            model = load(getattr(trials[1], "model", trials[1]))
            return [[1.0] * 12, [1.0 if "Abs" in op_types(model) else 1.5] * 12]

        monkeypatch.setattr(onnxopt.instruments.guard, "race", race)
        report, model = _optimize(source, "eliminate-identities,good", guard_speed=True)
        assert [undone.name for undone in report.undone] == ["good"]
        assert "0.67x the original's speed" in report.undone[0].reason
        assert _ops(model) == ["Relu", "Abs", "Neg"]

    @pytest.mark.parametrize(("quick", "width"), [((24, 32), 24), ((32,), 32), ((), 32)])
    def test_a_removal_that_is_slower_keeps_whole_blocks(
        self,
        tmp_path: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch,
        quick: tuple[int, ...],
        width: int,
    ) -> None:
        """Of 32 channels 20 are needed; a clock that is made up says which widths are quick."""
        rng = np.random.default_rng(0)
        text = """g (float[n, 3, h, w] x) => (float[n, 5, p, q] y) {
            a = Conv(x, first, bias) b = Relu(a) y = Conv(b, second)
        }"""
        first = rng.standard_normal((32, 3, 3, 3)).astype(np.float32)
        first[::8] = first[1::8] = first[2::8] = 0
        second = rng.standard_normal((5, 32, 1, 1)).astype(np.float32)
        bias = np.ones(32, np.float32)
        source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
        onnx.save(parse(text, {"first": first, "bias": bias, "second": second}), source)

        def width_of(trial: Any) -> int:
            tensor = load(getattr(trial, "model", trial)).graph.initializers["first"].const_value
            assert tensor is not None
            return int(tensor.shape.numpy()[0])

        def race(worker: Any, trials: Any, feed: Any, **_: Any) -> list[list[float]]:
            return [[1.0] * 12, [1.0 if width_of(trials[1]) in quick else 1.5] * 12]

        monkeypatch.setattr(onnxopt.instruments.guard, "race", race)
        report = onnxopt.optimize(source, target, passes="infer-shapes,fold-pruned-channels")
        assert width_of(target) == width
        assert any("fold-pruned-channels{round-to=8}" in note for note in report.notes)
        if 24 not in quick:
            assert any("fold-pruned-channels{round-to=16}" in note for note in report.notes)

    def test_slower_only_once_is_no_reason(
        self, source: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow = iter([True])

        def race(worker: Any, trials: Any, feed: Any, **_: Any) -> list[list[float]]:
            return [[1.0] * 12, [1.5 if next(slow, False) else 1.0] * 12]

        monkeypatch.setattr(onnxopt.instruments.guard, "race", race)
        report, model = _optimize(source, "good", guard_speed=True)
        assert report.undone == []
        assert _ops(model) == ["Identity", "Relu", "Neg"]


class TestReproducer:
    def test_it_fails_again(self, source: pathlib.Path) -> None:
        report, _ = _optimize(source, "eliminate-identities,raises,good")
        [undone] = report.undone
        folder = source.with_name("out.onnx.failure")
        assert {path.name for path in folder.iterdir()} == {
            "model.onnx",
            "pipeline.txt",
            "failure.json",
        }
        # The model is the one just before the failure.
        assert _ops(onnx.load(folder / "model.onnx")) == ["Relu", "Abs", "Neg"]
        assert (folder / "pipeline.txt").read_text() == "raises\n"
        facts = json.loads((folder / "failure.json").read_text())
        assert facts["pass"] == "raises"
        assert facts["whole_pipeline"] == "eliminate-identities,raises,good"
        assert facts["command"] == undone.reproducer
        assert facts["versions"]["onnxopt"]
        again = onnxopt.optimize(
            folder / "model.onnx", passes=(folder / "pipeline.txt").read_text(), guard_speed=False
        )
        assert again.undone[0].reason == undone.reason

    def test_another_folder(self, source: pathlib.Path, tmp_path: pathlib.Path) -> None:
        folder = tmp_path / "elsewhere" / "deep"
        onnxopt.optimize(source, passes="raises", guard_speed=False, reproducer=folder)
        assert (folder / "model.onnx").exists()

    def test_none_without_a_place(self, source: pathlib.Path) -> None:
        report = onnxopt.optimize(source, passes="raises", guard_speed=False)
        assert report.undone[0].reproducer == ""


class TestInMemory:
    def test_ir_model_is_changed_in_place(self) -> None:
        model = from_proto(parse(_TEXT))
        report = onnxopt.optimize(model, passes="good,eliminate-identities", guard_speed=False)
        assert report.changed
        assert op_types(model) == ["Relu", "Neg"]
        assert_same(run(parse(_TEXT), _FEED), run(to_proto(model), _FEED))

    def test_undone_passes_do_not_touch_it(self) -> None:
        model = from_proto(parse(_TEXT))
        report = onnxopt.optimize(model, passes="wrong,good", guard_speed=False)
        assert [undone.name for undone in report.undone] == ["wrong"]
        assert op_types(model) == ["Identity", "Relu", "Neg"]

    def test_with_a_target_it_stays(self, tmp_path: pathlib.Path) -> None:
        model = from_proto(parse(_TEXT))
        onnxopt.optimize(model, tmp_path / "out.onnx", passes="good", guard_speed=False)
        assert op_types(model) == ["Identity", "Relu", "Abs", "Neg"]
        assert _ops(onnx.load(tmp_path / "out.onnx")) == ["Identity", "Relu", "Neg"]

    def test_an_input_that_is_no_good_leaves_it(self) -> None:
        model = from_proto(parse(_TEXT))
        with pytest.raises(OnnxoptError):
            onnxopt.optimize(model, passes="no-such-pass")
        assert op_types(model) == ["Identity", "Relu", "Abs", "Neg"]

    def test_proto(self, tmp_path: pathlib.Path) -> None:
        proto = parse(_TEXT)
        before = proto.SerializeToString()
        report = onnxopt.optimize(proto, tmp_path / "out.onnx", passes="good", guard_speed=False)
        assert report.changed
        assert proto.SerializeToString() == before
        assert "Abs" not in _ops(onnx.load(tmp_path / "out.onnx"))


class TestErrors:
    def test_output_is_the_input(self, source: pathlib.Path) -> None:
        before = source.read_bytes()
        with pytest.raises(ModelError, match="is the input itself"):
            onnxopt.optimize(source, source)
        link = source.with_name("link.onnx")
        link.symlink_to(source)
        with pytest.raises(ModelError, match="is the input itself"):
            onnxopt.optimize(source, link)
        assert source.read_bytes() == before

    def test_in_place(self, source: pathlib.Path) -> None:
        report = onnxopt.optimize(source, source, passes="good", in_place=True, guard_speed=False)
        assert report.changed
        assert "Abs" not in _ops(onnx.load(source))

    def test_an_old_output_survives_a_failure(self, source: pathlib.Path) -> None:
        target = source.with_name("out.onnx")
        target.write_bytes(b"old")
        source.write_bytes(b"no model")
        with pytest.raises(ModelError):
            onnxopt.optimize(source, target)
        assert target.read_bytes() == b"old"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"passes": "goood"}, "did you mean 'good'"),
            ({"skip": ("good",)}, "cannot skip 'good'"),
            ({"speed_guard": True}, "unknown setting"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str, source: pathlib.Path) -> None:
        with pytest.raises(OptionError, match=message):
            onnxopt.optimize(source, **options)

    def test_a_model_that_the_runtime_refuses(self, source: pathlib.Path) -> None:
        source.write_bytes(
            parse("g (float[2] x) => (float[2] y) { y = NoSuch(x) }").SerializeToString()
        )
        with pytest.raises(ModelError, match=r"ONNX Runtime refuses .*in\.onnx"):
            onnxopt.optimize(source, source.with_name("out.onnx"))
        assert not source.with_name("out.onnx").exists()

    def test_inputs_that_cannot_be_made_up(self, source: pathlib.Path) -> None:
        text = "g (float[N, 7] x) => (float[M] y) { y = Reshape(x, s) }"
        source.write_bytes(parse(text, {"s": np.array([700])}).SerializeToString())
        with pytest.raises(FeedError, match="--shape x:1,7"):
            onnxopt.optimize(source)
        report = onnxopt.optimize(source, shapes={"x": (100, 7)}, guard_speed=False)
        assert report.feeds >= 1

    def test_data(self, source: pathlib.Path) -> None:
        np.savez(source.with_name("data.npz"), x=np.zeros((20, 4), np.float32))
        report = onnxopt.optimize(
            source, data=source.with_name("data.npz"), passes="good", guard_speed=False
        )
        assert report.feeds == 8

    def test_unknown_operators_are_optimized_around(self, source: pathlib.Path) -> None:
        text = """
            <ir_version: 8, opset_import: ["" : 18, "corp" : 1]>
            g (float[2] x) => (float[2] y) { a = Identity(x) b = corp.Twist(a) y = Relu(b) }
        """
        source.write_bytes(parse(text).SerializeToString())
        report = onnxopt.optimize(source, source.with_name("out.onnx"), passes="exact")
        assert report.changed
        assert not report.verified
        assert any("corp.Twist" in note for note in report.notes)
        assert _ops(onnx.load(source.with_name("out.onnx"))) == ["Twist", "Relu"]

    def test_verification_off(self, source: pathlib.Path) -> None:
        report = onnxopt.optimize(source, passes="good", verify="off")
        assert not report.verified
        assert any("verification is off" in note for note in report.notes)


def test_settings_and_options_together(source: pathlib.Path) -> None:
    settings = Settings(passes="good", guard_speed=False)
    report = onnxopt.optimize(source, None, settings, skip=("good",))
    assert report.pipeline == ""
    assert dataclasses.replace(settings).passes == "good"


def test_nothing_is_printed(source: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnxopt.optimize(source, source.with_name("out.onnx"), passes="wrong,raises,good", seconds=0.01)
    with pytest.raises(OnnxoptError):
        onnxopt.optimize(source.with_name("none.onnx"))
    assert capfd.readouterr() == ("", "")


def test_importing_the_package_imports_little() -> None:
    code = (
        "import sys, onnxopt;"
        "print(sorted({'onnx', 'onnxruntime', 'numpy', 'onnx_ir'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_random_outputs_are_named_and_not_held_against_a_pass(tmp_path: pathlib.Path) -> None:
    model = parse(
        """g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
            a = Identity(x) b = RandomNormalLike(a) c = Add(a, b) d = Identity(c) y = Relu(d)
            z = Neg(a)
        }"""
    )
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    report = onnxopt.optimize(source, target)
    assert report.undone == []
    assert sorted(op_types(load(target))) == ["Add", "Neg", "RandomNormalLike", "Relu"]
    assert any("'y' differs in each run" in note for note in report.notes)
    assert not any("'z'" in note for note in report.notes)


def test_details_are_measured_where_they_are_asked_for(tmp_path: pathlib.Path) -> None:
    weights = {"w": np.ones((4, 4), np.float32)}
    text = (
        "g (float[n, 4] x) => (float[n, 4] y) { a = Identity(x) b = MatMul(a, w) y = Softmax(b) }"
    )
    onnx.save(parse(text, weights), tmp_path / "m.onnx")
    plain = onnxopt.optimize(tmp_path / "m.onnx", tmp_path / "o.onnx", seconds=0.0)
    assert plain.before.peak_memory_bytes is None
    assert "layers" not in plain.to_dict()
    report = onnxopt.optimize(tmp_path / "m.onnx", tmp_path / "o.onnx", seconds=0.0, details=True)
    idle = report.idle_memory_bytes
    assert idle is not None
    for facts in (report.before, report.after):
        assert facts.peak_memory_bytes is not None
        assert facts.peak_memory_bytes > idle
        assert facts.kernel_seconds.keys() == {"MatMul", "Softmax"}
    assert report.inputs.keys() == {"x"}
    product = next(each for each in report.to_dict()["layers"] if each["operator"] == "MatMul")
    assert product["weight_bytes"] == product["weight_bytes_before"] == 64
    assert product["seconds"] > 0
    assert product["seconds_before"] > 0


def test_details_of_a_model_that_cannot_be_run_are_left_out(tmp_path: pathlib.Path) -> None:
    onnx.save(parse(_TEXT), tmp_path / "m.onnx")
    report = onnxopt.optimize(tmp_path / "m.onnx", dry_run=True, verify="off", details=True)
    assert report.after.peak_memory_bytes is None
    assert report.findings.layers == []
