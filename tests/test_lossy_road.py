"""The road of a lossy pass: what it works with, what judges it, and what is undone."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import onnxopt
import onnxopt.pass_manager
from onnxopt.accuracy import Budget
from onnxopt.bisect import bisect
from onnxopt.errors import EvaluationError, OptionError
from onnxopt.evaluation import load_evaluation
from onnxopt.pass_contract import Kind, Outcome, Pass
from onnxopt.pass_manager import available_passes, parse_pipeline
from onnxopt.recipe import budget_from, read_recipe
from onnxopt.samples import Samples, split
from onnxopt.settings import Settings
from onnxopt.workbench import Workbench
from tests.differential import parse

_TEXT = """
g (float[N, 8] x) => (float[N, 8] y)
<float[8] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}> {
    a = Identity(x)
    y = Mul(a, w)
}
"""


class Louder(Pass):
    """Multiplies the weights, which is not what was asked."""

    name = "louder"
    kind = Kind.LOSSY
    factor: ClassVar[float] = 1.01
    benches: ClassVar[list[Workbench | None]] = []

    def run(self, model: ir.Model) -> Outcome:
        self.benches.append(self.workbench)
        value = model.graph.initializers["w"]
        assert value.const_value is not None
        old = value.const_value.numpy()
        if old[0] != 1.0:
            return Outcome(model, False)
        value.const_value = ir.tensor((old * self.factor).astype(np.float32), name="w")
        return Outcome(model, True)


class MuchLouder(Louder):
    """Far over any sensible budget."""

    name = "much-louder"
    factor = 1.5


class LouderButExact(MuchLouder):
    """Says it changes no number."""

    name = "louder-but-exact"
    kind = Kind.EXACT


class Learns(Louder):
    """Cannot do without samples."""

    name = "learns"
    needs_data = True


class LearnsAndFails(Learns):
    """Needs samples, and fails with them."""

    name = "learns-and-fails"

    def run(self, model: ir.Model) -> Outcome:
        raise IndexError("no such bin")


class Prepares(Pass):
    """Does what only another pass makes use of."""

    name = "prepares"
    prepares_for = "much-louder"

    def run(self, model: ir.Model) -> Outcome:
        value = model.graph.node(0).outputs[0]
        changed, value.name = value.name != "b", "b"
        return Outcome(model, changed)


_OURS = (Louder, MuchLouder, LouderButExact, Learns, LearnsAndFails, Prepares)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    table: Mapping[str, Any] = {
        **{name: available_passes()[name] for name in available_passes()},
        **{each.name: each for each in _OURS},
    }
    Louder.benches.clear()
    monkeypatch.setattr(onnxopt.pass_manager, "available_passes", lambda: table)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "model.onnx"
    onnx.save(parse(_TEXT), path)
    return path


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "samples.npz"
    numbers = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    np.savez(path, x=numbers)
    return path


def _weights(path: pathlib.Path) -> NDArray[Any]:
    (tensor,) = onnx.load(path).graph.initializer
    return np.asarray(onnx.numpy_helper.to_array(tensor))


def test_a_result_within_the_budget_stands(source: pathlib.Path, data: pathlib.Path) -> None:
    target = source.with_name("out.onnx")
    report = onnxopt.optimize(source, target, passes="louder", data=data, guard_speed=False)
    assert report.undone == []
    assert report.fidelity is not None
    assert report.fidelity.sqnr_db == pytest.approx(40, abs=0.1)  # 1 % louder
    assert report.fidelity.samples == 3
    assert _weights(target)[0] == np.float32(1.01)
    assert report.to_dict()["fidelity"]["sqnr_db"] == pytest.approx(40, abs=0.1)


def test_a_result_over_the_budget_is_undone_and_the_exact_part_stays(
    source: pathlib.Path, data: pathlib.Path
) -> None:
    target = source.with_name("out.onnx")
    passes = "eliminate-identities,much-louder"
    report = onnxopt.optimize(source, target, passes=passes, data=data, guard_speed=False)
    (undone,) = report.undone
    assert undone.name == "much-louder"
    assert "6.0 dB" in undone.reason
    assert report.fidelity is None
    assert [node.op_type for node in onnx.load(target).graph.node] == ["Mul"]
    assert _weights(target)[0] == 1.0


def test_a_wrong_exact_pass_cannot_hide_in_the_budget(
    source: pathlib.Path, data: pathlib.Path
) -> None:
    target = source.with_name("out.onnx")
    report = onnxopt.optimize(
        source,
        target,
        passes="louder-but-exact,louder",
        data=data,
        budget=Budget(min_sqnr=0.0),
        guard_speed=False,
    )
    assert [each.name for each in report.undone] == ["louder-but-exact"]
    assert _weights(target)[0] == np.float32(1.01)


@pytest.mark.parametrize("min_sqnr", [20.0, 3.0])
def test_a_preparation_goes_with_what_it_prepared_for(
    source: pathlib.Path, data: pathlib.Path, min_sqnr: float
) -> None:
    target = source.with_name("out.onnx")
    report = onnxopt.optimize(
        source,
        target,
        passes="prepares,much-louder",
        data=data,
        budget=Budget(min_sqnr=min_sqnr),
        guard_speed=False,
    )
    kept = min_sqnr < 6
    assert onnx.load(target).graph.node[0].output == ["b" if kept else "a"]
    assert [each.name for each in report.undone] == ([] if kept else ["prepares", "much-louder"])
    assert report.changed is kept


def test_samples_are_parted(source: pathlib.Path, data: pathlib.Path) -> None:
    onnxopt.optimize(source, passes="louder", data=data, guard_speed=False, goal="size")
    bench = Louder.benches[0]
    assert bench is not None
    assert bench.given
    assert bench.goal == "size"
    everything = np.load(data)["x"]
    kept = np.concatenate([feed["x"] for feed in bench.calibration])
    back = np.concatenate([feed["x"] for feed in bench.held_out])
    np.testing.assert_array_equal(back, everything[3::4])
    np.testing.assert_array_equal(kept, np.delete(everything, np.s_[3::4], axis=0))


def test_without_data_feeds_are_made_up(source: pathlib.Path) -> None:
    onnxopt.optimize(source, passes="louder", guard_speed=False)
    bench = Louder.benches[0]
    assert bench is not None
    assert not bench.given
    assert len(list(bench.calibration)) == len(list(bench.held_out)) > 0


def test_the_bench_stays_the_same_when_the_pipeline_runs_again(
    source: pathlib.Path, data: pathlib.Path
) -> None:
    onnxopt.optimize(source, passes="louder,much-louder", data=data, guard_speed=False)
    onnxopt.optimize(source, passes="much-louder", data=data, guard_speed=False)
    assert len({id(bench) for bench in Louder.benches}) == 2  # one for each call


def test_exact_passes_get_no_bench(source: pathlib.Path, data: pathlib.Path) -> None:
    onnxopt.optimize(source, passes="louder-but-exact", data=data, guard_speed=False)
    assert set(Louder.benches) == {None}


def test_a_pass_that_learns_asks_for_data(source: pathlib.Path) -> None:
    with pytest.raises(OptionError, match=r"'learns' learns from samples.*--data"):
        onnxopt.optimize(source, source.with_name("out.onnx"), passes="learns")
    assert not source.with_name("out.onnx").exists()


def test_the_failure_of_a_pass_that_learns_can_be_seen_again(
    source: pathlib.Path, data: pathlib.Path
) -> None:
    target = source.with_name("out.onnx")
    report = onnxopt.optimize(source, target, passes="learns-and-fails", data=data)
    (undone,) = report.undone
    assert "no such bin" in undone.reason
    assert "--passes learns-and-fails" in undone.reproducer
    assert f"--data {data}" in undone.reproducer
    assert target.with_name("out.onnx.failure").joinpath("model.onnx").exists()


def test_bisecting_is_for_passes_that_change_no_numbers(source: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="accuracy budget"):
        bisect(source, "eliminate-identities,louder")


def test_few_samples_are_used_twice() -> None:
    calibration, held_out = split(lambda: [{"x": np.zeros(1)}] * 3)
    assert len(list(calibration)) == len(list(held_out)) == 3


def test_samples_are_read_anew() -> None:
    reads = []

    def read() -> list[dict[str, Any]]:
        reads.append(1)
        return [{"x": index} for index in range(8)]

    samples = Samples(read)
    assert len(list(samples)) == len(list(samples)) == 8
    assert samples.first(2) == [{"x": 0}, {"x": 1}]
    assert len(reads) == 3


def test_the_users_own_measure_judges(
    source: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "my_measure.py").write_text(
        "import onnx\n"
        "def first_weight(path):\n"
        "    tensor = onnx.load(path).graph.initializer[0]\n"
        "    return 1 - abs(onnx.numpy_helper.to_array(tensor)[0] - 1)\n"
        "def raises(path):\n"
        "    raise KeyError('no labels')\n"
        "def nothing(path):\n"
        "    return float('nan')\n"
    )
    folder = str(tmp_path)
    budget = budget_from({"evaluate": "my_measure:first_weight", "folder": folder})
    assert budget.min_sqnr is None
    options: dict[str, Any] = {"data": data, "guard_speed": False}
    report = onnxopt.optimize(source, passes="much-louder", budget=budget, **options)
    assert "drops from 1 to 0.5" in report.undone[0].reason
    lax = budget_from({"evaluate": "my_measure:first_weight", "folder": folder, "max_drop": 0.6})
    report = onnxopt.optimize(source, passes="much-louder", budget=lax, **options)
    assert report.fidelity is not None
    assert report.fidelity.score is not None
    assert report.fidelity.score.after == pytest.approx(0.5)
    for name, words in (("raises", "raised KeyError"), ("nothing", "gave nan")):
        bad = budget_from({"evaluate": f"my_measure:{name}", "folder": folder})
        with pytest.raises(EvaluationError, match=words):
            onnxopt.optimize(source, source.with_name("o.onnx"), passes="louder", budget=bad)
    assert not source.with_name("o.onnx").exists()


@pytest.mark.parametrize("text", ["nonsense", ":f", "m:", "no_such_module_here:f", "math:nothing"])
def test_an_evaluation_that_is_not_there(text: str) -> None:
    with pytest.raises(OptionError):
        load_evaluation(text)


def test_a_recipe_states_the_budget(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('goal = "size"\neffort = "low"\n[budget]\nmin-sqnr = 30\nmin-cosine = 0.99\n')
    recipe = read_recipe(path)
    assert recipe.settings == {"goal": "size", "effort": "low"}
    budget = budget_from(recipe.budget)
    assert (budget.min_sqnr, budget.min_cosine) == (30, 0.99)
    path.write_text("[budget]\nmin-snr = 30\n")
    with pytest.raises(OptionError, match="min-sqnr"):
        read_recipe(path)


def test_a_pipeline_needs_no_data_to_be_read() -> None:
    assert [pass_.needs_data for pass_ in parse_pipeline("louder,learns")] == [False, True]


def test_the_default_pipeline_learns_where_there_is_something_to_learn_from() -> None:
    assert Settings().pipeline == "exact"
    assert Settings(data="samples.npz").pipeline == "tuned"
    assert Settings(data="samples.npz", verify="off").pipeline == "exact"
    assert Settings(data="samples.npz", passes="exact").pipeline == "exact"
    kinds = {pass_.kind for pass_ in parse_pipeline("tuned")}
    assert Kind.LOSSY in kinds
