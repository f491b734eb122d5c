"""The layers of a result beside the original's, for the report of a compression."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence

from onnxopt.analysis.quantization import is_quantized
from onnxopt.data import Feed
from onnxopt.details import look_closely
from onnxopt.findings import Layer
from onnxopt.layers import beside
from onnxopt.model import load
from onnxopt.noise import layer_noise
from onnxopt.runtime.worker import Worker

__all__ = ["layers_beside"]

#: The noise of layers is measured on so many samples.
_MOST_SAMPLES = 8


def layers_beside(
    original: pathlib.Path,
    prepared: pathlib.Path,
    result: pathlib.Path,
    feeds: Sequence[Feed],
    timed: Feed,
    *,
    worker: Worker,
    threads: int,
    seconds: float,
    on_step: Callable[[str], None],
) -> list[Layer]:
    """Time, weights, precision and noise of each layer of a result.

    Args:
        original: The model that was compressed.
        prepared: The same after exact passes, whose inner values are those of the result but for
            noise: in the original a BatchNorm may still come after what is fused here.
        result: What it became.
        feeds: Samples that nothing learned from, for the noise.
        timed: Inputs of the runs that are timed.
        worker: Where to run both.
        threads: Threads for one operator.
        seconds: Time for the profiled runs of each.
        on_step: Told what is being done.

    Raises:
        RuntimeRefusalError: When the runtime does not take a model with inner values to look at.
        RuntimeCrashError: When a process dies or hangs.
    """
    on_step("looking at layers")
    before, after = (
        look_closely(path, timed, threads=threads, seconds=seconds, worker=worker).layers
        for path in (original, result)
    )
    noisy = _noisy(prepared, result, feeds, worker, threads, on_step)
    return [*beside(after, before), *noisy]


def _noisy(
    prepared: pathlib.Path,
    result: pathlib.Path,
    feeds: Sequence[Feed],
    worker: Worker,
    threads: int,
    on_step: Callable[[str], None],
) -> Iterator[Layer]:
    """What noise says of layers: of values that both models have in the same shape."""
    first, second = load(prepared), load(result)
    if not is_quantized(second) or is_quantized(first):
        return
    some = feeds[:: -(-len(feeds) // _MOST_SAMPLES)]
    for each in layer_noise(first, second, some, worker=worker, threads=threads, on_step=on_step):
        if each.operator and each.cause != "mismatch":
            yield Layer(
                each.layer,
                each.operator,
                precision="int8" if each.whole else None,
                sqnr_db=each.sqnr_db,
                reason=f"noise: {each.reason}" if each.reason else "",
            )
