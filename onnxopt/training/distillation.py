"""The road of `onnxopt distill`: import the student, teach it, write it back, and judge it."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxopt.accuracy import fidelity
from onnxopt.errors import FeedError, ModelError, OnnxoptError, OptionError
from onnxopt.model import ExternalData, bytes_on_disk, copy, load, save, stage
from onnxopt.runtime.probe import environment
from onnxopt.training.cache import TeacherOutputs
from onnxopt.training.checkpoints import fingerprint
from onnxopt.training.data import Batch, TrainingData, find_stacking, read_training_data
from onnxopt.training.distill_report import DistillReport
from onnxopt.training.distill_settings import DistillSettings
from onnxopt.training.distiller import Augment, Distiller, TrainingResult
from onnxopt.training.hints import projections
from onnxopt.training.importer import import_model
from onnxopt.training.judging import first_batches, judge
from onnxopt.training.learning_rate import told
from onnxopt.training.low_bit import LowBit
from onnxopt.training.module import OnnxModule
from onnxopt.training.named_module import NamedModule
from onnxopt.training.normalizing import Normalization, fold, insert
from onnxopt.training.objective import (
    Objective,
    check_labels,
    plan_outputs,
    plan_task,
    recognize_by_labels,
)
from onnxopt.training.pairing import LookedAt, alike_pair, renamed, same_interface
from onnxopt.training.parallel import Processes
from onnxopt.training.penalties import Penalty, channel_slices, group_lasso, norm_penalty
from onnxopt.training.recalibration import recalibrate
from onnxopt.training.score import Score
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
            scales = _scales(model) if settings.learn_scales else []
            normalizations = self._normalize(model, data)
            names = [*teacher.names, *hints]
            inner = [*teacher.names, *hints.values()]
            module = import_model(
                model,
                outputs=inner,
                trainable=settings.trainable,
                learned_scales=settings.learn_scales,
                frozen=settings.frozen,
                batch_statistics=self._takes_statistics(model, data),
            )
            self._tell_integer_products(model, module)
            named = NamedModule(module, module.input_names, names)
            self._check_import(named, model, data.feed(0), looked_at.student[0])
            extra = nn.ModuleDict()
            if hints:
                torch.manual_seed(settings.training.seed)
                found = projections(objective.outputs, looked_at.student[0], looked_at.teacher[0])
                objective.projections = found
                extra = nn.ModuleDict({str(at): each for at, each in enumerate(found.values())})
            distiller = Distiller(
                named,
                teacher,
                data,
                objective,
                settings.training,
                pruning=settings.pruning,
                prunable=self._chosen(module, settings.prunable),
                penalty=self._penalty(module),
                scales=_trained(module, scales),
                low_bit=self._low_bit(module),
                augment=augment,
                extra=extra,
                checkpoint=checkpoint,
                mark=self._mark(given) if checkpoint is not None else "",
                on_progress=lambda progress: self.on_step(progress.text),
                processes=self.processes,
            )
            self.on_step("asking the teacher")
            result = distiller.run()
            self.on_step("writing")
            changed = fold(model, normalizations, write_back(module, model))
            report = self._write(
                model, changed, distiller, teacher, reference, data, objective, result, start
            )
            distiller.forget()
            return report

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
            ModelError: When they differ.
        """
        module.eval()
        with torch.no_grad():
            given = module({name: torch.from_numpy(np.array(each)) for name, each in feed.items()})
        quantized = any(node.op_type == "QuantizeLinear" for node in model.graph)
        tolerance = _QUANTIZED_TOLERANCE if quantized else _IMPORT_TOLERANCE
        for name, tensor in given.items():
            one, other = wanted[name], tensor.numpy()
            if one.dtype.kind != "f" or not one.size:
                continue
            most = max(float(np.abs(one).max()), 1e-6)
            off = float(np.abs(one.astype(np.float64) - other).max()) / most
            if not off <= tolerance:
                raise ModelError(
                    f"output '{name}' of {self.student_path} is off by {off:.1%} in PyTorch: the "
                    "model cannot be trained as it is; please report it with the model"
                )

    def _low_bit(self, module: OnnxModule) -> LowBit | None:
        settings = self.settings
        if settings.low_bit is None:
            return None
        chosen = self._chosen(module, settings.low_bit_weights)
        parameters = dict(module.named_parameters())
        if chosen is None:
            wide = [name for name, each in parameters.items() if each.ndim >= 2]
            chosen = [f"module.{name}" for name in wide[1:-1]]
        if not chosen:
            raise OptionError("the student has no weights between its first and last layer")
        names = [name.removeprefix("module.") for name in chosen]
        return LowBit({name: parameters[name] for name in names}, settings.low_bit)

    def _penalty(self, module: OnnxModule) -> Penalty | None:
        settings = self.settings
        if settings.penalty is None:
            return None
        wide = {
            name: tensor
            for name, tensor in module.weights.items()
            if tensor.ndim >= 2 and tensor.requires_grad
        }
        if settings.penalty == "group-lasso":
            return group_lasso(
                wide, channel_slices(load(self.student_path)), settings.penalty_strength
            )
        return norm_penalty(wide, settings.penalty_strength, settings.penalty)

    def _chosen(self, module: OnnxModule, patterns: Sequence[str] | None) -> list[str] | None:
        """Weights that patterns name, by their names in the distiller; None without patterns."""
        if patterns is None:
            return None
        chosen = [
            name
            for name, tensor in module.weights.items()
            if tensor.ndim >= 2
            and tensor.requires_grad
            and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if not chosen:
            raise OptionError(f"no weight is called {', '.join(patterns)}")
        return [f"module.{module.module_name(name)}" for name in chosen]

    def _mark(self, given: str | os.PathLike[str] | TrainingData) -> str:
        source = len(given) if isinstance(given, TrainingData) else os.path.abspath(given)
        facts = self.settings, source, self.processes.count
        return fingerprint(self.teacher_path, self.student_path, *facts)

    # After the training

    def _recalibrated(
        self,
        model: ir.Model,
        changed: list[str],
        data: TrainingData,
        judged: Callable[[pathlib.Path], tuple[Score, list[Arrays]]],
    ) -> tuple[ir.Model, list[str]]:
        """The model with ranges chosen anew, where that is better; else as it was."""
        if not any(node.op_type == "QuantizeLinear" for node in model.graph):
            return model, changed
        self.on_step("choosing ranges anew")
        other = model.clone()
        moved = recalibrate(other, self._some(data))
        if not moved:
            return model, changed
        scores = []
        for each in (model, other):
            with _staged(each, None, self.settings.external_data) as (path, _):
                scores.append(judged(path)[0])
        before, after = scores
        told = f"{len(moved)} scales and biases chosen anew after the training"
        if not after.is_better_than(before):
            self.notes.append(f"{told} were no better ({before.text}, {after.text}) and left out.")
            return model, changed
        self.notes.append(f"{told}: {before.text} before, {after.text} after.")
        return other, list(dict.fromkeys([*changed, *moved]))

    def _write(
        self,
        model: ir.Model,
        changed: list[str],
        distiller: Distiller,
        teacher: OnnxTeacher,
        reference: OnnxTeacher,
        data: TrainingData,
        objective: Objective,
        result: TrainingResult,
        start: float,
    ) -> DistillReport:
        """Write the result beside its place, judge that very file, and move it there."""
        if result.rate_trials:
            self.notes.append(told(result.rate_trials, result.before.score.loss))
        if result.stopped:
            self.notes.append(f"Training stopped: {result.stopped}.")
        if result.failed:
            self.notes.append("The best student from before that was kept.")
        batches = first_batches(distiller.held_out_batches(), _MOST_JUDGED)
        judged = objective.of_outputs()
        outputs = TeacherOutputs(teacher, None)
        wanted = [outputs.of(batch) for batch in batches]

        def judged_file(path: pathlib.Path) -> tuple[Score, list[Arrays]]:
            with OnnxTeacher(path, threads=self.settings.threads) as opened:
                return judge(opened, judged, batches, wanted)

        if changed and self.settings.recalibrate and not self.settings.learn_scales:
            model, changed = self._recalibrated(model, changed, data, judged_file)
        with _staged(model, self.target, self.settings.external_data) as (path, commit):
            after, given = judged_file(path)
            before, old = judge(reference, judged, batches, wanted)
            size = bytes_on_disk(path)
            if changed and not after.is_better_than(before):
                self.notes.append(
                    f"Training did not help ({before.text} before, {after.text} after): the result "
                    "is the student as it was."
                )
                changed, after, given, size = [], before, old, bytes_on_disk(self.student_path)
            if self.target is not None and self.processes.is_first:
                if changed:
                    commit()
                else:
                    copy(self.student_path, self.target)
        names = teacher.names
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
            before=before,
            after=after,
            fidelity=fidelity(
                [[each[name] for name in names] for each in wanted],
                [[each[name] for name in names] for each in given],
                names,
            ),
            changed=changed,
            bytes_before=bytes_on_disk(self.student_path),
            bytes_after=size,
            notes=self.notes,
            seconds=time.perf_counter() - start,
            environment=environment(self.settings.threads),
        )


def _scales(model: ir.Model) -> list[str]:
    """Names of the constant scales of the model's quantizers."""
    names = [
        value.name
        for node in model.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and (value := node.inputs[1]) is not None
        and value.is_initializer()
        and value.name is not None
    ]
    if not names:
        raise OptionError("the student has no quantizers whose scales could be trained")
    return list(dict.fromkeys(names))


def _trained(module: OnnxModule, scales: Sequence[str]) -> list[str]:
    """The scales that are parameters, by their names in the distiller."""
    weights = module.weights
    return [
        f"module.{module.module_name(name)}"
        for name in scales
        if name in weights and weights[name].requires_grad
    ]


@contextlib.contextmanager
def _staged(
    model: ir.Model, target: pathlib.Path | None, external_data: ExternalData
) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """A model written beside its target (or somewhere, without one), and how to move it there."""
    if target is None:
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            path = pathlib.Path(folder) / "model.onnx"
            save(model, path, external_data)
            yield path, lambda: None
        return
    staged = stage(model, target, external_data)
    try:
        yield staged.path, staged.commit
    finally:
        staged.discard()
