"""Where the inputs of a run come from: the user's data, single values and shapes, or made up."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data import (
    Feed,
    FeedRequest,
    input_named,
    make_feeds,
    read_feeds,
    value_from_text,
)
from onnxopt.errors import FeedError
from onnxopt.model import load
from onnxopt.runtime.worker import Worker

__all__ = ["FeedSource", "values_from_texts"]


@dataclasses.dataclass(frozen=True)
class FeedSource:
    """What the user gave to run a model with.

    Attributes:
        data: Folder of ``.npz`` feeds or one ``.npz`` of stacked samples; made up when None.
        values: Whole inputs by name, where inputs are made up.
        shapes: Input shapes by name, where inputs are made up.
    """

    data: str | os.PathLike[str] | None = None
    values: Mapping[str, np.ndarray[Any, Any]] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def feeds(
        self,
        worker: Worker,
        path: str | os.PathLike[str],
        model: ir.Model,
        *,
        threads: int = 1,
        limit: int | None = None,
    ) -> list[Feed]:
        """At least one feed that the model runs with.

        Args:
            worker: Where made-up feeds are tried.
            path: The model's file.
            model: The same model, loaded.
            threads: Threads for one operator.
            limit: Read at most so many samples of the data.

        Raises:
            FeedError: When the data does not fit, is empty, or nothing made up lets the model run.
            RuntimeRefusalError: When the runtime does not load the model.
        """
        if self.data is not None:
            folder = pathlib.Path(self.data)
            feeds = list(read_feeds(folder, model, limit))
            if not feeds:
                raise FeedError(f"{folder} holds no samples")
            return feeds
        session = worker.open(path, threads=threads).session
        try:
            request = FeedRequest(self.values, self.shapes)
            return make_feeds(model, request, lambda feed: worker.run(session, feed))
        finally:
            if worker.is_running:
                worker.close(session)


def values_from_texts(
    path: str | os.PathLike[str], texts: Mapping[str, str]
) -> dict[str, np.ndarray[Any, Any]]:
    """Read inputs given as text, in the types that the model's inputs have.

    Raises:
        FeedError: When the model has no such input or a text does not fit it.
    """
    if not texts:
        return {}
    model = load(path)
    return {name: value_from_text(text, input_named(model, name)) for name, text in texts.items()}
