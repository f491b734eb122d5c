"""How the text of options is read: ``name=value``, shapes, tolerances, inputs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "named_texts",
    "shape_from_text",
    "shapes_from_texts",
    "tolerance_from_text",
    "values_from_texts",
]


def named_texts(items: list[str] | None, separator: str, option: str) -> dict[str, str]:
    """Split ``name<separator>text`` items; names may hold colons and slashes."""
    found: dict[str, str] = {}
    for item in items or ():
        left, middle, right = (
            item.partition(separator) if separator == "=" else item.rpartition(separator)
        )
        if not middle or not left or not right:
            raise typer.BadParameter(
                f"'{item}' is not NAME{separator}{'VALUE' if separator == '=' else 'SIZES'}",
                param_hint=option,
            )
        found[left] = right
    return found


def shape_from_text(text: str) -> tuple[int, ...]:
    """Read ``1,3,224,224``; ``?`` and ``-1`` leave a size open.

    Raises:
        ValueError: When a size is no number or is below -1.
    """
    sizes = tuple(-1 if part.strip() == "?" else int(part) for part in text.split(","))
    if min(sizes) < -1:
        raise ValueError(text)
    return sizes


def shapes_from_texts(items: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Read the values of ``--shape``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, text in named_texts(items, ":", "--shape").items():
        try:
            shapes[name] = shape_from_text(text)
        except ValueError as error:
            raise typer.BadParameter(
                f"'{text}' is not a shape: write sizes with commas, such as 1,3,224,224",
                param_hint="--shape",
            ) from error
    return shapes


def tolerance_from_text(text: str) -> tuple[float, float]:
    """Read ``rtol,atol``."""
    try:
        rtol, atol = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"'{text}' is not RTOL,ATOL; write 1e-3,1e-5", param_hint="--tolerance"
        ) from error
    if not (rtol >= 0 and atol >= 0):
        raise typer.BadParameter("tolerances are at least 0", param_hint="--tolerance")
    return rtol, atol


def values_from_texts(
    model: pathlib.Path, texts: Mapping[str, str]
) -> dict[str, np.ndarray[Any, Any]]:
    """Read inputs given as text in the types that the model's inputs have."""
    if not texts:
        return {}
    from onnxopt.data import input_named, value_from_text
    from onnxopt.model import load

    loaded = load(model)
    return {name: value_from_text(text, input_named(loaded, name)) for name, text in texts.items()}
