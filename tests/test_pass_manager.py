"""Pipelines as text, options, the registry, and how the manager runs passes."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_ir.passes.common import IdentityEliminationPass

import onnxopt.pass_manager
from onnxopt.errors import OnnxoptError, OptionError, PassFailure
from onnxopt.model import from_proto
from onnxopt.pass_contract import Instrument, Kind, NoOptions, Outcome, Pass, PassReport
from onnxopt.pass_manager import (
    PassManager,
    available_passes,
    available_pipelines,
    format_pipeline,
    make_pass,
    parse_pipeline,
)
from tests.differential import op_types, parse


class Shade(enum.Enum):
    LIGHT = "light"
    DARK = "dark"


@dataclasses.dataclass(frozen=True)
class Everything:
    """An option of each type."""

    flag: bool = False
    count: int = 3
    share: float = 0.5
    title: str = "plain"
    shade: Shade = Shade.LIGHT
    mode: Literal["fast", "slow"] = "fast"
    sizes: tuple[int, ...] = (1, 2)
    ratios: tuple[float, ...] = ()
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must not be negative")


class Scripted(Pass):
    """Does what the test says: how often it still changes something, or what it raises."""

    name = "scripted"
    Options: ClassVar[type] = Everything
    changes = 0
    error: Exception | None = None
    annotates = False

    def run(self, model: ir.Model) -> Outcome:
        log.append(self.name)
        if self.error is not None:
            raise self.error
        modified, self.changes = self.changes > 0, max(0, self.changes - 1)
        return Outcome(model, modified, annotates=self.annotates)


log: list[str] = []


class Plain(Scripted):
    name = "plain-pass"
    Options = NoOptions


class Lossy(Scripted):
    name = "lossy-pass"
    kind: ClassVar[Kind] = Kind.LOSSY


class Storage(Scripted):
    name = "storage-pass"
    kind: ClassVar[Kind] = Kind.STORAGE


class Other(Scripted):
    name = "other-pass"


_TABLE: Mapping[str, type[ir.passes.PassBase]] = {
    "scripted": Scripted,
    "plain-pass": Plain,
    "lossy-pass": Lossy,
    "storage-pass": Storage,
    "other-pass": Other,
    "foreign-identities": IdentityEliminationPass,
}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(onnxopt.pass_manager, "available_passes", lambda: _TABLE)
    monkeypatch.setattr(
        onnxopt.pass_manager,
        "available_pipelines",
        lambda: {"both": "scripted{count=9},plain-pass", "nested": "both,lossy-pass"},
    )
    log.clear()
    yield
    log.clear()


def _model() -> ir.Model:
    return from_proto(parse("g (float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }"))


def _scripted(kind: type[Scripted] = Scripted, changes: int = 0, **fields: Any) -> Scripted:
    pass_ = kind()
    pass_.changes = changes
    for key, value in fields.items():
        setattr(pass_, key, value)
    return pass_


class TestText:
    @pytest.mark.parametrize(
        ("text", "field", "value"),
        [
            ("flag=true", "flag", True),
            ("flag=False", "flag", False),
            ("count=12", "count", 12),
            ("share=1e-3", "share", 1e-3),
            ("title=two words", "title", "two words"),
            ("shade=dark", "shade", Shade.DARK),
            ("mode=slow", "mode", "slow"),
            ("sizes=4|5|6", "sizes", (4, 5, 6)),
            ("sizes=", "sizes", ()),
            ("ratios=0.5|2", "ratios", (0.5, 2.0)),
            ("max-bytes=1024", "max_bytes", 1024),
            ("max-bytes=none", "max_bytes", None),
        ],
    )
    def test_options(self, text: str, field: str, value: object) -> None:
        [pass_] = parse_pipeline(f"scripted{{{text}}}")
        found = getattr(pass_.options, field)
        assert found == value
        assert type(found) is type(value)

    def test_a_pipeline(self) -> None:
        passes = parse_pipeline(" scripted{ count = 4 , flag=true } , plain-pass,other-pass ")
        assert [pass_.name for pass_ in passes] == ["scripted", "plain-pass", "other-pass"]
        assert passes[0].options == Everything(flag=True, count=4)
        assert passes[2].options == Everything()
        text = format_pipeline(passes)
        assert text == "scripted{flag=true,count=4},plain-pass,other-pass"

    @pytest.mark.parametrize("text", ["", "  ", ",", " , ,"])
    def test_an_empty_pipeline(self, text: str) -> None:
        assert parse_pipeline(text) == []

    def test_named_pipelines(self) -> None:
        assert format_pipeline(parse_pipeline("nested")) == (
            "scripted{count=9},plain-pass,lossy-pass"
        )

    @given(
        st.lists(
            st.builds(
                Everything,
                flag=st.booleans(),
                count=st.integers(0, 2**40),
                share=st.floats(allow_nan=False),
                title=st.text("abcXYZ019 _.-", min_size=1).map(str.strip).filter(bool),
                shade=st.sampled_from(Shade),
                mode=st.sampled_from(["fast", "slow"]),
                sizes=st.lists(st.integers(-5, 5)).map(tuple),
                ratios=st.lists(st.floats(allow_nan=False)).map(tuple),
                max_bytes=st.none() | st.integers(),
            ),
            max_size=4,
        )
    )
    def test_round_trip(self, options: list[Everything]) -> None:
        passes = [Scripted(each) for each in options]
        again = parse_pipeline(format_pipeline(passes))
        assert [pass_.options for pass_ in again] == options

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("scriptet", "there is no pass 'scriptet'; did you mean 'scripted'"),
            ("zzz", "there is no pass 'zzz'"),
            ("scripted{cuont=1}", "no option 'cuont'; did you mean 'count'"),
            ("scripted{zzz=1}", "no option 'zzz'; it has flag, count"),
            ("plain-pass{zzz=1}", "no option 'zzz'; it has none"),
            ("scripted{count=many}", "'count' of pass 'scripted' takes int, not 'many'"),
            ("scripted{share=x}", "takes float, not 'x'"),
            ("scripted{flag=1}", "true or false, not '1'"),
            ("scripted{mode=medium}", "one of fast, slow, not 'medium'"),
            ("scripted{shade=grey}", "one of light, dark, not 'grey'"),
            ("scripted{sizes=1|a}", "takes int, not 'a'"),
            ("scripted{max-bytes=a}", "takes int, not 'a'"),
            ("scripted{count=-1}", "pass 'scripted': count must not be negative"),
            ("scripted{count}", "option 'count' of pass 'scripted' needs '=value'"),
            ("scripted{count=1", "braces that do not match"),
            ("scripted}", "braces that do not match"),
            ("{count=1}", "is not a pipeline"),
            ("scripted{count=1}x", "is not a pipeline"),
            ("foreign-identities{a=1}", "takes no options"),
        ],
    )
    def test_errors(self, text: str, message: str) -> None:
        with pytest.raises(OptionError) as caught:
            parse_pipeline(text)
        assert message in str(caught.value)


class TestRegistry:
    def test_built_in_passes_load_and_say_what_they_are(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        passes = available_passes()
        assert "eliminate-identities" in passes
        assert len(passes) == len(list(passes))
        for name in passes:
            pass_ = make_pass(name)
            assert pass_.name == name
            assert pass_.kind in Kind
            assert type(pass_).__doc__
            assert pass_.text == name

    def test_built_in_pipelines_parse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        assert "exact" in available_pipelines()
        for text in available_pipelines().values():
            passes = parse_pipeline(text)
            assert passes
            assert parse_pipeline(format_pipeline(passes))[0].options == passes[0].options
        decode, *exact, again = parse_pipeline("exact")
        assert all(pass_.kind is Kind.EXACT for pass_ in exact)
        assert (decode.text, again.text) == ("decode-weights", "compact-weights{only-again=true}")

    def test_storage_comes_last_whatever_follows_a_named_pipeline(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        names = [pass_.name for pass_ in parse_pipeline("exact,sparsify,exact")]
        assert names.count("compact-weights") == 1
        assert names[-1] == "compact-weights"
        (last,) = [each for each in parse_pipeline("compact") if each.name == "compact-weights"]
        assert last.text == "compact-weights"
        names = [pass_.name for pass_ in parse_pipeline("compact-weights,exact")]
        assert (names[0], names.count("compact-weights")) == ("compact-weights", 1)


class TestManager:
    def test_a_group_is_repeated_until_nothing_changes(self) -> None:
        passes = [_scripted(changes=2), _scripted(Other, changes=1)]
        reports = PassManager(passes).run(_model())
        # A pass does all it can in one run, so its own change is no reason to run it again.
        assert log == ["scripted", "other-pass", "scripted", "other-pass"]
        assert [report.round for report in reports] == [0, 0, 1, 1]

    def test_a_pass_sits_out_when_nothing_changed_since_it_ran(self) -> None:
        passes = [_scripted(), _scripted(Other, changes=1), _scripted(Plain)]
        PassManager(passes).run(_model())
        assert log == ["scripted", "other-pass", "plain-pass", "scripted"]

    def test_nothing_to_do_is_one_look_each(self) -> None:
        PassManager([_scripted(), _scripted(Other), _scripted(Plain)]).run(_model())
        assert log == ["scripted", "other-pass", "plain-pass"]

    def test_rounds_have_a_limit(self) -> None:
        PassManager([_scripted(changes=99), _scripted(Other, changes=99)], rounds=3).run(_model())
        assert log == ["scripted", "other-pass"] * 3

    def test_lossy_and_storage_passes_run_once_where_they_stand(self) -> None:
        passes = [
            _scripted(changes=1),
            _scripted(Lossy, changes=9),
            _scripted(Storage, changes=9),
            _scripted(Other, changes=1),
        ]
        PassManager(passes).run(_model())
        assert log == ["scripted", "lossy-pass", "storage-pass", "other-pass"]

    def test_foreign_passes(self) -> None:
        model = _model()
        passes = parse_pipeline("foreign-identities,plain-pass")
        assert passes[0].kind is Kind.EXACT
        reports = PassManager(passes).run(model)
        assert op_types(model) == ["Relu"]
        assert reports[0].outcome.rewritten == {"foreign-identities": 1}
        assert format_pipeline(passes) == "foreign-identities,plain-pass"

    def test_foreign_pass_that_returns_another_model(self) -> None:
        class Cloning(ir.passes.FunctionalPass):
            def call(self, model: ir.Model) -> ir.passes.PassResult:
                return ir.passes.PassResult(model.clone(), modified=True)

        table = {**_TABLE, "cloning": Cloning}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnxopt.pass_manager, "available_passes", lambda: table)
            passes = parse_pipeline("cloning")
        with pytest.raises(PassFailure, match=r"'cloning'.* another model object"):
            PassManager(passes).run(_model())

    def test_foreign_pass_runs_until_it_is_done(self) -> None:
        class OneAtATime(ir.passes.InPlacePass):
            """Removes one Identity a run."""

            def call(self, model: ir.Model) -> ir.passes.PassResult:
                node = next((node for node in model.graph if node.op_type == "Identity"), None)
                if node is not None and node.inputs[0] is not None:
                    node.outputs[0].replace_all_uses_with(node.inputs[0])
                    model.graph.remove(node, safe=True)
                return ir.passes.PassResult(model, modified=node is not None)

        model = from_proto(
            parse("g (float[n] x) => (float[n] y) { a = Identity(x) b = Identity(a) y = Neg(b) }")
        )
        with pytest.MonkeyPatch.context() as patch:
            table = {"one-at-a-time": OneAtATime}
            patch.setattr(onnxopt.pass_manager, "available_passes", lambda: table)
            passes = parse_pipeline("one-at-a-time")
        assert len(PassManager(passes).run(model)) == 3
        assert op_types(model) == ["Neg"]

    def test_a_pass_is_a_pass_of_onnx_ir(self) -> None:
        result = ir.passes.Sequential(_scripted(changes=1), IdentityEliminationPass())(_model())
        assert result.modified
        assert op_types(result.model) == ["Relu"]

    def test_failures_name_the_pass(self) -> None:
        passes = [_scripted(), _scripted(Other, error=KeyError("missing\nsecond line"))]
        with pytest.raises(PassFailure) as caught:
            PassManager(passes).run(_model())
        assert caught.value.pass_name == "other-pass"
        assert "\n" not in str(caught.value)
        assert "missing" in str(caught.value)
        assert isinstance(caught.value.__cause__, Exception)

    def test_annotations_let_others_look_again(self) -> None:
        passes = [_scripted(Other), _scripted(changes=1, annotates=True)]
        [_, report, *_] = PassManager(passes).run(_model())
        assert not report.outcome.changed_model
        assert log == ["other-pass", "scripted", "other-pass"]


class Recording(Instrument):
    def __init__(self, name: str, run: bool = True) -> None:
        self.name, self.allow = name, run

    def should_run(self, pass_: Pass, model: ir.Model) -> bool:
        log.append(f"{self.name} asks {pass_.name}")
        return self.allow

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        log.append(f"{self.name} before")

    def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
        log.append(f"{self.name} after")
        report.facts[self.name] = True

    def pass_failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        log.append(f"{self.name} failed {type(error).__name__}")


class TestInstruments:
    def test_are_called_in_order(self) -> None:
        manager = PassManager([_scripted()], [Recording("one"), Recording("two")])
        [report] = manager.run(_model())
        assert log == [
            "one asks scripted",
            "two asks scripted",
            "one before",
            "two before",
            "scripted",
            "one after",
            "two after",
        ]
        assert report.facts == {"one": True, "two": True}

    def test_may_have_a_pass_skipped(self) -> None:
        reports = PassManager([_scripted()], [Recording("one", run=False)]).run(_model())
        assert reports == []
        assert log == ["one asks scripted"]

    def test_see_failures(self) -> None:
        passes = [_scripted(error=ValueError("no"))]
        with pytest.raises(PassFailure):
            PassManager(passes, [Recording("one")]).run(_model())
        assert log[-1].startswith("one failed")

    def test_may_object(self) -> None:
        class Objects(Instrument):
            def after_pass(self, pass_: Pass, model: ir.Model, report: PassReport) -> None:
                raise OnnxoptError("not like this")

        with pytest.raises(OnnxoptError, match="not like this"):
            PassManager([_scripted()], [Objects()]).run(_model())


def test_outcome_is_a_result_of_onnx_ir() -> None:
    outcome = Outcome(_model(), True)
    assert isinstance(outcome, ir.passes.PassResult)
    assert outcome.changed_model
    assert np.all([not outcome.matched, not outcome.rewritten, not outcome.refusals])
