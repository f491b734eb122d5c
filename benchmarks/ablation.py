"""What each part of the long road is worth: Fashion-MNIST, three seeds, in float32 and int8.

Usage::

    python -m benchmarks.ablation DATA                       # what is missing in the results
    python -m benchmarks.ablation DATA --seeds 0             # one seed at a time
    python -m benchmarks.ablation --page                     # only the table

DATA is a folder with ``fashion_mnist.npz``. The teacher of ``models/fashion_resnet`` is pruned
once, as its recipe says, and then trained on labels alone, on the teacher alone, and on both, each
with the recipe's loop and each quantized afterwards without a budget. Counted are right answers on
the 10,000 test images, which nothing was trained on or chosen by; each model is timed in turn with
the teacher. One training takes two to three minutes on an idle core; an interrupted one goes on
where it stopped, as long as the folder ``--work`` stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.markdown import between_marks, span
from benchmarks.results import Results
from models.fashion_mnist import dataset
from models.fashion_mnist.evaluate import count_correct
from models.fashion_resnet.samples import write
from onnxopt.runtime.statistics import ratio
from onnxopt.runtime.trial import race
from onnxopt.runtime.worker import shared_worker

__all__ = ["main", "table", "write_page"]

_FOLDER = pathlib.Path(__file__).parents[1] / "models" / "fashion_resnet"
_TEACHER, _RECIPE = _FOLDER / "teacher.onnx", _FOLDER / "recipe.toml"
_SEEDS = (0, 1, 2)
#: Share of the labels in the loss; None where the teacher alone is listened to.
_TRAININGS = {"labels": 1.0, "teacher": None, "both": 0.5}
_NAMES = {
    "original": "the teacher",
    "pruned": "pruned, not trained",
    "labels": "trained on labels alone",
    "teacher": "taught by the teacher alone, without labels",
    "both": "both, half and half",
}
_CALIBRATION = 512
_RACE_SECONDS = 4.0
_WORK = pathlib.Path(__file__).parent / ".ablation"
_PAGE = _FOLDER / "README.md"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", nargs="?", type=pathlib.Path, help="where fashion_mnist.npz is")
    parser.add_argument("--seeds", nargs="+", type=int, default=_SEEDS)
    parser.add_argument("--trainings", nargs="+", default=list(_TRAININGS), choices=_TRAININGS)
    parser.add_argument("--work", type=pathlib.Path, default=_WORK)
    parser.add_argument("--page", action="store_true", help="write the table and measure nothing")
    chosen = parser.parse_args(arguments)
    results = Results("ablation")
    if not chosen.page:
        if chosen.data is None:
            parser.error("say which folder fashion_mnist.npz is in")
        _Ablation(chosen.data, chosen.work, results).run(chosen.seeds, chosen.trainings)
    write_page(results)
    print(table(results))


class _Ablation:
    """One run over what is missing.

    Args:
        data: Folder of ``fashion_mnist.npz``.
        work: Folder for models.
        results: Where to note what is found.
    """

    def __init__(self, data: pathlib.Path, work: pathlib.Path, results: Results) -> None:
        self._train, self._test = work / "train.npz", work / "test.npz"
        self._work, self._results = work, results
        self._calibration = work / "calibration"
        self._calibration.mkdir(parents=True, exist_ok=True)
        if not self._test.exists():
            write(dataset.load(data / "fashion_mnist.npz"), work)
        with np.load(self._train) as arrays:
            images = arrays["image"]
        step = len(images) // _CALIBRATION
        for number in range(0, step * _CALIBRATION, step):
            np.savez(self._calibration / f"{number:07}.npz", image=images[number : number + 1])

    def run(self, seeds: list[int], trainings: list[str]) -> None:
        """Measure what is not known."""
        self._count("original", _TEACHER)
        pruned = self._pruned()
        self._count("pruned", pruned)
        self._count("pruned/int8", self._quantized(pruned))
        for seed in seeds:
            for name in trainings:
                key = f"{name}/{seed}"
                if key in self._results and f"{key}/int8" in self._results:
                    continue
                path = self._work / f"{name}-{seed}.onnx"
                if key not in self._results or not path.exists():
                    facts = self._train_student(pruned, path, name, seed)
                    self._count(key, path, facts)
                self._count(f"{key}/int8", self._quantized(path))

    def _count(self, key: str, path: pathlib.Path, facts: dict[str, Any] | None = None) -> None:
        if key not in self._results:
            correct, images = count_correct(path, self._test)
            row: dict[str, Any] = {
                "correct": correct,
                "images": images,
                "bytes": path.stat().st_size,
            }
            if path != _TEACHER:
                with np.load(self._test) as arrays:
                    feed = {"image": arrays["image"][:1]}
                times = race(shared_worker(), [_TEACHER, path], feed, seconds=_RACE_SECONDS)
                speed = ratio(*times)
                row["speed"] = [speed.median, speed.low, speed.high]
            self._results[key] = {**row, **(facts or {})}
            print(f"{key}: {correct / images:.2%}", file=sys.stderr)

    def _pruned(self) -> pathlib.Path:
        from onnxopt.compress_recipe import read_compress_recipe

        settings = read_compress_recipe(_RECIPE).settings
        passes = settings.prune.replace("$amount", f"{settings.amount:g}").replace("$of", "macs")
        return self._optimized(_TEACHER, self._work / "pruned.onnx", passes)

    def _quantized(self, path: pathlib.Path) -> pathlib.Path:
        return self._optimized(path, path.with_suffix(".int8.onnx"), "exact,quantize")

    def _optimized(self, source: pathlib.Path, out: pathlib.Path, passes: str) -> pathlib.Path:
        from onnxopt.accuracy import Budget
        from onnxopt.optimizer import Settings, optimize

        if not out.exists():
            free = Budget(min_sqnr=None, min_agreement=None)
            settings = Settings(
                passes=passes, data=self._calibration, guard_speed=False, budget=free, threads=1
            )
            optimize(source, out, settings)
        return out

    def _train_student(
        self, student: pathlib.Path, out: pathlib.Path, name: str, seed: int
    ) -> dict[str, Any]:
        from onnxopt.compress_recipe import read_compress_recipe
        from onnxopt.training.distillation import distill

        settings = read_compress_recipe(_RECIPE).settings.distill
        share = _TRAININGS[name]
        settings = dataclasses.replace(
            settings,
            labels=None if share is None else "label",
            label_weight=share or 0.0,
            training=dataclasses.replace(settings.training, seed=seed),
            threads=1,
        )
        report = distill(
            _TEACHER,
            student,
            out,
            self._train,
            settings,
            checkpoint=out.with_suffix(".checkpoint"),
            on_step=lambda step: print(f"\r{name}/{seed}: {step}\033[K", end="", file=sys.stderr),
        )
        return {
            "learning_rate": report.training.peak_learning_rate,
            "steps": report.training.steps,
            "seconds": report.seconds,
        }


def write_page(results: Results) -> None:
    """Put the table between its marks into the example's README."""
    _PAGE.write_text(between_marks(_PAGE.read_text(), "ablation", f"{table(results)}\n"))


