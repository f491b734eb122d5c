"""What each part of the long road is worth: Fashion-MNIST, three seeds, in float32 and int8.

Usage::

    python -m models.fashion_resnet.samples --data DATA --out samples
    python -m benchmarks.ablation samples                    # what is missing in the results
    python -m benchmarks.ablation samples --seeds 0          # one seed at a time
    python -m benchmarks.ablation --page                     # only the table

The teacher of ``models/fashion_resnet`` is pruned once, as its recipe says, and then trained on
labels alone, on the teacher alone, and on both, each with the recipe's loop and each quantized
afterwards without a budget. Counted are right answers on the 10,000 test images, which nothing was
trained on or chosen by. One training takes a quarter of an hour on one core; an interrupted one
goes on where it stopped, as long as the folder ``--work`` stays.
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

from benchmarks.results import Results
from models.fashion_mnist.evaluate import count_correct

__all__ = ["main", "table"]

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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("samples", nargs="?", type=pathlib.Path, help="train.npz and test.npz")
    parser.add_argument("--seeds", nargs="+", type=int, default=_SEEDS)
    parser.add_argument("--trainings", nargs="+", default=list(_TRAININGS), choices=_TRAININGS)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("ablation"))
    parser.add_argument("--page", action="store_true", help="write the table and measure nothing")
    chosen = parser.parse_args(arguments)
    results = Results("ablation")
    if not chosen.page:
        if chosen.samples is None:
            parser.error("say where train.npz and test.npz are")
        _Ablation(chosen.samples, chosen.work, results).run(chosen.seeds, chosen.trainings)
    print(table(results))


class _Ablation:
    """One run over what is missing.

    Args:
        samples: Folder of ``train.npz`` and ``test.npz``.
        work: Folder for models.
        results: Where to note what is found.
    """

    def __init__(self, samples: pathlib.Path, work: pathlib.Path, results: Results) -> None:
        self._train, self._test = samples / "train.npz", samples / "test.npz"
        self._work, self._results = work, results
        self._calibration = work / "calibration"
        self._calibration.mkdir(parents=True, exist_ok=True)
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
                path, facts = self._trained(pruned, name, seed)
                self._count(key, path, facts)
                self._count(f"{key}/int8", self._quantized(path))

    def _count(self, key: str, path: pathlib.Path, facts: dict[str, Any] | None = None) -> None:
        if key not in self._results:
            correct, images = count_correct(path, self._test)
            self._results[key] = {"correct": correct, "images": images, **(facts or {})}
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

    def _trained(
        self, student: pathlib.Path, name: str, seed: int
    ) -> tuple[pathlib.Path, dict[str, Any]]:
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
        out = self._work / f"{name}-{seed}.onnx"
        report = distill(
            _TEACHER,
            student,
            out,
            self._train,
            settings,
            checkpoint=out.with_suffix(".checkpoint"),
            on_step=lambda step: print(f"\r{name}/{seed}: {step}\033[K", end="", file=sys.stderr),
        )
        facts = {
            "learning_rate": report.training.peak_learning_rate,
            "steps": report.training.steps,
            "seconds": report.seconds,
        }
        return out, facts


def table(results: Results) -> str:
    """The accuracies as a table, one row a way of training."""
    lines = ["| | float32 | int8 |", "| --- | --- | --- |"]
    for name, title in _NAMES.items():
        cells = [_cell(_shares(results, name, end)) for end in ("", "/int8")]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shares(results: Results, name: str, end: str) -> Iterator[float]:
    keys = [name] if name not in _TRAININGS else [f"{name}/{seed}" for seed in _SEEDS]
    for key in keys:
        if f"{key}{end}" in results:
            row = results[f"{key}{end}"]
            yield row["correct"] / row["images"]


def _cell(shares: Iterator[float]) -> str:
    """The mean of the seeds, and each of them."""
    each = list(shares)
    if len(each) < 2:
        return f"{each[0]:.2%}" if each else ""
    return f"{statistics.mean(each):.2%} ({', '.join(f'{100 * share:.2f}' for share in each)})"


if __name__ == "__main__":
    main()
