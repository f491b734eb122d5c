"""Pruned channels: how exactly they are folded, what that gains, and pruning in one shot.

Usage::

    pip install --no-deps torch-pruning==1.6.1
    python -m benchmarks.channels exact          # beside dropping constants, and beside onnxsim
    python -m benchmarks.channels gain           # half of the channels of two networks
    python -m benchmarks.channels widths         # what odd widths cost
    python -m benchmarks.channels oneshot --data DATA

``oneshot`` prunes real models without training, by 10, 20 and 30 % of the MACs. It needs samples:
the folder that `benchmarks.quantization_data` reads, or an .npz file with arrays by input name, for
the model that is named. What is in the results already is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from benchmarks.peers import peer_python
from benchmarks.quantization_data import feeds as zoo_feeds
from benchmarks.results import Results
from benchmarks.zoo import model_path
from onnxopt.accuracy import Budget, fidelity
from onnxopt.analysis.inspection import inspect_model
from onnxopt.model import load, save
from onnxopt.pass_contract import PassReport
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.statistics import ratio
from onnxopt.runtime.trial import race
from onnxopt.runtime.worker import Worker, shared_worker
from onnxopt.samples import Samples, split
from onnxopt.workbench import Workbench

__all__ = ["SAMPLES", "main"]

Array = np.ndarray[Any, Any]
Feed = dict[str, Any]

_RACE_SECONDS = 20.0
_AMOUNTS = (0.1, 0.2, 0.3)
#: Of a folder of data; every fourth is kept back.
SAMPLES = range(64)
#: Ours, without what is measured on data, and with magnitudes alone.
_WAYS = {
    "onnxopt": "",
    "onnxopt, no compensation": "compensate=false",
    "magnitude alone": "compensate=false,criterion=l2,spread=uniform",
}
_ONNXSIM = """
import sys, onnx, onnxsim
model = onnxsim.apply_structured_pruning_cpp(onnx.load(sys.argv[1]), float(sys.argv[3]))
onnx.save(model, sys.argv[2])
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("suite", choices=("exact", "gain", "widths", "oneshot"))
    parser.add_argument("--model", default="lite0-folded", help="of the zoo, for oneshot")
    parser.add_argument("--data", type=pathlib.Path, help="samples, for oneshot")
    parser.add_argument("--fresh", action="store_true", help="measure all of the suite again")
    chosen = parser.parse_args(arguments)
    suite = "oneshot-" + chosen.model if chosen.suite == "oneshot" else chosen.suite
    results = Results(f"channels-{suite}", fresh=chosen.fresh)
    match chosen.suite:
        case "exact":
            _exact(results)
        case "gain":
            _gain(results)
        case "widths":
            _widths(results)
        case "oneshot":
            if chosen.data is None:
                parser.error("oneshot needs --data")
            _oneshot(results, chosen.model, chosen.data)


def _tell(results: Results, key: str, row: dict[str, Any]) -> None:
    results[key] = row
    print(f"{key}: {row}", flush=True)


def _folded(source: pathlib.Path, target: pathlib.Path) -> int:
    """Run the default pipeline; how many channels were removed."""
    model = load(source)
    reports = PassManager(parse_pipeline("exact")).run(model)
    save(model, target)
    return _removed(reports)


def _removed(reports: Sequence[PassReport]) -> int:
    return sum(
        report.outcome.rewritten.total()
        for report in reports
        if report.name == "fold-pruned-channels"
    )


def _outputs(path: pathlib.Path, feeds: Sequence[Feed], level: str = "all") -> list[Array]:
    worker = shared_worker()
    info = worker.open(path, level=level)
    try:
        return [worker.run(info.session, feed)[0] for feed in feeds]
    finally:
        worker.close(info.session)


def _off(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """The largest error over the largest magnitude."""
    errors = [float(np.abs(one - two).max()) for one, two in zip(expected, actual, strict=True)]
    return max(errors) / max(float(np.abs(one).max()) for one in expected)


# Exactness


def _exact(results: Results) -> None:
    import torch

    from benchmarks.channel_nets import (
        Gated,
        MobileNet,
        ResNet50,
        Transformer,
        export,
        prepared,
        prune_half,
        silence,
    )

    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.standard_normal(shape).astype(np.float32)}
        for shape in ((2, 3, 96, 96), (1, 3, 128, 80))
    ]
    for name, make in (
        ("resnet50-like", ResNet50),
        ("mobilenet-like", MobileNet),
        ("gated", Gated),
        ("transformer", Transformer),
    ):
        if f"exact/{name}" in results:
            continue
        torch.manual_seed(0)
        net = prepared(make())
        prune_half(net)
        with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
            paths = {
                each: pathlib.Path(folder) / f"{each}.onnx"
                for each in ("given", "folded", "dropped", "onnxsim")
            }
            export(net, paths["given"], (2, 3, 96, 96), (0, 2, 3))
            count = _folded(paths["given"], paths["folded"])
            silence(net)
            export(net, paths["dropped"], (2, 3, 96, 96), (0, 2, 3))
            expected = _outputs(paths["given"], feeds)
            row: dict[str, Any] = {
                "channels_removed": count,
                "onnxopt": _off(expected, _outputs(paths["folded"], feeds)),
                "dropped": _off(expected, _outputs(paths["dropped"], feeds)),
            }
            row["onnxsim"] = _peer_error(paths["given"], paths["onnxsim"], expected, feeds)
            row["int8"] = _exact_in_8_bits(paths["given"], pathlib.Path(folder), feeds)
            row["parameters"] = {
                each: inspect_model(load(paths[each])).parameters
                for each in ("given", "folded", "onnxsim")
                if paths[each].exists()
            }
        _tell(results, f"exact/{name}", row)