def table(results: Results) -> str:
    """Accuracy, size and speed, one row a way of training; of several seeds the mean and each."""
    size = results["original"]["bytes"] if "bytes" in results.get("original", {}) else None
    lines = [
        "| | float32 | int8 | file, int8 | speed, int8 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, title in _NAMES.items():
        cells = [_cell(_shares(results, name, end)) for end in ("", "/int8")]
        if not any(cells):
            continue
        quantized = [row for row in _rows(results, name, "/int8") if "speed" in row]
        cells += ["", ""]
        if quantized and size:
            smaller = size / max(row["bytes"] for row in quantized)
            speeds = [row["speed"][0] for row in quantized]
            cells[2:] = [f"{smaller:.1f}x smaller", span(speeds)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows(results: Results, name: str, end: str) -> Iterator[dict[str, Any]]:
    keys = [name] if name not in _TRAININGS else [f"{name}/{seed}" for seed in _SEEDS]
    for key in keys:
        if f"{key}{end}" in results:
            yield results[f"{key}{end}"]


def _shares(results: Results, name: str, end: str) -> Iterator[float]:
    for row in _rows(results, name, end):
        yield row["correct"] / row["images"]


def _cell(shares: Iterator[float]) -> str:
    """The mean of the seeds, and each of them."""
    each = list(shares)
    if len(each) < 2:
        return f"{each[0]:.2%}" if each else ""
    return f"{statistics.mean(each):.2%} ({', '.join(f'{100 * share:.2f}' for share in each)})"


if __name__ == "__main__":
    main()
