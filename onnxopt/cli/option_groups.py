"""Options that belong together: a dataclass whose fields become options of a command.

    @dataclasses.dataclass(frozen=True)
    class LoopOptions(OptionGroup):
        steps: Annotated[int | None, typer.Option(min=1, help="Steps.")] = None

    @takes_option_groups
    def distill(output: Output, loop: LoopOptions) -> None: ...

To typer, that command is ``distill(output, steps=None)``. So several commands can take the same
options, and one that takes many hands them on as one value.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["OptionGroup", "takes_option_groups"]

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class OptionGroup:
    """Base of groups; every field of a group has a default that stands for "not given"."""

    def given(self) -> dict[str, Any]:
        """The options that were given, by field; a switch that is off was not."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in fields.items()
            if value is not None and value is not False
        }


def takes_option_groups(command: Callable[..., R]) -> Callable[..., R]:
    """Let the groups among a command's parameters be options of their own.

    The annotations of command and groups must be found at run time, as typer demands anyway.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type[OptionGroup], list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        wanted = hints[name]
        if isinstance(wanted, type) and issubclass(wanted, OptionGroup):
            members = _members(wanted)
            groups[name] = wanted, [member.name for member in members]
            parameters += members
        else:
            parameters.append(
                parameter.replace(annotation=wanted, kind=inspect.Parameter.KEYWORD_ONLY)
            )

    @functools.wraps(command)
    def expanded(**values: Any) -> R:
        for name, (group, members) in groups.items():
            values[name] = group(**{member: values.pop(member) for member in members})
        return command(**values)

    # typer reads the one, and `typing.get_type_hints` the other.
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {each.name: each.annotation for each in parameters}
    return expanded


def _members(group: type[OptionGroup]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]