def _exact_in_8_bits(
    source: pathlib.Path, folder: pathlib.Path, feeds: Sequence[Feed]
) -> dict[str, Any]:
    """The same network as ONNX Runtime's own tool quantizes it, folded and by onnxsim."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._left, None)

    paths = {each: folder / f"int8-{each}.onnx" for each in ("plain", "given", "folded", "onnxsim")}
    quant_pre_process(source, paths["plain"], skip_symbolic_shape=True)
    quantize_static(
        paths["plain"],
        paths["given"],
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
    )
    model = load(paths["given"])
    passes = parse_pipeline("infer-shapes,fold-pruned-channels")
    reports = PassManager(passes).run(model)
    save(model, paths["folded"])
    expected = _outputs(paths["given"], feeds)
    plainly = _outputs(paths["given"], feeds, level="disabled")
    return {
        # Convolutions that the runtime runs in float round differently in other kernels.
        "itself": _off(expected, plainly),
        "channels_removed": _removed(reports),
        "onnxopt": _off(expected, _outputs(paths["folded"], feeds)),
        "onnxsim": _peer_error(paths["given"], paths["onnxsim"], expected, feeds),
    }


def _peer_error(
    source: pathlib.Path, target: pathlib.Path, expected: Sequence[Array], feeds: Sequence[Feed]
) -> float | str:
    """What onnxsim's structured pruning makes of a model half of whose filters are zero."""
    try:
        command = [peer_python(), "-c", _ONNXSIM, str(source), str(target), "0.5"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        return _off(expected, _outputs(target, feeds))
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip().splitlines()[-1][:120]
    except Exception as error:  # a model that does not run is a result
        return str(error)[:120]


# Gain


def _gain(results: Results) -> None:
    import torch

    from benchmarks.channel_nets import MobileNet, ResNet50, export, prepared, prune_half

    for name, make, depthwise in (
        ("resnet50-like", ResNet50, True),
        ("mobilenet-like", MobileNet, True),
        ("mobilenet-like, depthwise kept", MobileNet, False),
    ):
        if f"gain/{name}" in results:
            continue
        torch.manual_seed(0)
        net = prepared(make())
        prune_half(net, depthwise=depthwise)
        with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
            given, plain, folded = (
                pathlib.Path(folder) / f"{each}.onnx" for each in ("given", "plain", "folded")
            )
            export(net, given, (1, 3, 224, 224), (0,))
            _folded(given, folded)
            model = load(given)
            pipeline = [
                each for each in parse_pipeline("exact") if each.name != "fold-pruned-channels"
            ]
            PassManager(pipeline).run(model)
            save(model, plain)
            feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)}
            expected, actual = _outputs(given, [feed]), _outputs(folded, [feed])
            times = race(shared_worker(), [given, plain, folded], feed, seconds=_RACE_SECONDS)
            row: dict[str, Any] = {"error": _off(expected, actual)}
            for each, path, samples in zip(
                ("given", "without_folding", "folded"), (given, plain, folded), times, strict=True
            ):
                facts = inspect_model(load(path), {"x": (1, 3, 224, 224)})
                row[each] = {
                    "parameters": facts.parameters,
                    "bytes": path.stat().st_size,
                    "macs": facts.macs_number,
                    "ms": float(np.median(samples)) * 1e3,
                }
            row["speed"] = dataclasses.asdict(ratio(times[0], times[2]))
            row["speed_of_least_times"] = min(times[0]) / min(times[2])
        _tell(results, f"gain/{name}", row)


# Widths


def _widths(results: Results) -> None:
    """Time of layers with one to eight channels less than 64, over that of 64."""
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal((1, 64, 28, 28), np.float32)}
    for kind in ("1x1", "3x3", "depthwise"):
        if f"widths/{kind}" in results:
            continue
        with tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
            paths = []
            for width in range(64, 47, -1):
                path = pathlib.Path(folder) / f"{width}.onnx"
                onnx.save(_chain(kind, width, rng), path)
                paths.append(path)
            times = race(shared_worker(), paths, feed, seconds=_RACE_SECONDS)
        # The least time: what else runs on a machine only ever adds to it.
        row = {str(64 - i): min(each) / min(times[0]) for i, each in enumerate(times)}
        _tell(results, f"widths/{kind}", row)


