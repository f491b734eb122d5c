"""Small models, and what feeds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data import Feed, FeedRequest, FeedSource
from onnxopt.errors import RuntimeRefusalError
from onnxopt.model import from_proto, to_proto
from tests.differential import parse, run


def signature(text: str, **weights: np.ndarray) -> ir.Model:
    """A model of opset 21 from the text of its graph."""
    header = '<ir_version: 10, opset_import: ["" : 21]>'
    return from_proto(parse(header + text, weights))


def _runner(model: ir.Model) -> Any:
    proto = to_proto(model)

    def try_run(feed: Feed) -> object:
        try:
            return run(proto, feed)
        except Exception as error:
            raise RuntimeRefusalError(str(error)) from error

    return try_run


def made_up(model: ir.Model, request: FeedRequest | None = None, limit: int = 8) -> list[Feed]:
    """Feeds made up for a model that is run on them."""
    return FeedSource(model, None, request).feeds(_runner(model), limit)


def accept(feed: Feed) -> object:
    """Stand in for a model that runs with anything."""
    return feed
