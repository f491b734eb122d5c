"""TOML files and their tables: keys that must be known, and dataclasses made of tables."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from onnxopt.errors import OptionError

__all__ = ["known_key", "read_toml", "settings_from"]

T = TypeVar("T")


def read_toml(path: pathlib.Path) -> dict[str, Any]:
    """Read a recipe.

    Raises:
        OptionError: When it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"recipe {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"recipe {path} is not TOML: {error}") from error


def known_key(written: str, known: Iterable[str], where: str) -> str:
    """The key that is meant; hyphens do for underscores.

    Raises:
        OptionError: When there is no such key.
    """
    key = written.replace("-", "_")
    names = list(known)
    if key not in names:
        close = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(names)}"
        raise OptionError(f"{where} has an unknown key '{written}'; {hint}")
    return key


def settings_from(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of a table.

    Args:
        cls: The dataclass; its annotations say what each value may be.
        table: Values by name.
        where: How to call the table in a message.

    Raises:
        OptionError: When a key is unknown, or a value is of the wrong kind.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # a dataclass
    values: dict[str, Any] = {}
    for written, value in table.items():
        key = known_key(written, known, where)
        if key in values:
            raise OptionError(f"{where} says '{key}' twice")
        values[key] = _read(hints[key], value, f"'{written}' of {where}")
    return cls(**values)


def _read(wanted: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        (wanted,) = [each for each in arguments if each is not type(None)]
        return _read(wanted, value, where)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        if not isinstance(value, dict):
            raise OptionError(f"{where} takes a table, not {value!r}")
        return settings_from(wanted, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            names = ", ".join(map(str, arguments))
            raise OptionError(f"{where} takes one of {names}, not {value!r}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        inner = arguments[0]
        fixed = len(arguments) if arguments[-1] is not Ellipsis else None
        if fixed is not None and len(items) != fixed:
            raise OptionError(f"{where} takes {fixed} values, not {value!r}")
        return tuple(_read(inner, each, where) for each in items)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise OptionError(f"{where} takes a table, not {value!r}")
        return {str(key): _read(arguments[1], each, where) for key, each in value.items()}
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        kinds = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
        raise OptionError(f"{where} takes {kinds.get(wanted, wanted)}, not {value!r}")
    return value
