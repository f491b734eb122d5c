"""The original, and what the models of each stage are held against."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxopt.accuracy import Score, fidelity
from onnxopt.analysis.inspection import inspect_model
from onnxopt.compress.closer_look import layers_beside
from onnxopt.compress.report import StageReport
from onnxopt.compress.settings import CompressSettings
from onnxopt.data import Feed
from onnxopt.errors import ModelError, OnnxoptError, OptionError
from onnxopt.findings import Layer
from onnxopt.model import bytes_on_disk, load
from onnxopt.runtime.statistics import Ratio, latency, ratio
from onnxopt.runtime.trial import race
from onnxopt.runtime.worker import Worker
from onnxopt.training.data import TrainingData, read_training_data

__all__ = ["NEAR", "Judge", "Speed"]

#: Calibrate with at most so many samples.
_MOST_CALIBRATION = 512
#: Judge with at most so many.
_MOST_JUDGED = 1_000
#: A target counts as met this close to it.
NEAR = 1.05
#: A model is timed up to so many times as long, until the ratio's interval is no wider than this
#: share of it: less than half of what `NEAR` allows on either side.
_PATIENCE, _STEADY = 4, 0.04


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast a model is.

    Attributes:
        ratio: How many times faster than the original, from paired runs.
        seconds: Median time of one run.
    """

    ratio: Ratio
    seconds: float


class Judge:
    """The original, and what candidates are held against.

    Attributes:
        data: All samples.
        held_out: Feeds that nothing learns from.
        typical: The one of middle size among them, on which models are timed.
        calibration: Numbers of the samples to calibrate on.
    """

    def __init__(
        self,
        path: pathlib.Path,
        data: pathlib.Path,
        settings: CompressSettings,
        on_step: Callable[[str], None],
    ) -> None:
        on_step("reading samples")
        self.path, self._settings, self._on_step = path, settings, on_step
        model = load(path)
        self.data: TrainingData = read_training_data(model, data, settings.distill.labels)
        training, held_out = self.data.split()
        step = max(1, len(held_out) // _MOST_JUDGED)
        self.held_out: list[Feed] = [self.data.feed(number) for number in held_out[::step]]
        self.typical = sorted(self.held_out, key=_size)[len(self.held_out) // 2]
        step = max(1, len(training) // _MOST_CALIBRATION)
        self.calibration = training[::step][:_MOST_CALIBRATION]
        self._worker = Worker()
        try:
            self._names, self._wanted = self._outputs(path, "running the original")
        except OnnxoptError as error:
            self._worker.stop()
            raise ModelError(f"{path} cannot be run on the samples: {error}") from error
        evaluate = settings.budget.evaluate
        self._score = None if evaluate is None else evaluate(str(path))
        self.bytes = bytes_on_disk(path)
        self.latency = latency(self._race(path)[0]).median

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.stop()

    def look(self, path: pathlib.Path, name: str, seconds: float, speed: Speed) -> StageReport:
        """Judge a model whose speed is measured."""
        _, given = self._outputs(path, f"{name}: judging")
        found = fidelity(self._wanted, given, self._names)
        evaluate = self._settings.budget.evaluate
        if evaluate is not None and self._score is not None:
            found = dataclasses.replace(found, score=Score(self._score, evaluate(str(path))))
        size = bytes_on_disk(path)
        left = self.left(path, lambda: speed)
        return StageReport(
            name,
            seconds,
            size,
            speed.ratio,
            speed.seconds,
            found,
            self._settings.budget.objection(found) or "",
            left,
            left <= self._settings.target.share * NEAR,
        )

    def speed(self, path: pathlib.Path) -> Speed:
        """Time a model beside the original, longer where other work makes the times uneven."""
        samples = self._race(path, _PATIENCE, _is_steady)
        return Speed(ratio(samples[0], samples[1]), latency(samples[1]).median)

    def left(self, path: pathlib.Path, speed: Callable[[], Speed]) -> float:
        """What is left of the quantity that the target is about, as a share of the original's.

        Its speed is asked for where the target is one. Multiply-accumulates that cannot be counted
        are taken for all of the original's.
        """
        match self._settings.target.of:
            case "size":
                return bytes_on_disk(path) / self.bytes
            case "macs":
                return self._macs_left(path)
        return 1 / speed().ratio.median

    def layers(self, path: pathlib.Path, prepared: pathlib.Path) -> list[Layer]:
        """The layers of a model beside the original's; see `layers_beside`."""
        return layers_beside(
            self.path,
            prepared,
            path,
            self.held_out,
            self.typical,
            worker=self._worker,
            threads=self._settings.threads,
            seconds=self._settings.seconds / 2,
            on_step=self._on_step,
        )

    def _macs_left(self, path: pathlib.Path) -> float:
        before, after = (_macs(each, self.typical) for each in (self.path, path))
        if not before:
            raise OptionError(
                f"the multiply-accumulates of {self.path} cannot be counted: aim at latency or "
                "size instead"
            )
        return 1.0 if after is None else after / before

    def _race(
        self,
        path: pathlib.Path,
        patience: int = 1,
        enough: Callable[[list[list[float]]], bool] = lambda samples: False,
    ) -> list[list[float]]:
        return race(
            self._worker,
            [self.path, path],
            self.typical,
            threads=self._settings.threads,
            seconds=self._settings.seconds * patience,
            enough=enough,
        )

    def _outputs(self, path: pathlib.Path, what: str) -> tuple[list[str], list[list[Any]]]:
        info = self._worker.open(path, threads=self._settings.threads)
        outputs: list[list[Any]] = []
        try:
            for number, feed in enumerate(self.held_out, start=1):
                self._on_step(f"{what}, sample {number:,} of {len(self.held_out):,}")
                outputs.append(self._worker.run(info.session, feed))
        finally:
            self._worker.close(info.session)
        return [port.name for port in info.outputs], outputs


def _is_steady(samples: list[list[float]]) -> bool:
    found = ratio(samples[0], samples[1])
    return found.high - found.low <= _STEADY * found.median


def _size(feed: Feed) -> int:
    """Numbers in all inputs together."""
    return sum(int(np.size(array)) for array in feed.values())


def _macs(path: pathlib.Path, feed: Feed) -> int | None:
    """Multiply-accumulates of one run on a feed; None when not all shapes are known."""
    shapes = {name: tuple(np.shape(array)) for name, array in feed.items()}
    found = inspect_model(load(path), shapes=shapes)
    return None if found.unknown_macs else found.macs_number
