"""Recipes: the settings of an optimization in a TOML file.

    passes = ["fold-constants{max-bytes=0}", "fuse-affine"]
    verify = "each"
    data = "samples/"            # paths are relative to the recipe

    [values]
    sample_rate = 16000

    [shapes]
    audio = [1, 512]

    [budget]
    min-sqnr = 25                # decibels

The keys are the fields of `onnxopt.Settings`; hyphens do for underscores.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from onnxopt.accuracy import Budget
from onnxopt.errors import OptionError
from onnxopt.evaluation import load_evaluation
from onnxopt.toml_tables import known_key, read_toml

__all__ = ["Recipe", "budget_from", "read_budget", "read_recipe"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe says.

    Attributes:
        settings: Settings by name, except ``values``, ``tolerance`` and ``budget``.
        tolerance: ``rtol`` and ``atol``, as far as they are given.
        values: Inputs as text, as `onnxopt.data.value_from_text` reads them; their type is the
            model's to say.
        budget: Fields of `onnxopt.accuracy.Budget`, as far as they are given, for `budget_from`.
    """

    settings: Mapping[str, Any]
    tolerance: Mapping[str, float]
    values: Mapping[str, str]
    budget: Mapping[str, Any]

    def replace(self, **settings: Any) -> Recipe:
        """The recipe with other settings."""
        return dataclasses.replace(self, settings={**self.settings, **settings})


def budget_from(fields: Mapping[str, Any]) -> Budget:
    """A budget of the fields that are given; an evaluation replaces the limits that are not.

    Raises:
        OptionError: When a number is out of its range, or the evaluation is not found.
    """
    found = dict(fields)
    if "evaluate" in found:
        found["evaluate"] = load_evaluation(found["evaluate"], found.pop("folder", ""))
        found = {"min_sqnr": None, "min_agreement": None, **found}
    return Budget(**found)


def read_budget(value: Any, path: pathlib.Path) -> dict[str, Any]:
    """The table ``[budget]`` of a recipe.

    Raises:
        OptionError: When a key is unknown, or a value is of the wrong kind.
    """
    try:
        return _budget(value, path.parent)
    except _WrongKindError as error:
        raise OptionError(f"recipe {path}: 'budget' takes {error}, not {value!r}") from error


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe.

    Raises:
        OptionError: When it cannot be read, a key is unknown, or a value is of the wrong kind.
    """
    path = pathlib.Path(path)
    document = read_toml(path)
    found: dict[str, Any] = {}
    for written, value in document.items():
        key = known_key(written, _READERS, f"recipe {path}")
        if key in found:
            raise OptionError(f"recipe {path} says '{key}' twice")
        try:
            found[key] = _READERS[key](value, path.parent)
        except _WrongKindError as error:
            raise OptionError(f"recipe {path}: '{written}' takes {error}, not {value!r}") from error
    return Recipe(
        tolerance=found.pop("tolerance", {}),
        values=found.pop("values", {}),
        budget=found.pop("budget", {}),
        settings=found,
    )


class _WrongKindError(Exception):
    """Says what would have been right."""


_Reader = Callable[[Any, pathlib.Path], Any]


def _names(value: Any) -> list[str]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise _WrongKindError("a text or a list of texts")
    return [item.strip() for item in items if item.strip()]


def _pipeline(value: Any, folder: pathlib.Path) -> str:
    return value if isinstance(value, str) else ",".join(_names(value))


def _skip(value: Any, folder: pathlib.Path) -> tuple[str, ...]:
    return tuple(_names(value))


def _boolean(value: Any, folder: pathlib.Path) -> bool:
    if not isinstance(value, bool):
        raise _WrongKindError("true or false")
    return value


def _one_of(*choices: str) -> _Reader:
    def read(value: Any, folder: pathlib.Path) -> str:
        if value not in choices:
            raise _WrongKindError(f"one of {', '.join(choices)}")
        return str(value)

    return read


def _path(value: Any, folder: pathlib.Path) -> pathlib.Path:
    if not isinstance(value, str) or not value:
        raise _WrongKindError("a path")
    return folder / value


def _positive(value: Any, folder: pathlib.Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _WrongKindError("a whole number from 1")
    return value


def _number(value: Any, folder: pathlib.Path) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise _WrongKindError("a number from 0")
    return float(value)


def _tolerance(value: Any, folder: pathlib.Path) -> dict[str, float]:
    if not isinstance(value, dict) or not value.keys() <= {"rtol", "atol"}:
        raise _WrongKindError("a table with rtol and atol")
    return {key: _number(number, folder) for key, number in value.items()}


def _text(value: Any, folder: pathlib.Path) -> str:
    if not isinstance(value, str) or not value:
        raise _WrongKindError("a text")
    return value


def _budget(value: Any, folder: pathlib.Path) -> dict[str, Any]:
    what = "a table with min-sqnr, min-agreement, min-cosine, evaluate and max-drop"
    if not isinstance(value, dict):
        raise _WrongKindError(what)
    found: dict[str, Any] = {}
    for written, item in value.items():
        key = written.replace("-", "_")
        if key == "evaluate":
            found[key], found["folder"] = _text(item, folder), str(folder)
        elif key in ("min_sqnr", "min_agreement", "min_cosine", "max_drop"):
            found[key] = _number(item, folder)
        else:
            raise _WrongKindError(what)
    return found


def _shapes(value: Any, folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    what = "a table of shapes, such as image = [1, 3, 224, 224] (-1 leaves a size open)"
    if not isinstance(value, dict):
        raise _WrongKindError(what)
    for shape in value.values():
        if not isinstance(shape, list) or not all(
            isinstance(size, int) and not isinstance(size, bool) and size >= -1 for size in shape
        ):
            raise _WrongKindError(what)
    return {name: tuple(shape) for name, shape in value.items()}


def _values(value: Any, folder: pathlib.Path) -> dict[str, str]:
    what = "a table of numbers, lists of numbers, or names of .npy files"
    if not isinstance(value, dict):
        raise _WrongKindError(what)
    texts: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, str) and item.endswith(".npy"):
            texts[name] = str(folder / item)
            continue
        numbers = item if isinstance(item, list) else [item]
        if not numbers or not all(isinstance(number, int | float) for number in numbers):
            raise _WrongKindError(what)
        texts[name] = ",".join(
            str(int(number) if isinstance(number, bool) else number) for number in numbers
        )
    return texts


#: How each setting is read; the keys are the fields of `onnxopt.Settings`.
_READERS: Mapping[str, _Reader] = {
    "passes": _pipeline,
    "skip": _skip,
    "verify": _one_of("end", "each", "off"),
    "guard_speed": _boolean,
    "data": _path,
    "values": _values,
    "shapes": _shapes,
    "threads": _positive,
    "seconds": _number,
    "tolerance": _tolerance,
    "budget": _budget,
    "target": _text,
    "goal": _one_of("latency", "size", "balanced"),
    "effort": _one_of("low", "medium", "high"),
    "external_data": _one_of("auto", "always", "never"),
    "details": _boolean,
    "in_place": _boolean,
    "dry_run": _boolean,
    "reproducer": _path,
    "workers": _positive,
    "scheduler": _text,
}
