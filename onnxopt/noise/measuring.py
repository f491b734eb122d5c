"""Run a float model and its quantized one side by side and add up, layer by layer, what differs.

Inner values are fetched a few at a time and one sample after the other, so that memory depends
neither on the number of samples nor of layers. Whole numbers are fetched as the runtime's fused
kernels give them. Where a quantized model hands floats on (a product with ranges of its own in each
run, say), to ask for them keeps the runtime from fusing over them: the kernels before and behind
are the ones that run then, not those of the model as it is deployed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt.analysis.values import constant_array
from onnxopt.data import Feed
from onnxopt.model import save
from onnxopt.noise.counterparts import Counterpart, counterparts
from onnxopt.noise.reasons import Evidence, reason
from onnxopt.runtime.worker import Worker

__all__ = ["LayerNoise", "layer_noise"]

Array = np.ndarray[Any, Any]

#: Values are fetched so many at a time to begin with, then as many as fit into so many bytes.
_FIRST_BATCH, _MOST_AT_ONCE = 4, 64
_BATCH_BYTES = 48 << 20


@dataclasses.dataclass(frozen=True)
class LayerNoise:
    """How far a layer of a quantized model is from the float one, and why.

    Attributes:
        layer: The node of the quantized model; the value where it is only converted there.
        operator: Its operator; empty where there is none.
        value: What it computes, by its name in the float model.
        sqnr_db: Signal to noise of that over all samples; infinite when equal.
        whole: Whether whole numbers were looked at, as fused kernels give them.
        low: The least number that they can hold; None for floats.
        high: The greatest.
        least: The least number of the float model.
        greatest: The greatest.
        cause: ``clipping``, ``range``, ``rounding``, ``saturation``, ``bias``, ``weights``,
            ``upstream`` or ``arithmetic``; empty where there is no noise to speak of.
        reason: The cause, in a phrase.
    """

    layer: str
    operator: str
    value: str
    sqnr_db: float
    whole: bool
    low: float | None
    high: float | None
    least: float
    greatest: float
    cause: str
    reason: str


def layer_noise(
    first: ir.Model,
    second: ir.Model,
    feeds: Sequence[Feed],
    *,
    worker: Worker,
    threads: int = 1,
    saturation: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[LayerNoise]:
    """Signal to noise of every layer of a quantized model that is also in the float one.

    Args:
        first: The float model; not changed.
        second: The quantized one; not changed.
        feeds: What to run them on.
        worker: Where to run them.
        threads: Threads for one operator.
        saturation: Run the second without the runtime's optimizations too, which tells whether its
            fast kernels saturate.
        on_step: Told how far it is.

    Returns:
        In the order of the second model.

    Raises:
        RuntimeRefusalError: When the runtime refuses a model or a feed.
        RuntimeCrashError: When it crashes.
    """
    pairs = counterparts(first, second)
    if not pairs or not feeds:
        return []
    with tempfile.TemporaryDirectory(prefix="onnxopt-noise-") as folder:
        runs = [_Watched(pathlib.Path(folder) / "first", first, worker, threads)]
        runs.append(_Watched(pathlib.Path(folder) / "second", second, worker, threads))
        if saturation:
            runs.append(dataclasses.replace(runs[1], level="disabled"))
        evidence = {pair.value: Evidence(pair) for pair in pairs}
        start, count = 0, _FIRST_BATCH
        while start < len(pairs):
            on_step(f"comparing layers, {start} of {len(pairs)}")
            batch = pairs[start : start + count]
            taken = _compare(runs, batch, feeds, evidence)
            start += len(batch)
            each = max(1, taken // len(batch))
            count = max(1, min(_MOST_AT_ONCE, _BATCH_BYTES // each))
    weights = _float_weights(first)
    return [_told(pair, evidence, weights) for pair in pairs]


@dataclasses.dataclass(frozen=True)
class _Watched:
    """A model of which inner values can be fetched."""

    folder: pathlib.Path
    model: ir.Model
    worker: Worker
    threads: int
    level: str = "all"

    @contextlib.contextmanager
    def open(self, names: Sequence[str]) -> Iterator[Callable[[Feed], dict[str, Array]]]:
        """A function that gives these values, by name, of a run on a feed."""
        inputs = {value.name for value in self.model.graph.inputs}
        path = self._with_outputs([name for name in names if name not in inputs])
        info = self.worker.open(path, threads=self.threads, level=self.level)
        generation = self.worker.generation
        outputs = [port.name for port in info.outputs]
        known = {port.name for port in (*info.inputs, *info.overridable)}

        def run(feed: Feed) -> dict[str, Array]:
            given = {name: value for name, value in feed.items() if name in known}
            made = dict(zip(outputs, self.worker.run(info.session, given), strict=True))
            return {name: made[name] if name in made else feed[name] for name in names}

        try:
            yield run
        finally:
            if self.worker.generation == generation:
                self.worker.close(info.session)

    def _with_outputs(self, names: Sequence[str]) -> pathlib.Path:
        """The model in a file, with these values as its outputs and no others.

        Weights are written once; of a file without other outputs the runtime leaves away what is
        not needed for these.
        """
        path = self.folder / "model.onnx"
        if not path.exists():
            self.folder.mkdir(parents=True)
            save(self.model, path, "always")
        proto = onnx.load_model(path, load_external_data=False)
        known = {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
        del proto.graph.output[:]
        proto.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
        watched = self.folder / "watched.onnx"
        watched.write_bytes(proto.SerializeToString())
        return watched


def _compare(
    runs: Sequence[_Watched],
    batch: Sequence[Counterpart],
    feeds: Sequence[Feed],
    evidence: Mapping[str, Evidence],
) -> int:
    """Add up what differs in a batch of values; gives the bytes that they took in one sample."""
    most = 0
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(runs[0].open([pair.value for pair in batch]))
        others = [
            stack.enter_context(run.open([pair.fetched for pair in batch])) for run in runs[1:]
        ]
        for feed in feeds:
            expected = reference(feed)
            actual = [other(feed) for other in others]
            for pair in batch:
                evidence[pair.value].add(
                    expected[pair.value],
                    *(_floats(pair, found[pair.fetched]) for found in actual),
                )
            most = max(most, sum(getattr(array, "nbytes", 0) for array in expected.values()))
    return most


def _floats(pair: Counterpart, array: Any) -> Any:
    return array if pair.codes is None else pair.codes.floats(array)


def _float_weights(model: ir.Model) -> dict[str, Array]:
    """The float weights that a value is computed with, by the value's name, where there are."""
    found: dict[str, Array] = {}
    for node in model.graph:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or len(node.inputs) < 2:
            continue
        weights = constant_array(node.inputs[1])
        if weights is not None and weights.dtype == np.float32:
            value: ir.Value | None = node.outputs[0]
            for _ in range(3):  # what stands for it may be what its bias or activation give
                if value is None:
                    break
                found.setdefault(value.name or "", weights)
                readers = [reader for reader, _ in value.uses()]
                alone = len(readers) == 1 and readers[0].op_type in ("Add", "Relu", "Clip")
                value = readers[0].outputs[0] if alone else None
    return found


def _told(
    pair: Counterpart, evidence: Mapping[str, Evidence], weights: Mapping[str, Array]
) -> LayerNoise:
    own = evidence[pair.value]
    cause, phrase = reason(own, [evidence[name] for name in pair.sources], weights.get(pair.value))
    codes = pair.codes
    return LayerNoise(
        pair.layer,
        "" if pair.node is None else pair.node.op_type,
        pair.value,
        own.sqnr_db,
        codes is not None,
        None if codes is None else codes.low,
        None if codes is None else codes.high,
        own.least if math.isfinite(own.least) else 0.0,
        own.greatest if math.isfinite(own.greatest) else 0.0,
        cause,
        phrase,
    )
