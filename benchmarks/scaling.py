"""What work costs that several workers share: the measured unit costs of docs/scale.md.

Usage::

    python -m benchmarks.scaling                        # what is missing, then the page
    python -m benchmarks.scaling --parts workers        # one or two workers, the same 512 samples
    python -m benchmarks.scaling --parts samples models --models digits
    python -m benchmarks.scaling --page                 # only the page

Run it on a machine that does nothing else: the first part measures wall time, the others processor
time. Two workers are held against what the machine can give: two processes that do nothing but run
the model, against one. Results go to ``benchmarks/results/scaling.json``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxopt.passes.quantize.observing import requests_for
from onnxopt.passes.quantize.smoothing import smoothing_sites

from benchmarks import scaling_page
from benchmarks.results import Results
from benchmarks.zoo import model_path
from onnxopt.calibration import Observations, observe
from onnxopt.calibration.piecework import get_ready
from onnxopt.data import FeedRequest, FeedSource
from onnxopt.model import load, stage
from onnxopt.parallel import ALONE, Crew
from onnxopt.parallel.processes import Processes
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.regions import Product, products
from onnxopt.runtime.worker import Worker, shared_worker
from onnxopt.samples import Samples

__all__ = ["main"]

_PARTS = ("workers", "samples", "models")
_MODELS = ("digits", "lite0-folded", "minilm", "ocr-cls", "ocr-rec", "ocr-det")
#: The models and the number of samples that workers are compared on, and how often, in turn.
_SHARED, _SAMPLES, _ROUNDS = ("lite0-folded", "minilm", "ocr-det"), 512, 5
#: For so long the model is run, alone and in two processes, each time.
_CEILING_SECONDS = 1.0
#: The cost of one sample comes from passes over so many and so many more.
_FEW, _MANY = 128, 640


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--parts", nargs="+", default=_PARTS, choices=_PARTS)
    parser.add_argument("--models", nargs="+", default=_MODELS, choices=_MODELS)
    parser.add_argument("--samples", type=int, default=_SAMPLES, help="that workers share")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="of that comparison")
    parser.add_argument("--fresh", action="store_true", help="measure chosen rows again")
    parser.add_argument("--page", action="store_true", help="write the page and measure nothing")
    chosen = parser.parse_args(arguments)
    results = Results("scaling")
    for key, measure in () if chosen.page else _rows(chosen):
        if key not in results or chosen.fresh:
            results[key] = measure()
            print(key, results[key], flush=True)
    scaling_page.write(results)


def _rows(chosen: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    for model in _SHARED if "workers" in chosen.parts else ():
        if model in chosen.models:
            yield (
                f"workers/{model}",
                lambda model=model: _two_workers(model, chosen.samples, chosen.rounds),
            )
    for model in chosen.models:
        if "samples" in chosen.parts:
            yield f"samples/{model}", lambda model=model: _cost_of_samples(model)
        if "models" in chosen.parts:
            yield f"models/{model}", lambda model=model: _cost_of_model(model)


def _two_workers(name: str, count: int, rounds: int) -> dict[str, Any]:
    """The same samples observed by one worker and by two, in turn; workers are there already."""
    with _prepared(name, count) as (model, found, samples), Processes(2) as two:
        begun = time.perf_counter()
        get_ready(two)
        while len({*two.map(_who, range(2))}) < 2:
            pass
        start_seconds = time.perf_counter() - begun
        few = Samples(samples.read, _is_early)
        _observed(model, found, few, two)
        _observed(model, found, few, ALONE)
        seconds: dict[str, list[float]] = {"one": [], "two": []}
        equal = True
        for number in range(rounds):
            seen: dict[str, Observations] = {}
            order = [("one", ALONE), ("two", two)]
            for who, crew in order if number % 2 == 0 else order[::-1]:
                start = time.perf_counter()
                seen[who] = _observed(model, found, samples, crew)
                seconds[who].append(time.perf_counter() - start)
            equal = equal and _bits(seen["one"]) == _bits(seen["two"])
        ceilings = _ceilings(model, samples.first(1)[0], rounds)
    ratios = [one / two for one, two in zip(*seconds.values(), strict=True)]
    return {
        "model": name,
        "samples": count,
        "seconds_one": statistics.median(seconds["one"]),
        "seconds_two": statistics.median(seconds["two"]),
        "speedup": statistics.median(ratios),
        "ratios": ratios,
        "ceiling": statistics.median(ceilings),
        "ceilings": ceilings,
        "start_seconds": start_seconds,
        "bit_equal": equal,
    }


def _ceilings(model: ir.Model, feed: dict[str, Any], rounds: int) -> list[float]:
    """How many times as many runs two processes do as one, in turn; the model just runs."""
    with (
        tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder,
        Worker() as first,
        Worker() as second,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        path = stage(model, pathlib.Path(folder) / "model.onnx").path
        sessions = {worker: worker.open(path).session for worker in (first, second)}

        def runs_a_second(worker: Worker) -> float:
            (samples,) = worker.time([sessions[worker]], feed, _CEILING_SECONDS, 1)
            return len(samples) / sum(samples)

        found = []
        for _ in range(rounds):
            alone = runs_a_second(first)
            found.append(sum(pool.map(runs_a_second, (first, second))) / alone)
        return found


def _cost_of_samples(name: str) -> dict[str, Any]:
    """Seconds for one sample more, and what each piece of samples costs whoever gives them out."""
    with _prepared(name, _MANY) as (model, found, samples):
        spent = {}
        for count, chosen in ((_FEW, Samples(samples.read, _is_early)), (_MANY, samples)):
            start = _processor_seconds()
            with Worker() as worker:
                seen = _observed(model, found, chosen, ALONE, worker)
            spent[count] = _processor_seconds() - start
        content = sum(
            array.nbytes
            for observers in seen.observers.values()
            for observer in observers.values()
            for array in observer.arrays().values()
        )
        start = _processor_seconds()
        seen.merge(pickle.loads(pickle.dumps(seen)))
        merging = _processor_seconds() - start
    return {
        "seconds": (spent[_MANY] - spent[_FEW]) / (_MANY - _FEW),
        "piece_seconds": merging,
        "piece_bytes": content,
        "tensors": len(seen.observers),
    }


def _cost_of_model(name: str) -> dict[str, Any]:
    """Seconds for one model with the exact passes, and those of them that are timing."""
    source = model_path(name)
    spent = {}
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        target, report = pathlib.Path(folder) / "model.onnx", pathlib.Path(folder) / "run.json"
        for timed in (False, True):
            how = ["--report", str(report)] if timed else ["--no-speed-guard"]
            command = [sys.executable, "-m", "onnxopt", "optimize", str(source), str(target), "-q"]
            start = _processor_seconds()
            subprocess.run([*command, "--passes", "exact", *how], check=True)
            spent[timed] = _processor_seconds() - start
    return {
        "seconds": spent[True],
        "timing_seconds": max(0.0, spent[True] - spent[False]),
        "bytes": source.stat().st_size,
    }


def _processor_seconds() -> float:
    """What this process and those that it has ended took of processors: the wall time of work that
    is not divided, on a machine that does nothing else.
    """
    return sum(os.times()[:4])


@contextlib.contextmanager
def _prepared(name: str, count: int) -> Iterator[tuple[ir.Model, list[Product], Samples]]:
    """A model after the exact passes, its products, and samples of it in a file."""
    source = model_path(name)
    model = load(source)
    feeds = FeedSource(model, None, FeedRequest(seeds=(1,)))
    with Worker() as worker:
        info = worker.open(source)
        feed = feeds.feeds(lambda each: worker.run(info.session, each), 1)[0]
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        path = pathlib.Path(folder) / "samples.npz"
        np.savez(
            path,
            allow_pickle=False,
            **{each: _alike(array, count, generator) for each, array in feed.items()},
        )
        samples = Samples(FeedSource(model, path).files)
        PassManager(parse_pipeline("exact")).run(model)
        found = [each for each in products(model.graph) if isinstance(each, Product)]
        yield model, found, samples


def _alike(array: Any, count: int, generator: np.random.Generator) -> Any:
    """A stack of arrays with the numbers of one in another order."""
    stack = np.repeat(array[:1], count, axis=0)
    return stack if array.dtype.kind in "biu" else generator.permuted(stack, axis=-1)


def _observed(
    model: ir.Model,
    found: list[Product],
    samples: Samples,
    crew: Crew,
    worker: Worker | None = None,
) -> Observations:
    """What quantization looks at by default."""
    return observe(
        model,
        samples,
        requests_for(model, found, smoothing_sites(model), "medium"),
        worker=worker or shared_worker(),
        crew=crew,
        skip_unobservable=True,
    )


def _who(model: pathlib.Path | bytes | None, job: int) -> int:
    """Which process does a job; it takes long enough for another to take the next."""
    del model, job
    time.sleep(0.02)
    return os.getpid()


def _is_early(position: int) -> bool:
    return position < _FEW


def _bits(seen: Observations) -> Any:
    return {
        (tensor, spec, name): array.tobytes()
        for tensor, observers in seen.observers.items()
        for spec, observer in observers.items()
        for name, array in observer.arrays().items()
    }, seen.digest


if __name__ == "__main__":
    main()
