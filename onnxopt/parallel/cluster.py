"""A crew of the workers of a dask cluster.

Everything is dask's: who does what, what becomes of the work of a worker that is lost, how a model
gets to the workers. They need the same versions of onnxopt and of what it stands on, and see the
samples' files under the same paths.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
from typing import Any, TypeVar

import onnx

from onnxopt.errors import OptionError
from onnxopt.parallel.crew import ExecutorCrew, Function

__all__ = ["Cluster"]

J = TypeVar("J")
R = TypeVar("R")

#: A scheduler that has not answered by then is not there.
_ANSWER_SECONDS = 15
#: A larger model goes by its path, which the workers have to see; the runtime loads at most 2 GiB
#: from memory.
_MOST_BYTES = 1 << 30


class Cluster(ExecutorCrew):
    """The workers that a scheduler has.

    Args:
        address: Of the scheduler, such as ``tcp://host:8786``.

    Raises:
        OptionError: When the package is missing, or no scheduler answers.
    """

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError as error:
            raise OptionError(
                "a scheduler needs the package distributed: pip install 'onnxopt[distributed]'"
            ) from error
        self._losses = (distributed.KilledWorker, concurrent.futures.CancelledError)
        try:
            self._client = distributed.Client(address, timeout=_ANSWER_SECONDS)
            self._client.wait_for_workers(1, timeout=_ANSWER_SECONDS)
        except Exception as error:  # dask raises OSError, ValueError and its own
            raise OptionError(f"no dask scheduler with workers answers at {address}") from error
        self._shared: tuple[pathlib.Path, Any] | None = None

    @property
    def size(self) -> int:  # type: ignore[override]  # workers come and go
        """Threads of all workers."""
        threads: dict[str, int] = self._client.nthreads()
        return max(1, sum(threads.values()))

    def submit(  # noqa: D102
        self, function: Function[J, R], model: pathlib.Path | None, job: J
    ) -> concurrent.futures.Future[R]:
        # Not by way of the client's executor: what it returns waits for ever where a worker is lost
        # just when a result is fetched from it. A future of dask's own is computed again.
        future: concurrent.futures.Future[R] = self._client.submit(
            function, self._sent(model), job, pure=False
        )
        return future

    def parcel(self, model: pathlib.Path) -> pathlib.Path | bytes:
        """The model with all its weights, or its path where that would be too much."""
        proto = onnx.load(model, load_external_data=False)
        places = {
            entry.value
            for tensor in proto.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        files = [model, *(model.parent / place for place in places)]
        if sum(file.stat().st_size for file in files) > _MOST_BYTES:
            return model.absolute()
        if not places:
            return model.read_bytes()
        onnx.load_external_data_for_model(proto, str(model.parent))
        content: bytes = proto.SerializeToString()
        return content

    def _sent(self, model: pathlib.Path | None) -> Any:
        """The model, which goes to all workers once."""
        if model is None:
            return None
        if self._shared is None or self._shared[0] != model:
            content = self.parcel(model)
            if isinstance(content, bytes):
                content = self._client.scatter(content, broadcast=True)
            self._shared = (model, content)
        return self._shared[1]

    def is_loss(self, error: BaseException) -> bool:  # noqa: D102
        return isinstance(error, self._losses)

    def renew(self) -> None:
        """Send the model again: those who had it may be gone."""
        self._shared = None

    def close(self) -> None:  # noqa: D102
        self._client.close()
