"""Whether 8-bit products overflow on x86 without VNNI, kernel by kernel and on whole models.

Usage::

    apt-get install qemu-user
    python -m benchmarks.saturation DATA          # what is missing in the results, and the table
    python -m benchmarks.saturation               # without the models that need DATA
    python -m benchmarks.saturation DATA --fresh  # all over again
    python -m benchmarks.saturation --page        # only the tables of docs/quantization.md

The kernels are those of the installed ONNX Runtime, run on a processor with AVX2 and nothing newer.
QEMU emulates one wherever it is not at hand; it computes ``vpmaddubsw`` as the manual says. What is
written down of each kernel is how far its results are from exact ones, in steps of 8-bit numbers.

DATA is the folder of ``photos64.npz`` and ``movie_sentences.npz`` that `benchmarks.quantization`
reads too.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from benchmarks import quantization_data, saturation_page
from benchmarks.quantization_recipes import static_u8s8
from benchmarks.results import Results
from benchmarks.saturation_kernels import NAMES, cases
from benchmarks.saturation_worker import run
from benchmarks.zoo import model_path

__all__ = ["EMULATOR", "kernel_rows", "main"]

Array = np.ndarray[Any, Any]

#: AVX2, and neither AVX512 nor VNNI.
EMULATOR = ("qemu-x86_64", "-cpu", "Haswell")
_ROOT = pathlib.Path(__file__).parents[1]
_FASHION_MNIST = _ROOT / "models" / "fashion_mnist"
#: Samples to calibrate on; as many others are judged.
_SAMPLES = 32
_SQNR_LIMIT = 10.0
#: The model that needs no folder of samples.
_OWN = "fashion-mnist"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", nargs="?", type=pathlib.Path, help="photos and sentences")
    parser.add_argument("--models", nargs="+", default=list(_MODELS), choices=list(_MODELS))
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--page", action="store_true", help="write the tables and run nothing")
    chosen = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # the peer's advice, which was followed
    results = Results("saturation")
    if not chosen.page:
        if shutil.which(EMULATOR[0]) is None:
            parser.error(f"{EMULATOR[0]} is not there; Debian and Ubuntu have it in qemu-user")
        if chosen.fresh or not all(f"kernel/{name}" in results for name in NAMES):
            results.update(kernel_rows())
        for name in chosen.models:
            if f"model/{name}" in results and not chosen.fresh:
                continue
            if chosen.data is None and name != _OWN:
                print(f"{name}: left out, since it needs the folder of samples", flush=True)
                continue
            results[f"model/{name}"] = _model_row(name, chosen.data)
            print(name, results[f"model/{name}"], flush=True)
    saturation_page.write(results)


def kernel_rows() -> dict[str, dict[str, Any]]:
    """How far every kernel is from exact results, by scheme and level, in steps."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        made = list(cases())
        for index, (_, _, each, feeds) in enumerate(made):
            onnx.save(each.model, folder / f"{index:04}.onnx")
            np.savez(folder / f"{index:04}.npz", x=feeds)
        target = _emulate(folder)
        for index, (name, scheme, each, feeds) in enumerate(made):
            onnx.save(each.exact, folder / "exact.onnx")
            (exact,) = run(folder / "exact.onnx", {"x": feeds}, "disabled")
            found = {}
            for level in ("default", "disabled"):
                result = np.load(folder / f"{index:04}.{level}.npz")["0"]
                found[level] = round(float(np.abs(result - exact).max()) / each.step, 3)
            rows.setdefault(f"kernel/{name}", {"target": target})[scheme] = found
    return rows


