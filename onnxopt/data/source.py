"""Where the feeds of a model come from."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator

import onnx_ir as ir

from onnxopt.data.feed import Feed, InputSpec, required_inputs
from onnxopt.data.files import FeedFiles
from onnxopt.data.making import index_limit
from onnxopt.data.request import FeedRequest, check_request
from onnxopt.data.search import search_feeds
from onnxopt.errors import FeedError

__all__ = ["FeedSource"]


class FeedSource:
    """Where the feeds of a model come from.

    It looks at the model once, when it is made; the model may change afterwards.

    Args:
        model: The model whose inputs are to be fed.
        data: A folder of ``.npz`` files (one feed each) or one ``.npz`` of stacked samples; None to
            make inputs up.
        request: What the user fixed of made-up inputs.

    Raises:
        FeedError: When the request does not fit the model.
    """

    def __init__(
        self,
        model: ir.Model,
        data: pathlib.Path | None = None,
        request: FeedRequest | None = None,
    ) -> None:
        self._data = data
        self._request = request or FeedRequest()
        check_request(model, self._request)
        self._inputs = required_inputs(model)
        self._limits = {value.name or "": index_limit(value) for value in self._inputs}

    def feeds(self, try_run: Callable[[Feed], object], limit: int) -> list[Feed]:
        """At most ``limit`` feeds.

        Made-up ones are such that the model runs: every dynamic dimension has two sizes among them
        (unless only one lets the model run), smaller first, and there is one feed for each size and
        seed (for models that take long, one for each size).

        Args:
            try_run: Runs the original model on a feed; raises `OnnxoptError` when that fails.
            limit: How many to give.

        Raises:
            FeedError: When the data does not fit, or nothing that was tried lets the model run;
                says what to give.
        """
        if self._data is None:
            return search_feeds(self._inputs, self._limits, self._request, try_run)[:limit]
        feeds = list(itertools.islice(self.read(), limit))
        if not feeds:
            raise FeedError(f"{self._data} holds no samples")
        return feeds

    @property
    def files(self) -> FeedFiles:
        """The feeds of the data, which are read from files; the paths are absolute."""
        assert self._data is not None
        specs = tuple(InputSpec.of(value) for value in self._inputs)
        return FeedFiles(pathlib.Path(self._data).absolute(), specs)

    def read(self) -> Iterator[Feed]:
        """Read the feeds of the data one by one."""
        return self.files()
