"""The judgements of instruments: counts, fusions, size, speed, outputs, noise, reproducers."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxopt.instruments.guard
import onnxopt.instruments.verify
from onnxopt.instruments.counts import Counts, Timing, count_nodes, count_ops
from onnxopt.instruments.fusions import census, lost_fusions
from onnxopt.instruments.guard import SpeedGuard, size_objection
from onnxopt.instruments.reproducer import write_reproducer
from onnxopt.instruments.verify import KeepInterface, PassRejectedError, Referee, VerifyEach
from onnxopt.model import Interface, from_proto, load, save
from onnxopt.pass_contract import Outcome, Pass, PassReport
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.compare import Tolerance
from onnxopt.runtime.messages import Kernel, SessionInfo
from onnxopt.runtime.trial import Trial, try_model
from onnxopt.runtime.worker import Worker
from tests.differential import op_types, parse

_TEXT = "g (float[4] x) => (float[4] y) { a = Identity(x) y = Relu(a) }"
_FEED = {"x": np.array([-1, 2, -3, 4], np.float32)}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


def _write(folder: pathlib.Path, name: str, text: str, **weights: np.ndarray) -> pathlib.Path:
    save(from_proto(parse(text, weights)), folder / name)
    return folder / name


def _referee(worker: Worker, path: pathlib.Path, **options: Any) -> Referee:
    def feeds(run: Any) -> list[dict[str, Any]]:
        return [_FEED]

    return Referee(worker, path, feeds, **options)


class TestCounts:
    def test_bodies_and_functions_count(self) -> None:
        model = from_proto(
            parse(
                """
                <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
                g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
                    a = If (c) <
                        then_branch = a () => (float[2] t) <float[3] v = {1, 2, 3}> { t = Abs(x) },
                        else_branch = b () => (float[2] e) { e = Exp(x) }
                    >
                    y = local.f(a)
                }
                <domain: "local", opset_import: ["" : 18]>
                f (v) => (w) { w = Abs(v) }
                """
            )
        )
        assert count_ops(model) == {"If": 1, "Abs": 2, "Exp": 1, "local.f": 1}
        assert count_nodes(model) == 5

    def test_bytes_of_weights_in_bodies_too(self) -> None:
        text = """
            g (float[2] x, bool c) => (float[2] y) <float[2] u = {1, 1}, float[2] v = {1, 1}> {
                a = Add(x, u)
                b = Add(a, v)
                y = If(c) <
                    then_branch = t () => (float[2] p) <float[2] w = {1, 2}> { p = Add(b, w) },
                    else_branch = e () => (float[2] q) { q = Exp(b) }
                >
            }
        """
        model = from_proto(parse('<ir_version: 8, opset_import: ["" : 18]>' + text))
        passes = parse_pipeline("deduplicate-initializers")
        [report] = PassManager(passes, [Counts(model)], rounds=1).run(model)
        assert report.facts["weight_bytes"] == (24, 16)

    def test_facts_of_passes(self) -> None:
        model = from_proto(parse(_TEXT))
        reports = PassManager(
            parse_pipeline("eliminate-identities"), [Timing(), Counts(model)]
        ).run(model)
        assert reports[0].facts["nodes"] == (2, 1)
        assert reports[0].facts["weight_bytes"] == (0, 0)
        assert reports[0].facts["seconds"] >= 0


class TestFusions:
    def test_census(self) -> None:
        kernels = [Kernel("a", "Conv", 1.0), Kernel("b", "Conv", 1.0), Kernel("c", "Relu", 1.0)]
        assert census(kernels) == {"Conv": 2, "Relu": 1}

    @pytest.mark.parametrize(
        ("before", "after", "lost"),
        [
            ({"Attention": 2}, {"MatMul": 8, "Softmax": 2}, "attention 2 to 0"),
            ({"FusedConv": 3}, {"Conv": 3, "Relu": 3}, "fused convolution 3 to 0"),
            ({"BiasGelu": 2}, {"Gelu": 2, "Add": 2}, "bias GELU 2 to 0"),
            ({"QLinearConv": 4}, {"Conv": 4, "DequantizeLinear": 8}, "integer convolution 4 to 0"),
            # One fused kernel for another of the family, and gains, are no losses.
            ({"BiasGelu": 2}, {"FastGelu": 2}, ""),
            ({"LayerNormalization": 2}, {"SkipLayerNormalization": 2}, ""),
            ({"Relu": 2, "Conv": 2}, {"FusedConv": 2}, ""),
            # What is simply gone was not needed.
            ({"FusedConv": 3, "Relu": 1}, {"FusedConv": 2, "Relu": 1}, ""),
            ({"Softmax": 1, "Mul": 5}, {"Mul": 2}, ""),
            ({"FusedConv": 2, "Add": 4}, {"FusedConv": 1, "Mul": 1}, ""),
            ({}, {}, ""),
        ],
    )
    def test_lost(self, before: dict[str, int], after: dict[str, int], lost: str) -> None:
        found = lost_fusions(Counter(before), Counter(after))
        assert bool(found) is bool(lost)
        assert not lost or lost in found[0]

    def test_what_took_over_is_named(self) -> None:
        [phrase] = lost_fusions(Counter(FusedConv=1), Counter(Conv=1, Relu=1))
        assert phrase == "fused convolution 1 to 0 (Conv +1, Relu +1)"


class TestGuard:
    def test_size(self) -> None:
        assert size_objection(100, 100) is None
        assert size_objection(100, 99) is None
        objection = size_objection(1000, 1001)
        assert objection is not None
        assert objection.kind == "size"
        assert "1,000 to 1,001" in objection.message

    def _guard(
        self, monkeypatch: pytest.MonkeyPatch, factors: list[float]
    ) -> tuple[SpeedGuard, list[Any]]:
        """A guard whose every race says what ``factors`` say, with the races that were run."""
        races: list[Any] = []

        def race(worker: Any, trials: Any, *_: Any, **__: Any) -> list[list[float]]:
            races.append(trials)
            return [[1.0] * 12, [factors[min(len(races), len(factors)) - 1]] * 12]

        monkeypatch.setattr(onnxopt.instruments.guard, "race", race)
        guard = SpeedGuard(Worker(), _trial("one.onnx"), {}, threads=1, seconds=0.1, together=True)
        return guard, races

    def test_slower_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        guard, races = self._guard(monkeypatch, [2.0])
        objection, measured = guard.judge(_trial("two.onnx"))
        assert objection is not None
        assert objection.kind == "speed"
        assert "0.50x" in objection.message
        assert measured.is_slower
        assert len(races) >= 2
        # A second opinion is of models that are loaded anew.
        assert races[1] == ["one.onnx", "two.onnx"]

    @pytest.mark.parametrize("factors", [[2.0, 1.0], [1.0], [0.5], [1.01]])
    def test_not_slower_or_only_once(
        self, factors: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        guard, races = self._guard(monkeypatch, factors)
        objection, measured = guard.judge(_trial("two.onnx"))
        assert objection is None
        assert len(races) == len(factors)
        assert not measured.is_slower
        assert len(guard.samples) == 2


def _trial(path: str) -> Trial:
    return Trial(path, SessionInfo(0, 0.0, (), (), ()), [], [], [], None)


class TestReferee:
    def test_the_same_model(self, worker: Worker, tmp_path: pathlib.Path) -> None:
        path = _write(tmp_path, "one.onnx", _TEXT)
        referee = _referee(worker, path)
        objection, trial, differences = referee.judge(path)
        assert objection is None
        assert trial is not None
        assert [each.agrees for each in differences] == [True]

    @pytest.mark.parametrize(
        ("text", "kind", "message"),
        [
            ("g (float[4] x) => (float[4] y) { y = Abs(x) }", "outputs", "output 'y' off by 3"),
            ("g (float[4] x) => (float[4] y) { y = NoSuch(x) }", "refused", "NoSuch"),
            ("g (float[4] x) => (float[4] z) { z = Relu(x) }", "interface", "outputs changed"),
            (
                "g (float[4] x) => (double[4] y) { r = Relu(x) y = Cast<to = 11>(r) }",
                "interface",
                "",
            ),
        ],
    )
    def test_objections(
        self, text: str, kind: str, message: str, worker: Worker, tmp_path: pathlib.Path
    ) -> None:
        referee = _referee(worker, _write(tmp_path, "one.onnx", _TEXT))
        objection, _, _ = referee.judge(_write(tmp_path, "two.onnx", text))
        assert objection is not None
        assert objection.kind == kind
        assert message in objection.message

    def test_lost_fusions(self, worker: Worker, tmp_path: pathlib.Path) -> None:
        weights = {"w": np.ones((4, 4, 3, 3), np.float32)}
        fused = "g (float[1, 4, 8, 8] x) => (float[1, 4, 6, 6] y) { a = Conv(x, w) y = Relu(a) }"
        apart = (
            "g (float[1, 4, 8, 8] x) => (float[1, 4, 6, 6] y)"
            "{ a = Conv(x, w) b = Neg(a) c = Neg(b) y = Relu(c) }"
        )
        feed = {"x": np.ones((1, 4, 8, 8), np.float32)}
        one = _write(tmp_path, "one.onnx", fused, **weights)
        two = _write(tmp_path, "two.onnx", apart, **weights)
        referee = Referee(worker, one, lambda run: [feed])
        before, after = (census(_kernels(worker, path, feed)) for path in (one, two))
        objection, _, _ = referee.judge(two)
        # Which kernels the runtime fuses depends on the machine; the census says whether it did.
        assert (objection is not None) is bool(lost_fusions(before, after))
        assert referee.judge(two, fusions=False)[0] is None

    @pytest.mark.parametrize(("noise", "agrees"), [(0.0, False), (0.2, False), (0.3, True)])
    def test_own_noise(
        self,
        noise: float,
        agrees: bool,
        worker: Worker,
        tmp_path: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """An output may be four times as far off as the original is from its unoptimized self."""
        path = _write(tmp_path, "one.onnx", _TEXT)
        other = _write(
            tmp_path,
            "two.onnx",
            "g (float[4] x) => (float[4] y) "
            "{ one = Constant<value = float {1}>() a = Relu(x) y = Add(a, one) }",
        )
        referee = _referee(worker, path)
        levels: list[str] = []

        def noisy(*arguments: Any, **options: Any) -> Trial:
            trial = try_model(*arguments, **options)
            if options.get("level") == "disabled":
                levels.append("disabled")
                trial.outputs[0][0] = trial.outputs[0][0] + np.float32(noise)
            return trial

        monkeypatch.setattr(onnxopt.instruments.verify, "try_model", noisy)
        for _ in range(2):
            objection, _, [difference] = referee.judge(other, fusions=False)
            assert (objection is None) is agrees
            assert difference.own_noise is agrees
        assert levels == ["disabled"], "the original's noise is measured once, and when needed"

    def test_tolerance(self, worker: Worker, tmp_path: pathlib.Path) -> None:
        path = _write(tmp_path, "one.onnx", _TEXT)
        off = _write(
            tmp_path,
            "two.onnx",
            "g (float[4] x) => (float[4] y) "
            "{ f = Constant<value = float {1.05}>() a = Relu(x) y = Mul(a, f) }",
        )
        loose = _referee(worker, path, tolerance=Tolerance(rtol=0.1))
        assert loose.judge(off, fusions=False)[0] is None
        strict, _, _ = _referee(worker, path).judge(off, fusions=False)
        assert strict is not None

    def test_runs_of_the_search_for_feeds_are_not_repeated(
        self, worker: Worker, tmp_path: pathlib.Path
    ) -> None:
        path = _write(tmp_path, "one.onnx", _TEXT)

        def feeds(run: Any) -> list[dict[str, Any]]:
            run(_FEED)
            return [_FEED]

        referee = Referee(worker, path, feeds)
        np.testing.assert_array_equal(referee.reference.outputs[0][0], [0, 2, 0, 4])


def _kernels(worker: Worker, path: pathlib.Path, feed: dict[str, Any]) -> list[Kernel]:
    session = worker.open(path, profile=True).session
    worker.run(session, feed)
    return worker.kernels(session)


class _Rename(Pass):
    """Puts one operator for another."""

    name = "rename"
    after = "Abs"

    def run(self, model: ir.Model) -> Outcome:
        [node] = [node for node in model.graph if node.op_type == "Relu"]
        node.op_type = self.after
        return Outcome(model, True)


class TestInstruments:
    def test_verify_each(self, worker: Worker, tmp_path: pathlib.Path) -> None:
        referee = _referee(worker, _write(tmp_path, "one.onnx", _TEXT))
        model = from_proto(parse(_TEXT))
        with pytest.raises(PassRejectedError) as caught:
            PassManager([_Rename()], [VerifyEach(referee, tmp_path)]).run(model)
        assert caught.value.pass_name == "rename"
        assert caught.value.objection.kind == "outputs"
        assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]

    def test_verify_each_without_a_referee(self, tmp_path: pathlib.Path) -> None:
        model = from_proto(parse(_TEXT))
        PassManager([_Rename()], [VerifyEach(None, tmp_path)]).run(model)
        assert "Abs" in op_types(model)

    @pytest.mark.parametrize("what", ["output", "input", "opset", "metadata"])
    def test_keep_interface(self, what: str) -> None:
        class Change(Pass):
            name = "change"

            def run(self, model: ir.Model) -> Outcome:
                if what == "output":
                    model.graph.outputs[0].name = "z"
                elif what == "input":
                    model.graph.inputs.pop()
                elif what == "opset":
                    model.opset_imports["corp"] = 1
                else:
                    model.metadata_props.clear()
                return Outcome(model, True)

        proto = parse("g (float[4] x, float[4] unused) => (float[4] y) { y = Relu(x) }")
        entry = proto.metadata_props.add()
        entry.key, entry.value = "a", "b"
        model = from_proto(proto)
        instrument = KeepInterface(Interface.of(model))
        with pytest.raises(PassRejectedError) as caught:
            PassManager([Change()], [instrument]).run(model)
        assert caught.value.objection.kind == "interface"

    def test_refined_types_are_no_change(self) -> None:
        model = from_proto(parse("g (float[N] x) => (float[M] y) { y = Relu(x) }"))
        instrument = KeepInterface(Interface.of(model))
        model.graph.outputs[0].shape = ir.Shape(["N"])
        report = PassReport("rename", 0, Outcome(model, True))
        instrument.after_pass(_Rename(), model, report)


def test_reproducer_holds_the_model_before_the_failure(tmp_path: pathlib.Path) -> None:
    path = _write(
        tmp_path, "in.onnx", "g (float[4] x) => (float[4] y) { a = Identity(x) y = Relu(a) }"
    )
    passes = parse_pipeline("eliminate-identities,eliminate-no-ops")
    command = write_reproducer(
        tmp_path / "failure",
        lambda: load(path),
        passes,
        lambda instruments: PassManager(passes, instruments),
        1,
        "eliminate-no-ops",
        "it broke",
        tmp_path / "samples.npz",
    )
    assert op_types(load(tmp_path / "failure" / "model.onnx")) == ["Relu"]
    assert "eliminate-no-ops" in command
    assert command.endswith(f"--data {tmp_path / 'samples.npz'}")
    assert str(tmp_path / "failure" / "model.onnx") in command
