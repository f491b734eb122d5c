"""Passes, their options, pipelines as text, and the manager that runs them.

A pipeline is text such as ``fold-constants{max-bytes=1048576},fuse-affine``; the command line,
recipes, reproducers and the documentation all use it. Instruments watch the manager work; it knows
nothing of what they do.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import importlib.metadata
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxopt.errors import (
    CalibrationError,
    EvaluationError,
    FeedError,
    OnnxoptError,
    OptionError,
    PassFailure,
)
from onnxopt.pass_contract import Instrument, Kind, Outcome, Pass, PassReport

if TYPE_CHECKING:
    from onnxopt.workbench import Workbench

__all__ = [
    "PassManager",
    "available_passes",
    "available_pipelines",
    "format_pipeline",
    "make_pass",
    "parse_pipeline",
    "split_storage",
]


#: What a pass says of the user's samples or measure, which leaving the pass out would not mend.
_ABOUT_INPUT = CalibrationError | EvaluationError | FeedError


class _ForeignPass(Pass):
    """A pass of onnx_ir or onnxscript in our pipeline. Counts as exact, and is verified as such."""

    name = ""
    settles = False

    def __init__(self, name: str, inner: ir.passes.PassBase) -> None:
        super().__init__()
        self.name = name  # type: ignore[misc]
        self._inner = inner

    def run(self, model: ir.Model) -> Outcome:
        result = self._inner(model)
        if result.model is not model:
            raise PassFailure(self.name, "it returned another model object")
        outcome = Outcome(model, result.modified)
        if result.modified:
            outcome.rewritten[self.name] = 1
        return outcome


class PassManager:
    """Run a pipeline until nothing changes any more.

    Neighbouring exact passes form a group that is repeated, since one pass makes work for another,
    at most ``rounds`` times. A pass sits out a round when nothing has changed since it last ran.
    Lossy and storage passes run once, where they stand.

    Args:
        passes: The pipeline.
        instruments: Observers, called in order.
        rounds: Most repetitions of a group of exact passes.
        workbench: What lossy passes work with.

    Raises:
        OptionError: When a pass needs samples and there are none.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        instruments: Sequence[Instrument] = (),
        rounds: int = 8,
        *,
        workbench: Workbench | None = None,
    ) -> None:
        for pass_ in passes:
            if pass_.needs_data and (workbench is None or not workbench.given):
                raise OptionError(
                    f"pass '{pass_.name}' learns from samples of your inputs; give them with --data"
                )
            pass_.workbench = workbench
        self.passes = tuple(passes)
        self.instruments = tuple(instruments)
        self.rounds = rounds

    def run(self, model: ir.Model) -> list[PassReport]:
        """Rewrite the model in place.

        Raises:
            PassFailure: When a pass raises. The model is then in an unknown state.
            OnnxoptError: When an instrument objects.
        """
        reports: list[PassReport] = []
        for group in _groups(self.passes):
            rounds = self.rounds if group[0].kind is Kind.EXACT else 1
            changes = 0  # counts changes to the model; remembers for each pass where it last stood
            seen: dict[Pass, int] = {}
            for number in range(rounds):
                before = changes
                for pass_ in group:
                    if seen.get(pass_) == changes:
                        continue
                    stood = changes
                    report = self._run_one(pass_, model, number)
                    if report is not None:
                        reports.append(report)
                        changes += report.outcome.modified
                    seen[pass_] = changes if pass_.settles else stood
                if changes == before:
                    break
        return reports

    def _run_one(self, pass_: Pass, model: ir.Model, number: int) -> PassReport | None:
        if not all(instrument.should_run(pass_, model) for instrument in self.instruments):
            return None
        for instrument in self.instruments:
            instrument.before_pass(pass_, model)
        try:
            result = pass_(model)
        except Exception as error:
            for instrument in self.instruments:
                instrument.pass_failed(pass_, model, error)
            if isinstance(error, PassFailure | _ABOUT_INPUT):
                raise
            raise PassFailure(pass_.name, _first_line(error)) from error
        assert isinstance(result, Outcome)
        report = PassReport(pass_.name, number, result, kind=pass_.kind)
        for instrument in self.instruments:
            instrument.after_pass(pass_, model, report)
        return report


def _groups(passes: Sequence[Pass]) -> list[list[Pass]]:
    groups: list[list[Pass]] = []
    for pass_ in passes:
        exact = pass_.kind is Kind.EXACT
        if exact and groups and groups[-1][-1].kind is Kind.EXACT:
            groups[-1].append(pass_)
        else:
            groups.append([pass_])
    return groups


# The registry