def _chain(kind: str, width: int, rng: np.random.Generator) -> onnx.ModelProto:
    """A convolution to the width, one at that width, and one back."""

    def weights(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {"a": weights(width, 64, 1, 1), "c": weights(64, width, 1, 1)}
    if kind == "depthwise":
        arrays["b"], extra = weights(width, 1, 3, 3), f"group = {width}, pads = [1, 1, 1, 1]"
    elif kind == "3x3":
        arrays["b"], extra = weights(width, width, 3, 3), "pads = [1, 1, 1, 1]"
    else:
        arrays["b"], extra = weights(width, width, 1, 1), "group = 1"
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[1, 64, 28, 28] x) => (float[1, 64, 28, 28] y) {{
            p = Conv(x, a)  q = Relu(p)  r = Conv <{extra}> (q, b)  s = Relu(r)  y = Conv(s, c)
        }}"""
    )
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


# Pruning in one shot


def _oneshot(results: Results, name: str, data: pathlib.Path) -> None:
    path = model_path(name)
    feeds = list(zoo_feeds(name, data, SAMPLES)) if data.is_dir() else _feeds(path, data)
    calibration, held_out = split(lambda: feeds)
    names = [value.name or "" for value in load(path).graph.outputs]
    with Worker() as worker, tempfile.TemporaryDirectory(prefix="onnxopt-bench-") as folder:
        bench = Workbench(path, calibration, held_out, True, Budget(), worker)
        expected = _all_outputs(worker, path, held_out)
        target = pathlib.Path(folder) / "pruned.onnx"
        for way, options in _WAYS.items():
            for amount in _AMOUNTS:
                if f"oneshot/{name}/{amount}/{way}" in results:
                    continue
                model = load(path)
                start = time.perf_counter()
                text = f"exact,prune-channels{{amount={amount}{',' if options else ''}{options}}}"
                PassManager(parse_pipeline(text), workbench=bench).run(model)
                seconds = time.perf_counter() - start
                save(model, target)
                row = _compared(worker, path, target, expected, held_out, names)
                _tell(results, f"oneshot/{name}/{amount}/{way}", {**row, "seconds": seconds})
        for amount in _AMOUNTS:
            if f"oneshot/{name}/{amount}/onnxsim" in results:
                continue
            # Its sparsity is that of single layers: cost falls with inputs and outputs.
            command = [peer_python(), "-c", _ONNXSIM, str(path), str(target), str(amount)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            key = f"oneshot/{name}/{amount}/onnxsim"
            if done.returncode:
                _tell(results, key, {"failed": done.stderr.strip().splitlines()[-1][:120]})
                continue
            _tell(results, key, _compared(worker, path, target, expected, held_out, names))


def _feeds(path: pathlib.Path, data: pathlib.Path) -> list[Feed]:
    inputs = [value.name or "" for value in load(path).graph.inputs]
    with np.load(data) as arrays:
        stacks = {name: arrays[name] for name in inputs}
    count = len(next(iter(stacks.values())))
    return [{name: each[place] for name, each in stacks.items()} for place in range(count)]


def _all_outputs(worker: Worker, path: pathlib.Path, samples: Samples) -> list[list[Any]]:
    info = worker.open(path)
    try:
        return [worker.run(info.session, feed) for feed in samples]
    finally:
        worker.close(info.session)


def _compared(
    worker: Worker,
    before: pathlib.Path,
    after: pathlib.Path,
    expected: list[list[Any]],
    samples: Samples,
    names: list[str],
) -> dict[str, Any]:
    found = fidelity(expected, _all_outputs(worker, after, samples), names)
    feed = samples.first(1)[0]
    shapes = {name: np.asarray(value).shape for name, value in feed.items()}
    costs = [_macs(path, shapes) for path in (before, after)]
    agreement = found.agreement
    times = race(worker, [before, after], feed, seconds=4.0)
    return {
        "sqnr_db": found.sqnr_db,
        "cosine": found.cosine,
        "agreement": None if agreement is None else agreement.fraction,
        "macs": costs[1] / costs[0],
        "bytes": after.stat().st_size / before.stat().st_size,
        "speed": float(np.median(times[0]) / np.median(times[1])),
    }


def _macs(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> float:
    """MACs once shapes that the model computes are known."""
    model = load(path)
    PassManager(parse_pipeline("exact")).run(model)
    return float(inspect_model(model, shapes).macs_number or np.nan)


if __name__ == "__main__":
    main(sys.argv[1:])
