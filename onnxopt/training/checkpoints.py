"""Where a training stands, in a file that is whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import tempfile
from typing import Any

import torch

from onnxopt.errors import ModelError

__all__ = ["fingerprint", "load_checkpoint", "save_checkpoint"]

#: Grows when the content of a checkpoint changes its meaning.
_VERSION = 3


def fingerprint(*facts: Any) -> str:
    """What a training was started with, as a short text; files count by their content."""
    digest = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, pathlib.Path):
            with fact.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        else:
            digest.update(repr(fact).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def save_checkpoint(path: pathlib.Path, state: dict[str, Any], mark: str) -> None:
    """Write where a training stands.

    Args:
        path: The file; an old one stays whole until the new one is.
        state: Tensors, numbers, texts, lists and dicts of them.
        mark: The training's fingerprint.

    Raises:
        ModelError: When it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save({"version": _VERSION, "mark": mark, "state": state}, file)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror or error}") from error


def load_checkpoint(path: pathlib.Path, mark: str) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote; None when there is none of a training with the same mark.

    Raises:
        ModelError: When the file is damaged.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, weights_only=True)
        if content["version"] != _VERSION or content["mark"] != mark:
            return None
        state: dict[str, Any] = content["state"]
    except Exception as error:  # pickle, zipfile and torch each have their own
        raise ModelError(
            f"checkpoint {path} cannot be read; remove it to start anew ({error})"
        ) from error
    return state
