"""What a compression is to reach, and by which road."""

from __future__ import annotations

import dataclasses
from typing import Literal

from onnxopt.accuracy import Budget
from onnxopt.errors import OptionError
from onnxopt.model import ExternalData
from onnxopt.training.distillation import DistillSettings

__all__ = ["CompressSettings", "Target"]


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be reached, relative to the original.

    Attributes:
        of: ``latency``: time of one run. ``macs``: multiply-accumulates of one run. ``size``: bytes
            of the file.
        share: The share of the original's that may be left, above 0 and at most 1.
    """

    of: Literal["latency", "macs", "size"] = "latency"
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise OptionError(
                f"a target is a share of the original, above 0 and at most 1, not {self.share:g}"
            )


@dataclasses.dataclass(frozen=True)
class CompressSettings:
    """Which road to take.

    Attributes:
        target: What is to be reached.
        prepare: Pipeline before anything else.
        prune: Pipeline that prunes. ``$amount`` in it stands for the share that is found to meet
            the target, ``$of`` for ``parameters`` where that is a size, else ``macs``. Empty for
            none.
        quantize: Pipeline that quantizes; empty for none.
        encode: Pipeline that stores weights in fewer bytes; empty for none.
        amount: Share to prune, for ``$amount``; found by measuring when None.
        distill: How to train; its ``labels`` are the name of the array of labels.
        retrain_epochs: Epochs of the training after quantization, which happens when quantization
            exceeds the budget; 0 for never.
        budget: What the result may cost.
        attempts: How often the road may be walked, with less pruning each time.
        threads: Threads for running, timing and training.
        seconds: Time for one comparison of speed.
        workers: Processes that observe samples and try out candidates while a pass prunes or
            quantizes; the result is the same.
        scheduler: Address of a dask scheduler, whose workers do so instead.
        external_data: Weights beside the result: as the original has them, always, or never.
    """

    target: Target = dataclasses.field(default_factory=Target)
    prepare: str = "exact"
    prune: str = "exact,prune-channels{amount=$amount,of=$of}"
    quantize: str = "exact,quantize"
    encode: str = ""
    amount: float | None = None
    distill: DistillSettings = dataclasses.field(default_factory=DistillSettings)
    retrain_epochs: float = 2.0
    budget: Budget = dataclasses.field(default_factory=Budget)
    attempts: int = 2
    threads: int = 1
    seconds: float = 1.0
    workers: int = 1
    scheduler: str | None = None
    external_data: ExternalData = "auto"