class _Registry(Mapping[str, type[ir.passes.PassBase]]):
    """All tables as one; a class is imported by its table when it is asked for."""

    def __init__(self) -> None:
        self._tables: dict[str, Mapping[str, type[ir.passes.PassBase]]] = {}
        for source, table in _load_tables("onnxopt.passes"):
            for name in table:
                if name in self._tables:
                    raise OptionError(f"two packages offer a pass '{name}'; {source} is one")
                self._tables[name] = table

    def __getitem__(self, name: str) -> type[ir.passes.PassBase]:
        return self._tables[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._tables

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


@functools.cache
def available_passes() -> Mapping[str, type[ir.passes.PassBase]]:
    """All passes that installed packages offer under the entry-point group ``onnxopt.passes``.

    Raises:
        OptionError: When a table cannot be imported or two packages use one name.
    """
    return _Registry()


@functools.cache
def available_pipelines() -> Mapping[str, str]:
    """Named pipelines, as text, of the entry-point group ``onnxopt.pipelines``."""
    found: dict[str, str] = {}
    for _, table in _load_tables("onnxopt.pipelines"):
        found.update(table)
    return types.MappingProxyType(found)


def _load_tables(group: str) -> list[tuple[str, Mapping[str, Any]]]:
    tables = []
    for entry in importlib.metadata.entry_points(group=group):
        try:
            tables.append((entry.value, entry.load()))
        except Exception as error:
            raise OptionError(
                f"entry point '{entry.name}' ({entry.value}) cannot be loaded: {error}"
            ) from error
    return tables


def make_pass(name: str, options: Mapping[str, str] | None = None) -> Pass:
    """Make a pass from its name and its options as text.

    Raises:
        OptionError: When there is no such pass or option, or a value does not fit its type.
    """
    passes = available_passes()
    if name not in passes:
        raise OptionError(f"there is no pass '{name}'{_nearest(name, passes)}")
    pass_class = passes[name]
    if not issubclass(pass_class, Pass):
        if options:
            raise OptionError(f"pass '{name}' takes no options here")
        return _ForeignPass(name, pass_class())
    fields = {field.name.replace("_", "-"): field for field in _fields(pass_class.Options)}
    hints = typing.get_type_hints(pass_class.Options)
    values: dict[str, Any] = {}
    for key, text in (options or {}).items():
        if key not in fields:
            known = f"; it has {', '.join(fields)}" if fields else "; it has none"
            raise OptionError(
                f"pass '{name}' has no option '{key}'{_nearest(key, fields) or known}"
            )
        field = fields[key]
        values[field.name] = _convert(text, hints[field.name], f"option '{key}' of pass '{name}'")
    try:
        return pass_class(pass_class.Options(**values))
    except ValueError as error:
        raise OptionError(f"pass '{name}': {error}") from error


def _fields(options: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(options)


# Pipelines as text


def parse_pipeline(text: str) -> list[Pass]:
    """Make the passes of a pipeline such as ``fold-constants{max-bytes=0},fuse-affine``.

    A name of a whole pipeline (see `available_pipelines`) stands for its passes. Storage passes
    that a named pipeline ends with go to the end of the whole text: what is stored compactly
    cannot be worked on; they are left out where the text has a pass of that name.

    Raises:
        OptionError: When the text is malformed or names something unknown.
    """
    passes: list[Pass] = []
    last: dict[str, Pass] = {}
    pipelines = available_pipelines()
    for name, options in _split_pipeline(text):
        if name in pipelines and not options:
            inner, storage = split_storage(parse_pipeline(pipelines[name]))
            passes.extend(inner)
            last.update((pass_.name, pass_) for pass_ in storage)
        else:
            passes.append(make_pass(name, options))
    named = {pass_.name for pass_ in passes}
    return [*passes, *(pass_ for name, pass_ in last.items() if name not in named)]


def split_storage(passes: Sequence[Pass]) -> tuple[list[Pass], list[Pass]]:
    """The passes, and the storage passes that they end with."""
    count = len(passes)
    while count and passes[count - 1].kind is Kind.STORAGE:
        count -= 1
    return list(passes[:count]), list(passes[count:])


def format_pipeline(passes: Iterable[Pass]) -> str:
    """The text that `parse_pipeline` reads back as the same passes."""
    return ",".join(pass_.text for pass_ in passes)


def _split_pipeline(text: str) -> list[tuple[str, dict[str, str]]]:
    steps: list[tuple[str, dict[str, str]]] = []
    for part in _split_outside_braces(text):
        name, brace, rest = part.partition("{")
        name = name.strip()
        if not name or (brace and not rest.rstrip().endswith("}")):
            raise OptionError(
                f"'{text}' is not a pipeline; write pass,pass{{option=value,option=value}}"
            )
        options: dict[str, str] = {}
        for item in filter(str.strip, rest.rstrip().removesuffix("}").split(",")):
            key, equals, value = item.partition("=")
            if not equals:
                raise OptionError(f"option '{item.strip()}' of pass '{name}' needs '=value'")
            options[key.strip()] = value.strip()
        steps.append((name, options))
    return steps


def _split_outside_braces(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    if depth != 0:
        raise OptionError(f"'{text}' has braces that do not match")
    parts.append(text[start:])
    return [part for part in parts if part.strip()] if text.strip() else []


def _convert(text: str, hint: Any, what: str) -> Any:
    """Read an option's text as its declared type."""
    alternatives = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in typing.get_args(hint):
            return None
        return _convert(text, alternatives[0], what)
    if typing.get_origin(hint) is typing.Literal:
        if text not in alternatives:
            raise OptionError(f"{what} is one of {', '.join(alternatives)}, not '{text}'")
        return text
    if typing.get_origin(hint) is tuple:
        return tuple(
            _convert(item, alternatives[0], what) for item in filter(None, text.split("|"))
        )
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        choices = [str(member.value) for member in hint]
        if text not in choices:
            raise OptionError(f"{what} is one of {', '.join(choices)}, not '{text}'")
        return hint(text)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise OptionError(f"{what} is true or false, not '{text}'")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError as error:
        raise OptionError(f"{what} takes {hint.__name__}, not '{text}'") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    prefix = "" if isinstance(error, OnnxoptError) else f"{type(error).__name__}: "
    return prefix + (text.splitlines()[0] if text else "no message")
