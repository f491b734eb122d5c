"""The road of `onnxopt distill`: import the student, teach it, write it back, and judge it."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxopt.errors import FeedError, ModelError, OnnxoptError, OptionError
from onnxopt.model import bytes_on_disk, load
from onnxopt.runtime.probe import environment
from onnxopt.training.checkpoints import fingerprint
from onnxopt.training.choosing import (
    chosen_weights,
    low_bit_weights,
    penalty,
    quantizer_scales,
    trained_scales,
)
from onnxopt.training.data import Batch, TrainingData, find_stacking, read_training_data
from onnxopt.training.distill_report import DistillReport
from onnxopt.training.distill_settings import DistillSettings
from onnxopt.training.distiller import Augment, Distiller, TrainingResult
from onnxopt.training.finishing import Finished, Finisher
from onnxopt.training.hints import projections
from onnxopt.training.importer import import_model
from onnxopt.training.judging import first_batches
from onnxopt.training.learning_rate import told
from onnxopt.training.module import OnnxModule
from onnxopt.training.named_module import NamedModule
from onnxopt.training.normalizing import Normalization, fold, insert
from onnxopt.training.objective import Objective
from onnxopt.training.pairing import LookedAt, alike_pair, renamed, same_interface
from onnxopt.training.parallel import Processes
from onnxopt.training.plans import check_labels, plan_outputs, plan_task, recognize_by_labels
from onnxopt.training.teacher import OnnxTeacher
from onnxopt.training.write_back import write_back

__all__ = ["DistillReport", "DistillSettings", "distill"]

Arrays = dict[str, np.ndarray[Any, Any]]
#: A loss of the user's own, of outputs by name and labels.
TaskLoss = Callable[[Mapping[str, Tensor], Tensor], Tensor]

#: Kinds of outputs are told by so many samples, and labels matched by them.
_LOOKED_AT = 32
#: BatchNormalization takes statistics of batches from this size on.
_LEAST_STATISTICS_BATCH = 16
#: PyTorch and ONNX Runtime may differ so much, relative to an output's largest number.
_IMPORT_TOLERANCE = 1e-3
#: Where numbers are rounded to few levels, one that falls on the other side moves others.
_QUANTIZED_TOLERANCE = 0.1
#: Products whose weights are integers and do not train.
_INTEGER_PRODUCTS = frozenset(("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"))
#: Statistics and ranges are taken from so many samples, so many at a time.
_OBSERVED, _OBSERVED_BATCH = 256, 32
#: The written model is judged on at most so many held-out samples.
_MOST_JUDGED = 1_000


def distill(
    teacher: str | os.PathLike[str],
    student: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    data: str | os.PathLike[str] | TrainingData,
    settings: DistillSettings | None = None,
    *,
    task_loss: TaskLoss | None = None,
    augment: Augment | None = None,
    checkpoint: pathlib.Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    processes: Processes | None = None,
) -> DistillReport:
    """Train a student model on what its teacher answers, and write it.

    Args:
        teacher: The original model.
        student: What became of it by pruning or quantization, or another model of the same
            interface. The file is not changed.
        target: Where to write the trained student; None to write nothing.
        data: Samples: a folder of ``.npz`` feeds, one ``.npz`` of stacked samples, or in memory.
        settings: How to do it.
        task_loss: A loss of outputs and labels in place of the usual ones.
        augment: Changes feeds at random while training.
        checkpoint: File for the state of the training, to go on from after an interruption; it is
            removed in the end.
        on_step: Told what is being done.
        processes: The processes that train together; the first one judges and writes.

    Raises:
        OnnxoptError: When models, data and settings do not fit together. Nothing is written then.
    """
    run = _Run(
        pathlib.Path(teacher),
        pathlib.Path(student),
        None if target is None else pathlib.Path(target),
        settings or DistillSettings(),
        on_step,
        processes or Processes(),
    )
    return run.run(data, task_loss, augment, checkpoint)


class _Run:
    """One distillation."""

    def __init__(
        self,
        teacher: pathlib.Path,
        student: pathlib.Path,
        target: pathlib.Path | None,
        settings: DistillSettings,
        on_step: Callable[[str], None],
        processes: Processes,
    ) -> None:
        self.teacher_path, self.student_path, self.target = teacher, student, target
        self.settings, self.on_step, self.processes = settings, on_step, processes
        self.notes: list[str] = []
        for path in (teacher, student):
            if target is not None and target.exists() and path.exists() and target.samefile(path):
                raise ModelError(f"{target} is an input itself; name another output")

    def run(
        self,
        given: str | os.PathLike[str] | TrainingData,
        task_loss: TaskLoss | None,
        augment: Augment | None,
        checkpoint: pathlib.Path | None,
    ) -> DistillReport:
        """Load, teach, write, judge."""
        start = time.perf_counter()
        settings = self.settings
        self.on_step("loading")
        model = load(self.student_path)
        same_interface(load(self.teacher_path), model, self.teacher_path, self.student_path)
        data = self._data(model, given)
        hints = settings.hints
        with contextlib.ExitStack() as open_models:
            teacher = open_models.enter_context(
                OnnxTeacher(self.teacher_path, hints=tuple(hints), threads=settings.threads)
            )
            reference = open_models.enter_context(
                OnnxTeacher(
                    self.student_path, hints=tuple(hints.values()), threads=settings.threads
                )
            )
            looked_at = self._look(teacher, reference, data)
            objective = self._objective(data, looked_at, task_loss)
            scales = quantizer_scales(model) if settings.learn_scales else []
            normalizations = self._normalize(model, data)
            module, student = self._student(model, data, teacher, looked_at)
            distiller = Distiller(
                student,
                teacher,
                data,
                objective,
                settings.training,
                pruning=settings.pruning,
                prunable=chosen_weights(module, settings.prunable),
                penalty=penalty(module, self.student_path, settings),
                scales=trained_scales(module, scales),
                low_bit=low_bit_weights(module, settings),
                augment=augment,
                extra=self._projections(objective, looked_at),
                checkpoint=checkpoint,
                mark=self._mark(given) if checkpoint is not None else "",
                on_progress=lambda progress: self.on_step(progress.text),
                processes=self.processes,
            )
            self.on_step("asking the teacher")
            result = distiller.run()
            self.on_step("writing")
            changed = fold(model, normalizations, write_back(module, model))
            self._tell_of(result)
            finisher = Finisher(
                self.student_path,
                teacher,
                reference,
                objective,
                first_batches(distiller.held_out_batches(), _MOST_JUDGED),
                threads=settings.threads,
                external_data=settings.external_data,
            )
            finished = self._finish(finisher, model, changed, data)
            distiller.forget()
        return DistillReport(
            teacher=str(self.teacher_path),
            student=str(self.student_path),
            target=None if self.target is None else str(self.target),
            samples=len(data),
            held_out=len(data.split()[1]),
            stacked=data.stacking is not None,
            outputs=list(objective.outputs),
            task=objective.task,
            parameters=distiller.trained_numbers,
            masked=result.best.sparsity,
            training=result,
            before=finished.before,
            after=finished.after,
            fidelity=finished.fidelity,
            changed=finished.changed,
            bytes_before=bytes_on_disk(self.student_path),
            bytes_after=finished.bytes,
            notes=self.notes,
            seconds=time.perf_counter() - start,
            environment=environment(settings.threads),
        )

    # Before the training

    def _data(self, model: ir.Model, given: str | os.PathLike[str] | TrainingData) -> TrainingData:
        if isinstance(given, TrainingData):
            return given
        return read_training_data(model, pathlib.Path(given), self.settings.labels)

    def _look(self, teacher: OnnxTeacher, reference: OnnxTeacher, data: TrainingData) -> LookedAt:
        """Run both models on some samples and see that they can be compared."""
        numbers = range(0, len(data), max(1, len(data) // _LOOKED_AT))[:_LOOKED_AT]
        feeds = [data.feed(number) for number in numbers]
        try:
            wanted = [teacher.outputs(feed) for feed in feeds]
        except OnnxoptError as error:
            raise FeedError(f"the teacher {self.teacher_path} cannot run: {error}") from error
        try:
            given = [renamed(reference.outputs(feed), self.settings.hints) for feed in feeds]
        except OnnxoptError as error:
            raise FeedError(f"the student {self.student_path} cannot run: {error}") from error
        for name in teacher.names:
            for one, other in zip(wanted, given, strict=True):
                if one[name].shape != other[name].shape:
                    raise ModelError(
                        f"teacher and student differ: output '{name}' has shape "
                        f"{list(one[name].shape)} from {self.teacher_path} and "
                        f"{list(other[name].shape)} from {self.student_path}"
                    )
        first, second = alike_pair(feeds)
        stacking = find_stacking(teacher, first, second)
        if stacking is not None and find_stacking(reference, first, second) is None:
            stacking = None
        data.stacking = stacking
        if stacking is None:
            self.notes.append(
                "Samples were run one by one: the models do not take several at a time, or give "
                "other answers then."
            )
        labels = None if data.labels is None else [data.labels[number] for number in numbers]
        return LookedAt(feeds, wanted, given, labels)

    def _student(
        self, model: ir.Model, data: TrainingData, teacher: OnnxTeacher, looked_at: LookedAt
    ) -> tuple[OnnxModule, NamedModule]:
        """The student in PyTorch, bare and with the teacher's names for what it gives."""
        hints, settings = self.settings.hints, self.settings
        module = import_model(
            model,
            outputs=[*teacher.names, *hints.values()],
            trainable=settings.trainable,
            learned_scales=settings.learn_scales,
            frozen=settings.frozen,
            batch_statistics=self._takes_statistics(model, data),
        )
        self._tell_integer_products(model, module)
        named = NamedModule(module, module.input_names, [*teacher.names, *hints])
        self._check_import(named, model, data.feed(0), looked_at.student[0])
        return module, named

    def _projections(self, objective: Objective, looked_at: LookedAt) -> nn.ModuleDict:
        """What lays hints of other widths to one another; it is trained too."""
        if not self.settings.hints:
            return nn.ModuleDict()
        torch.manual_seed(self.settings.training.seed)
        found = projections(objective.outputs, looked_at.student[0], looked_at.teacher[0])
        objective.projections = found
        return nn.ModuleDict({str(at): each for at, each in enumerate(found.values())})

    def _objective(
        self, data: TrainingData, looked_at: LookedAt, task_loss: TaskLoss | None
    ) -> Objective:
        settings = self.settings
        plans = plan_outputs(
            looked_at.teacher,
            looked_at.feeds,
            kinds=settings.kinds,
            chosen_losses=settings.losses,
            weights=settings.weights,
            hints=tuple(settings.hints),
            hint_weight=settings.hint_weight,
        )
        task = None
        if data.labels is not None and looked_at.labels is not None:
            plans = recognize_by_labels(plans, looked_at.teacher, looked_at.labels)
            axes = {} if data.stacking is None else data.stacking.axes
            task = plan_task(
                plans,
                looked_at.teacher,
                looked_at.labels,
                output=settings.label_output,
                function=task_loss,
                batch_axes=axes,
            )
            check_labels(task, data.labels)
        elif task_loss is not None:
            raise OptionError("a loss of labels is given, but there are no labels")
        return Objective(
            plans,
            task,
            temperature=settings.temperature,
            standardize=settings.standardize,
            label_weight=settings.label_weight,
            smoothing=settings.smoothing,
        )

    def _takes_statistics(self, model: ir.Model, data: TrainingData) -> bool:
        if self.settings.statistics is not None:
            return self.settings.statistics
        least = self.settings.training.batch_size >= _LEAST_STATISTICS_BATCH
        return least and data.stacking is not None

    def _normalize(self, model: ir.Model, data: TrainingData) -> list[Normalization]:
        if not self.settings.renormalize:
            return []
        if not self._takes_statistics(model, data):
            raise OptionError(
                "normalizations take the statistics of batches: train with batches of "
                f"{_LEAST_STATISTICS_BATCH} or more, of models that take several samples at a time"
            )
        found = insert(model, self._some(data))
        if not found:
            raise OptionError(
                f"no convolution of {self.student_path} can be normalized: each needs a bias, and "
                "numbers that nothing else reads"
            )
        self.notes.append(
            f"{len(found)} convolutions were normalized for the training; that is folded again."
        )
        return found

    def _some(self, data: TrainingData) -> list[Batch]:
        """Batches to take statistics from."""
        training, _ = data.split()
        numbers = training[:: max(1, len(training) // _OBSERVED)][:_OBSERVED]
        return data.batches(numbers, _OBSERVED_BATCH)

    def _tell_integer_products(self, model: ir.Model, module: OnnxModule) -> None:
        """Say which weights do not train, since their nodes compute with integers."""
        nodes = [node for node in model.graph if node.op_type in _INTEGER_PRODUCTS]
        if not nodes:
            return
        text = (
            f"the weights of {len(nodes)} products of integers stay as they are, such "
            f"as {nodes[0].op_type} '{nodes[0].name or nodes[0].outputs[0].name}'"
        )
        if not any(each.requires_grad for each in module.parameters()):
            raise ModelError(
                f"{self.student_path} has nothing to train: {text}; quantize with pairs of "
                "QuantizeLinear and DequantizeLinear instead, whose weights train"
            )
        self.notes.append(f"{text[0].upper()}{text[1:]}.")

    def _check_import(
        self, module: NamedModule, model: ir.Model, feed: Arrays, wanted: Arrays
    ) -> None:
        """Hold PyTorch's answers against ONNX Runtime's before anything is trained.

        Raises:
            FeedError: When answers hold NaN because an input does.
            ModelError: When they differ.
        """
        module.eval()
        with torch.no_grad():
            given = module({name: torch.from_numpy(np.array(each)) for name, each in feed.items()})
        tolerance = _QUANTIZED_TOLERANCE if _rounds(model) else _IMPORT_TOLERANCE
        for name, tensor in given.items():
            one, other = wanted[name], tensor.numpy()
            if one.dtype.kind != "f" or not one.size:
                continue
            most = max(float(np.abs(one).max()), 1e-6)
            off = float(np.abs(one.astype(np.float64) - other).max()) / most
            if math.isnan(off):
                _check_inputs(feed)
            if not off <= tolerance:
                raise ModelError(
                    f"output '{name}' of {self.student_path} is off by {off:.1%} in PyTorch: the "
                    "model cannot be trained as it is; please report it with the model"
                )

    def _mark(self, given: str | os.PathLike[str] | TrainingData) -> str:
        source = len(given) if isinstance(given, TrainingData) else os.path.abspath(given)
        facts = self.settings, source, self.processes.count
        return fingerprint(self.teacher_path, self.student_path, *facts)

    # After the training

    def _finish(
        self, finisher: Finisher, model: ir.Model, changed: list[str], data: TrainingData
    ) -> Finished:
        """Choose ranges anew where that is due, and write what is better."""
        settings = self.settings
        if changed and settings.recalibrate and not settings.learn_scales and _rounds(model):
            self.on_step("choosing ranges anew")
            model, changed = finisher.with_new_ranges(model, changed, self._some(data))
        finished = finisher.write(model, changed, self.target if self.processes.is_first else None)
        self.notes += finisher.notes
        return finished

    def _tell_of(self, result: TrainingResult) -> None:
        if result.rate_trials:
            self.notes.append(told(result.rate_trials, result.before.score.loss))
        if result.stopped:
            self.notes.append(f"Training stopped: {result.stopped}.")
        if result.failed:
            self.notes.append("The best student from before that was kept.")


def _check_inputs(feed: Arrays) -> None:
    for name, each in feed.items():
        if each.dtype.kind == "f" and not np.isfinite(each).all():
            raise FeedError(
                f"input '{name}' holds NaN or infinity in the samples that are tried first: look "
                "at how samples are made, or take these out"
            )


def _rounds(model: ir.Model) -> bool:
    """Whether numbers are quantized in it."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph)