def _emulate(folder: pathlib.Path) -> str:
    """Run all models of a folder without VNNI; what the processor is taken for."""
    command = [*EMULATOR, sys.executable, "-m", "benchmarks.saturation_worker", str(folder)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{EMULATOR[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return str(json.loads((folder / "machine.json").read_text())["target"])


def _model_row(name: str, data: pathlib.Path | None) -> dict[str, Any]:
    """A model quantized in three ways: fidelity there, here, and without optimizations."""
    original, samples = _MODELS[name](data)
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        calibration, runs = folder / "calibration", folder / "runs"
        calibration.mkdir()
        runs.mkdir()
        for index, feed in enumerate(samples[:_SAMPLES]):
            np.savez(calibration / f"{index:04}.npz", allow_pickle=False, **feed)
        judged = {key: np.stack([each[key] for each in samples[_SAMPLES:]]) for key in samples[0]}
        for scheme, quantize in _QUANTIZERS.items():
            file = runs / f"{scheme}.onnx"
            quantize(original, calibration, file)
            np.savez(file.with_suffix(".npz"), allow_pickle=False, **judged)
        row["target"] = _emulate(runs)
        exact = run(original, judged, "disabled")
        for scheme in _QUANTIZERS:
            there, plain = (_outputs(runs, scheme, each) for each in ("default", "disabled"))
            here = run(runs / f"{scheme}.onnx", judged, "default")
            row[scheme] = {
                "products": _products(runs / f"{scheme}.onnx"),
                "sqnr_db": _sqnr(exact, there),
                "sqnr_db_disabled": _sqnr(exact, plain),
                "sqnr_db_here": _sqnr(exact, here),
                "steps": _steps(plain, there),
                "steps_here": _steps(run(runs / f"{scheme}.onnx", judged, "disabled"), here),
                "decided_alike": _alike(exact, there),
            }
    return row


def _outputs(folder: pathlib.Path, stem: str, level: str) -> list[Array]:
    found = np.load(folder / f"{stem}.{level}.npz")
    return [found[key] for key in found.files]


def _products(file: pathlib.Path) -> int:
    """Products whose weights are stored in 8 bits."""
    graph = onnx.load(file).graph
    narrow = {
        tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8
    }
    made = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in narrow
    }
    products = (
        node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm", "MatMulInteger")
    )
    return sum(node.input[1] in made | narrow for node in products)


def _sqnr(exact: list[Array], made: list[Array]) -> float:
    """dB, of the worst output."""
    return min(
        10
        * float(
            np.log10(
                np.square(a, dtype=np.float64).sum() / np.square(a - b, dtype=np.float64).sum()
            )
        )
        for a, b in zip(exact, made, strict=True)
    )


def _steps(plain: list[Array], made: list[Array]) -> dict[str, float]:
    """How far results are from those without optimizations, in 255ths of the output's range."""
    apart = np.concatenate([
        np.abs(a - b).reshape(-1) * 255 / float(max(a.max(), 0) - min(a.min(), 0))
        for a, b in zip(plain, made, strict=True)
    ])  # fmt: skip
    return {"most": float(apart.max()), "rms": float(np.sqrt(np.square(apart).mean()))}


def _alike(exact: list[Array], made: list[Array]) -> float:
    return float((exact[0].argmax(-1) == made[0].argmax(-1)).mean())


Model = tuple[pathlib.Path, list[dict[str, Array]]]


def _fashion_mnist(data: pathlib.Path | None) -> Model:
    del data
    images = np.load(_FASHION_MNIST / "calibration.npz")["image"][: 2 * _SAMPLES]
    return _FASHION_MNIST / "fashion_mnist.onnx", [{"image": each[None]} for each in images]


def _zoo(name: str) -> Callable[[pathlib.Path | None], Model]:
    def locate(data: pathlib.Path | None) -> Model:
        assert data is not None
        return model_path(name), list(quantization_data.feeds(name, data, range(2 * _SAMPLES)))

    return locate


_MODELS: Mapping[str, Callable[[pathlib.Path | None], Model]] = {
    _OWN: _fashion_mnist,
    **{name: _zoo(name) for name in ("digits", "ocr-cls", "lite0-folded")},
}


def _ours(target: str) -> Callable[[pathlib.Path, pathlib.Path, pathlib.Path], None]:
    """All that keeps a loose budget in 8 bits, whether or not it is faster on this machine."""

    def quantize(model: pathlib.Path, data: pathlib.Path, made: pathlib.Path) -> None:
        import onnxopt
        from onnxopt.accuracy import Budget
        from onnxopt.settings import Settings

        settings = Settings(
            data=data,
            target=target,
            goal="size",
            guard_speed=False,
            effort="low",
            passes="exact,quantize{scheme=static}",
            budget=Budget(min_sqnr=_SQNR_LIMIT, min_agreement=None),
        )
        onnxopt.optimize(model, made, settings)

    return quantize


_QUANTIZERS = {
    "pair-safe": _ours("avx2"),
    "eight": _ours("vnni"),
    "reduce_range": static_u8s8,
}


if __name__ == "__main__":
    main()
