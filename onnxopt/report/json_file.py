"""Reports as JSON, to a file or as text; files are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from onnxopt.errors import ModelError
from onnxopt.report.formats import NO_SIGNAL

__all__ = ["check_writable", "json_text", "write_json", "write_text"]


def json_text(document: Mapping[str, Any]) -> str:
    """A document as indented JSON.

    NaN and infinities, which JSON does not have, become null; but decibels of minus infinity, where
    no signal is left, become `NO_SIGNAL`, so that they differ from those of equal outputs.
    """
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)


def check_writable(path: pathlib.Path, *models: pathlib.Path | None) -> None:
    """Find out before long work whether a report can be written there.

    Raises:
        ModelError: When its folder is missing or cannot be written to, or it is one of the models.
    """
    if path.resolve() in [model.resolve() for model in models if model is not None]:
        raise ModelError(f"{path} is a model: name another file to write the report to")
    if path.is_dir():
        raise ModelError(f"{path} is a folder: name a file to write the report to")
    if not path.parent.is_dir():
        raise ModelError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ModelError(f"cannot write {path}: permission denied")


def write_json(path: pathlib.Path, document: Mapping[str, Any]) -> None:
    """Write a document.

    Raises:
        ModelError: When that fails; a file that was there is still there then.
    """
    write_text(path, json_text(document) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file of text.

    Raises:
        ModelError: When that fails; a file that was there is still there then.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror or error}") from error


def _finite(value: Any, is_decibels: bool = False) -> Any:
    if isinstance(value, float):
        if is_decibels and value == -math.inf:
            return NO_SIGNAL
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {
            key: _finite(item, is_decibels or str(key).endswith("_db"))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_finite(item, is_decibels) for item in value]
    return value


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
