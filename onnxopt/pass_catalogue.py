"""What there is to choose from: passes with their documentation and options, and pipelines."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from typing import Any

from onnxopt.errors import OptionError
from onnxopt.pass_contract import Pass
from onnxopt.pass_manager import available_passes, available_pipelines, make_pass
from onnxopt.rewriting import RewritePass

__all__ = [
    "OptionFacts",
    "PassFacts",
    "RuleFacts",
    "describe_pass",
    "list_passes",
    "list_pipelines",
]


@dataclasses.dataclass(frozen=True)
class OptionFacts:
    """An option as it stands in a pipeline.

    Attributes:
        name: In kebab-case.
        type: What it takes.
        default: Its default, as text.
    """

    name: str
    type: str
    default: str


@dataclasses.dataclass(frozen=True)
class RuleFacts:
    """A rewrite rule of a pass.

    Attributes:
        name: Name in counters and reports.
        summary: First line of its documentation.
        anchors: Operators at which it looks.
    """

    name: str
    summary: str
    anchors: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PassFacts:
    """A pass.

    Attributes:
        name: Name in pipelines.
        kind: ``exact``, ``lossy`` or ``storage``.
        summary: First line of its documentation.
        documentation: All of it; the module's, too, where that says more than one line.
        options: Its options.
        rules: Its rewrite rules, if it is made of rules.
        trouble: Why it cannot be used, else empty.
    """

    name: str
    kind: str
    summary: str
    documentation: str
    options: tuple[OptionFacts, ...] = ()
    rules: tuple[RuleFacts, ...] = ()
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data."""
        return dataclasses.asdict(self)


def list_pipelines() -> dict[str, str]:
    """Pipelines by name, as text."""
    return dict(available_pipelines())


def list_passes() -> list[PassFacts]:
    """All passes, sorted by name. One that cannot be imported does not hide the others."""
    found = []
    for name in sorted(available_passes()):
        try:
            found.append(describe_pass(name))
        except (ImportError, AttributeError) as error:
            trouble = f"it cannot be imported: {error}"
            found.append(PassFacts(name, "", "", "", trouble=trouble))
    return found


def describe_pass(name: str) -> PassFacts:
    """One pass.

    Raises:
        OptionError: When there is none of this name; suggests the nearest.
    """
    passes = available_passes()
    if name not in passes:
        close = difflib.get_close_matches(name, [*passes, *available_pipelines()], n=1)
        hint = f"did you mean '{close[0]}'?" if close else "'onnxopt passes' lists them"
        raise OptionError(f"there is no pass '{name}'; {hint}")
    made = make_pass(name)
    pass_class = passes[name]
    text = inspect.getdoc(pass_class) or ""
    module = inspect.getdoc(inspect.getmodule(pass_class)) or ""
    return PassFacts(
        name,
        made.kind.value,
        _first_line(text),
        f"{text}\n\n{module}" if "\n" in module and issubclass(pass_class, Pass) else text,
        _options(pass_class),
        _rules(made),
    )


def _options(pass_class: type) -> tuple[OptionFacts, ...]:
    if not issubclass(pass_class, Pass):
        return ()
    hints = typing.get_type_hints(pass_class.Options)
    return tuple(
        OptionFacts(field.name.replace("_", "-"), _type_text(hints[field.name]), str(field.default))
        for field in dataclasses.fields(pass_class.Options)
    )


def _rules(made: Pass) -> tuple[RuleFacts, ...]:
    if not isinstance(made, RewritePass):
        return ()
    return tuple(
        RuleFacts(rule.name, _first_line(inspect.getdoc(type(rule)) or ""), tuple(rule.anchors))
        for rule in made.rules()
    )


def _type_text(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_text(each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"{_type_text(typing.get_args(hint)[0])}, several with |"
    names = {int: "number", float: "number", bool: "true or false", str: "text"}
    return names.get(hint, "none" if hint is type(None) else getattr(hint, "__name__", str(hint)))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
