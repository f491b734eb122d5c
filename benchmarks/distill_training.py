"""The distillation loop beside a plain PyTorch loop on the network that the model came from.

Usage::

    python -m benchmarks.distill_training lite0 time     # both in turn; JSON
    python -m benchmarks.distill_training lite0 ours     # one of both alone: peak memory

Both learn the same outputs of a teacher, which are known beforehand, from the same samples, by the
same loss (KL divergence at temperature 2 for classes, squared error for vectors), with AdamW and
clipped gradients, on one thread. The plain loop has its batches and the teacher's answers ready as
tensors; ours assembles batches from samples, looks answers up, rates tensors by their size, looks
after masks and counts. The teacher runs in a process of its own and is in neither peak.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.importer_training import PAIRS, Pair
from benchmarks.processes import own_peak_kib

#: Steps that are not timed: in them the teacher is asked, and memory is taken for the first time.
_WARM_UP = 3
_STEPS = 9
_RATE = 1e-3
_TEMPERATURE = 2.0


def main() -> None:
    name, what = sys.argv[1:]
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.random.manual_seed(0)
    pair = PAIRS[name]
    inputs = pair.inputs()
    wanted = _answers(pair, inputs)
    plain = _plain_step(pair, inputs, wanted) if what != "ours" else None
    if what == "native":
        assert plain is not None
        for _ in range(_WARM_UP):
            plain()
    else:
        seconds = _distill(pair, inputs, wanted, plain)
    if what == "time":
        print(json.dumps(seconds))
    else:
        print(json.dumps({"peak_kib": own_peak_kib()}))


def _answers(pair: Pair, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """What the teacher answers, by output."""
    from onnxopt.training.teacher import OnnxTeacher

    with OnnxTeacher(pair.path()) as teacher:
        return teacher.outputs(_feed(pair, inputs))


def _feed(pair: Pair, inputs: tuple[Any, ...]) -> dict[str, Any]:
    from onnxopt.model import load

    names = [str(value.name) for value in load(pair.path()).graph.inputs]
    return {name: each.numpy() for name, each in zip(names, inputs, strict=True)}


def _is_classes(array: Any) -> bool:
    return bool(array.ndim == 2)


def _plain_step(pair: Pair, inputs: tuple[Any, ...], wanted: dict[str, Any]) -> Callable[[], None]:
    network = pair.native().train()
    for each in network.modules():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.0
    optimizer: Any = torch.optim.AdamW(network.parameters(), 1e-5, fused=True)
    (answer,) = (torch.from_numpy(np.array(array)) for array in wanted.values())
    spread = answer.var()

    def step() -> None:
        given = network(*inputs)
        if _is_classes(answer):
            loss = _TEMPERATURE**2 * functional.kl_div(
                functional.log_softmax(given / _TEMPERATURE, dim=1),
                functional.softmax(answer / _TEMPERATURE, dim=1),
                reduction="batchmean",
            )
        else:
            loss = functional.mse_loss(given, answer) / spread
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def _distill(
    pair: Pair,
    inputs: tuple[Any, ...],
    wanted: dict[str, Any],
    plain: Callable[[], None] | None,
) -> dict[str, list[float]]:
    """Time our steps, each followed by a plain one."""
    from onnxopt.training import import_model
    from onnxopt.training.data import Stacking, TrainingData
    from onnxopt.training.distiller import Distiller, Progress
    from onnxopt.training.named_module import NamedModule
    from onnxopt.training.objective import Objective
    from onnxopt.training.plans import plan_outputs
    from onnxopt.training.settings import TrainingSettings
    from onnxopt.training.teacher import OnnxTeacher

    feed = _feed(pair, inputs)
    batch = len(inputs[0])
    # One in ten is held out.
    count = batch + max(1, batch // 8)
    data = TrainingData.of(
        {name: array[number % batch][None] for name, array in feed.items()}
        for number in range(count)
    )
    data.stacking = Stacking(dict.fromkeys(wanted, 0))
    (output,) = wanted
    classes = _is_classes(wanted[output])
    plans = plan_outputs(
        [wanted],
        [feed],
        kinds={output: "logits" if classes else "numbers"},
        chosen_losses={output: "kl" if classes else "mse"},
    )
    module = import_model(pair.path(), batch_statistics=True)
    seconds: dict[str, list[float]] = {"native": [], "ours": []}
    began = time.perf_counter()

    def on_progress(progress: Progress) -> None:
        nonlocal began
        ours = time.perf_counter() - began
        if plain is not None:
            start = time.perf_counter()
            plain()
            # The last step has the look at held-out samples in it.
            if _WARM_UP < progress.step < progress.steps:
                seconds["native"].append(time.perf_counter() - start)
                seconds["ours"].append(ours)
        began = time.perf_counter()

    settings = TrainingSettings(
        steps=_WARM_UP + _STEPS if plain is not None else _WARM_UP,
        batch_size=batch,
        learning_rate=_RATE,
        evaluations=1,
        patience=0,
        threads=1,
    )
    with OnnxTeacher(pair.path()) as teacher:
        Distiller(
            NamedModule(module, module.input_names, [output]),
            teacher,
            data,
            Objective(plans, temperature=_TEMPERATURE),
            settings,
            on_progress=on_progress,
        ).run()
    return seconds


if __name__ == "__main__":
    main()
