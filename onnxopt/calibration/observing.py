"""Run the samples through the float model once and observe the tensors that were asked for."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxopt.calibration.fingerprint import DIGEST_MODULUS, feed_digest, fingerprints
from onnxopt.calibration.observations import Observations
from onnxopt.calibration.observer import ObserverSpec
from onnxopt.calibration.piecework import observed_by_crew
from onnxopt.calibration.sweep import Seen, Sweep
from onnxopt.calibration.watch import TensorWatch
from onnxopt.data import Portable
from onnxopt.errors import CalibrationError, SampleError
from onnxopt.model import load, stage
from onnxopt.parallel import ALONE, Alone, Crew
from onnxopt.runtime.worker import Worker, shared_worker
from onnxopt.traversal import all_graphs

__all__ = ["observe"]

Feed = Mapping[str, Any]
Requests = Mapping[str, Sequence[ObserverSpec[Any]]]


def observe(
    model: ir.Model | str | os.PathLike[str],
    samples: Iterable[Feed],
    requests: Requests,
    *,
    worker: Worker | None = None,
    crew: Crew = ALONE,
    threads: int = 1,
    known: Observations | None = None,
    skip_unobservable: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Observations:
    """Run the samples one by one and observe tensors of the main graph, inputs included.

    Memory does not depend on the number of samples: they are read as they are needed, and
    observers, which live in the child process, are of fixed size. Tensors of the bodies of control
    flow and of local functions, constants, and tensors that hold no floating-point numbers are left
    alone, with the reason in the result.

    Args:
        model: The model, or its path. It is left as it is.
        samples: Feeds; their shapes may differ. Read once, or twice when ``known`` is given.
        requests: What to observe, by tensor name.
        worker: Where to run the model, if nobody else does.
        crew: Who runs it. What is observed does not depend on it, to the last bit.
        threads: Threads for one operator.
        known: Observations from before. Those of the same samples and of tensors with the same
            fingerprint are taken over instead of being made again.
        skip_unobservable: Leave tensors alone that turn out to hold NaN or infinity, or not to fit
            what was asked of them, instead of giving up.
        on_step: Told how far it is.

    Raises:
        CalibrationError: When there are no samples, the model has no tensor of a name, or a tensor
            cannot be observed; names the tensor and the sample.
        RuntimeRefusalError: When the runtime does not take the model or a sample.
        RuntimeCrashError: When the runtime dies.
        WorkerLostError: When workers of the crew do.
    """
    if not isinstance(model, ir.Model):
        model = load(model)
    result = Observations(left_alone=_unobservable(model, requests))
    wanted = {
        name: dict.fromkeys(requests[name])
        for name in _in_order(model, requests)
        if name not in result.left_alone and requests[name]
    }
    result.fingerprints = fingerprints(model, wanted)
    if known is not None and _digest(samples) == (known.samples, known.digest):
        _take_over(known, wanted, result)
    missing = _missing(wanted, result)
    if known is not None and not missing:
        result.samples, result.digest = known.samples, known.digest
        return result
    watches = {name: TensorWatch(specs, skip_unobservable) for name, specs in missing.items()}
    total = _seen(model, samples, watches, worker, crew, threads, on_step)
    if not total.samples:
        raise CalibrationError("there are no samples to observe")
    _take_in(total, result)
    return result


def _missing(
    wanted: Mapping[str, Iterable[ObserverSpec[Any]]], result: Observations
) -> dict[str, list[ObserverSpec[Any]]]:
    """What is wanted and not in the result yet."""
    missing = {
        name: [spec for spec in specs if spec not in result.observers.get(name, {})]
        for name, specs in wanted.items()
    }
    return {name: specs for name, specs in missing.items() if specs}


def _seen(
    model: ir.Model,
    samples: Iterable[Feed],
    watches: Mapping[str, TensorWatch],
    worker: Worker | None,
    crew: Crew,
    threads: int,
    on_step: Callable[[str], None],
) -> Seen:
    """Run the model on all samples, here or by a crew, and see what the watches are for."""
    blocks = any(node.op_type == "Conv" for node in model.graph)
    try:
        with _observable(model, watches) as path:
            if not isinstance(crew, Alone):
                return observed_by_crew(
                    crew, path, samples, watches, threads, on_step, let_through=blocks
                )
            chosen = worker or shared_worker()
            with Sweep(path, watches, chosen, threads, let_through=blocks) as sweep:
                return sweep.all_pieces(samples, on_step)
    except SampleError as error:
        if not isinstance(samples, Portable) or not isinstance(error.sample, int):
            raise
        raise SampleError(error.problem, samples.place(error.sample)) from error


def _take_in(total: Seen, result: Observations) -> None:
    """Put what was seen into the result, and why some of it was given up."""
    result.samples, result.digest = total.samples, total.digest
    for name, watch in total.watches.items():
        if watch.given_up:
            result.left_alone[name] = watch.given_up
            result.observers.pop(name, None)
        else:
            result.observers.setdefault(name, {}).update(watch.observers)


def _in_order(model: ir.Model, names: Iterable[str]) -> list[str]:
    """Names of tensors in the order in which they are computed: the first to go wrong is named."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    places = {value.name: place for place, value in enumerate(values)}
    return sorted(names, key=lambda name: places.get(name, -1))


@contextlib.contextmanager
def _observable(model: ir.Model, names: Iterable[str]) -> Iterator[pathlib.Path]:
    """The model in a file, with these tensors as outputs besides its own."""
    made = {value.name: value for node in model.graph for value in node.outputs}
    outputs = {value.name for value in model.graph.outputs}
    added = [made[name] for name in names if name in made and name not in outputs]
    with tempfile.TemporaryDirectory(prefix="onnxopt-observed-") as folder:
        model.graph.outputs.extend(added)
        try:
            staged = stage(model, pathlib.Path(folder) / "model.onnx")
        finally:
            for _ in added:
                model.graph.outputs.pop()  # after `del` they would still say that they are outputs
        yield staged.path


def _unobservable(model: ir.Model, names: Iterable[str]) -> dict[str, str]:
    """Why tensors cannot be observed, for those that the model has but cannot be looked at.

    Raises:
        CalibrationError: When the model has no tensor of a name.
    """
    constants = {*model.graph.initializers} - {value.name for value in model.graph.inputs}
    constants |= {
        v.name for n in model.graph if n.op_type == "Constant" for v in n.outputs if v.name
    }
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    own = {value.name: value for value in values}
    inner: set[str | None] = set()
    for graph in all_graphs(model.graph):
        inner.update(value.name for value in (*graph.inputs, *graph.initializers.values()))
        inner.update(value.name for node in graph for value in node.outputs)
    reasons = {}
    for name in names:
        if name in constants:
            reasons[name] = "is a constant"
        elif name in own:
            dtype = own[name].dtype
            if dtype is not None and not dtype.is_floating_point():
                reasons[name] = "holds no floating-point numbers"
        elif name in inner:
            reasons[name] = "is inside the body of control flow"
        else:
            raise CalibrationError(f"the model has no tensor '{name}' to observe")
    return reasons


def _digest(samples: Iterable[Feed]) -> tuple[int, int]:
    """Number and summed hashes of samples."""
    digests = [feed_digest(feed) for feed in samples]
    return len(digests), sum(digests) % DIGEST_MODULUS


def _take_over(
    known: Observations, wanted: Mapping[str, Iterable[ObserverSpec[Any]]], result: Observations
) -> None:
    for name, specs in wanted.items():
        for spec in specs:
            found = known.matching(result.fingerprints.get(name, ""), spec)
            if found is not None:
                result.observers.setdefault(name, {})[spec] = found
