"""The road of `onnxopt distill`: import the student, teach it, write it back, and judge it."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxopt.accuracy import Fidelity, fidelity
from onnxopt.data import required_inputs
from onnxopt.errors import FeedError, ModelError, OnnxoptError, OptionError
from onnxopt.model import ExternalData, bytes_on_disk, copy, load, save, stage
from onnxopt.runtime.probe import environment
from onnxopt.training.cache import TeacherOutputs
from onnxopt.training.checkpoints import fingerprint
from onnxopt.training.data import Batch, TrainingData, find_stacking, read_training_data
from onnxopt.training.distiller import Augment, Distiller, TrainingResult
from onnxopt.training.hints import projections
from onnxopt.training.importer import import_model
from onnxopt.training.low_bit import LowBit, LowBitKind
from onnxopt.training.module import OnnxModule
from onnxopt.training.named_module import NamedModule
from onnxopt.training.objective import (
    Objective,
    OutputPlan,
    TaskPlan,
    check_labels,
    plan_outputs,
    plan_task,
    recognize_by_labels,
)
from onnxopt.training.parallel import Processes
from onnxopt.training.penalties import Penalty, channel_slices, group_lasso, norm_penalty
from onnxopt.training.schedules import PruningSchedule
from onnxopt.training.score import Score, ScoreKeeper
from onnxopt.training.settings import TrainingSettings
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
#: The written model is judged on at most so many held-out samples.
_MOST_JUDGED = 1_000


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """What is to be learned, and how.

    Attributes:
        training: The loop's settings.
        labels: Name of the array of labels in the data; None to learn from the teacher alone.
        label_output: The output that they belong to; found out when None.
        label_weight: Their share of the loss, from 0 to 1.
        smoothing: Label smoothing.
        kinds: Kinds of outputs, by name, where they are not what they seem.
        losses: Losses by output.
        weights: Factors of losses by output.
        hints: Inner tensors to be led towards the teacher's: the teacher's name and the student's.
        hint_weight: Factor of each hint.
        temperature: Softens logits.
        standardize: Standardize logits before they are compared.
        statistics: Whether BatchNormalization takes the statistics of batches; None to decide by
            the size of a batch.
        trainable: Patterns of further constants that are trained, such as scales of quantizers.
        frozen: Patterns of weights that stay as they are.
        learn_scales: Train the scales of quantizers, too, beside what is rounded with them (LSQ).
        low_bit: Train weights of two (``binary``) or three (``ternary``) values a channel.
        low_bit_weights: Patterns of the weights that are to have so few; those of every layer but
            the first and the last when None, which cost the most accuracy for the least size.
        penalty: Draw weights to zero while training: ``l1``, ``l2``, or ``group-lasso`` on channels
            that can only be removed together.
        penalty_strength: Its factor.
        pruning: Prune while training.
        prunable: Patterns of weights to prune; all of two or more dimensions when None.
        threads: Threads of PyTorch and of the teacher.
        external_data: Weights beside the result: as the student has them, always, or never.
    """

    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)
    labels: str | None = None
    label_output: str | None = None
    label_weight: float = 0.5
    smoothing: float = 0.0
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    losses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hint_weight: float = 1.0
    temperature: float = 2.0
    standardize: bool = False
    statistics: bool | None = None
    trainable: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    learn_scales: bool = False
    low_bit: LowBitKind | None = None
    low_bit_weights: tuple[str, ...] | None = None
    penalty: Literal["l1", "l2", "group-lasso"] | None = None
    penalty_strength: float = 1e-4
    pruning: PruningSchedule | None = None
    prunable: tuple[str, ...] | None = None
    threads: int = 1
    external_data: ExternalData = "auto"


@dataclasses.dataclass
class DistillReport:
    """What a distillation did.

    Attributes:
        teacher: The teacher's path.
        student: The student's path.
        target: Where the result was written.
        samples: Samples in all, and how many of them were held out.
        stacked: Whether samples were stacked into batches.
        outputs: How each output was compared.
        task: How labels were compared; None without labels.
        parameters: How many numbers were trained.
        masked: Share of zeros kept in masked parameters.
        training: What the loop did.
        before: The student, in ONNX Runtime on held-out samples.
        after: The result, likewise.
        fidelity: The result's outputs against the teacher's, likewise.
        changed: Names of the tensors that changed.
        bytes_before: Size of the student.
        bytes_after: Size of the result.
        notes: Sentences for the user.
        seconds: Time of the whole.
        environment: Machine and versions.
    """

    teacher: str
    student: str
    target: str | None
    samples: int
    held_out: int
    stacked: bool
    outputs: list[OutputPlan]
    task: TaskPlan | None
    parameters: int
    masked: float
    training: TrainingResult
    before: Score
    after: Score
    fidelity: Fidelity
    changed: list[str]
    bytes_before: int
    bytes_after: int
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("outputs", "task", "training", "before", "after", "fidelity")
        }
        task = None
        if self.task is not None:
            task = {"output": self.task.output, "loss": self.task.kind}
        return {
            **fields,
            "outputs": [dataclasses.asdict(plan) for plan in self.outputs],
            "task": task,
            "training": self.training.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "fidelity": self.fidelity.to_dict(),
        }


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
        _same_interface(load(self.teacher_path), model, self.teacher_path, self.student_path)
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
            report = self._write(
                model, module, distiller, teacher, reference, data, objective, result, start
            )
            distiller.forget()
            return report

    # Before the training

    def _data(self, model: ir.Model, given: str | os.PathLike[str] | TrainingData) -> TrainingData:
        if isinstance(given, TrainingData):
            return given
        return read_training_data(model, pathlib.Path(given), self.settings.labels)

    def _look(self, teacher: OnnxTeacher, reference: OnnxTeacher, data: TrainingData) -> _LookedAt:
        """Run both models on some samples and see that they can be compared."""
        numbers = range(0, len(data), max(1, len(data) // _LOOKED_AT))[:_LOOKED_AT]
        feeds = [data.feed(number) for number in numbers]
        try:
            wanted = [teacher.outputs(feed) for feed in feeds]
        except OnnxoptError as error:
            raise FeedError(f"the teacher {self.teacher_path} cannot run: {error}") from error
        try:
            given = [_renamed(reference.outputs(feed), self.settings.hints) for feed in feeds]
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
        first, second = _alike_pair(feeds)
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
        return _LookedAt(feeds, wanted, given, labels)

    def _objective(
        self, data: TrainingData, looked_at: _LookedAt, task_loss: TaskLoss | None
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

    def _write(
        self,
        model: ir.Model,
        module: OnnxModule,
        distiller: Distiller,
        teacher: OnnxTeacher,
        reference: OnnxTeacher,
        data: TrainingData,
        objective: Objective,
        result: TrainingResult,
        start: float,
    ) -> DistillReport:
        """Write the result beside its place, judge that very file, and move it there."""
        if result.stopped:
            self.notes.append(f"Training stopped: {result.stopped}.")
        if result.failed:
            self.notes.append("The best student from before that was kept.")
        changed = write_back(module, model)
        batches = _some(distiller.held_out_batches(), _MOST_JUDGED)
        judged = objective.of_outputs()
        outputs = TeacherOutputs(teacher, None)
        wanted = [outputs.of(batch) for batch in batches]
        with _staged(model, self.target, self.settings.external_data) as (path, commit):
            with OnnxTeacher(path, threads=self.settings.threads) as trained:
                after, given = _judge(trained, judged, batches, wanted)
            before, old = _judge(reference, judged, batches, wanted)
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
            parameters=sum(each.numel() for each in module.parameters() if each.requires_grad),
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


@dataclasses.dataclass(frozen=True)
class _LookedAt:
    """Some samples and what both models make of them."""

    feeds: list[Arrays]
    teacher: list[Arrays]
    student: list[Arrays]
    labels: list[np.ndarray[Any, Any]] | None


def _same_interface(
    teacher: ir.Model, student: ir.Model, teacher_path: pathlib.Path, student_path: pathlib.Path
) -> None:
    """Both models take the same inputs and give the same outputs, by name."""
    for what, one, other in (
        ("inputs", required_inputs(teacher), required_inputs(student)),
        ("outputs", teacher.graph.outputs, student.graph.outputs),
    ):
        mine = [str(value.name) for value in one]
        theirs = [str(value.name) for value in other]
        if set(mine) != set(theirs):
            raise ModelError(
                f"teacher and student have other {what}: {', '.join(mine) or 'none'} of "
                f"{teacher_path}, {', '.join(theirs) or 'none'} of {student_path}"
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


def _alike_pair(feeds: Sequence[Arrays]) -> tuple[Arrays, Arrays]:
    """Two samples of the same shapes; one twice when there are no two."""
    seen: dict[Any, Arrays] = {}
    for feed in feeds:
        key = tuple((name, array.shape) for name, array in feed.items())
        if key in seen:
            return seen[key], feed
        seen[key] = feed
    return feeds[0], feeds[0]


def _renamed(outputs: Arrays, hints: Mapping[str, str]) -> Arrays:
    """A student's outputs with its hints under the teacher's names."""
    renamed = {name: array for name, array in outputs.items() if name not in hints.values()}
    return {**renamed, **{name: outputs[inner] for name, inner in hints.items()}}


def _judge(
    model: OnnxTeacher, objective: Objective, batches: Sequence[Batch], wanted: Sequence[Arrays]
) -> tuple[Score, list[Arrays]]:
    """Score a model in ONNX Runtime; give its outputs, too."""
    keeper = ScoreKeeper(objective)
    outputs: list[Arrays] = []
    for batch, reference in zip(batches, wanted, strict=True):
        found = model.outputs(batch.feed)
        outputs.append(found)
        mine, wanted_tensors = _tensors(found), _tensors(reference)
        loss = objective(mine, wanted_tensors, batch).total
        keeper.add(mine, wanted_tensors, batch, float(loss))
    return keeper.score(), outputs


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if array.dtype.kind in "fiub"
    }


def _some(batches: Sequence[Batch], most: int) -> list[Batch]:
    """The first batches, up to so many samples."""
    chosen: list[Batch] = []
    count = 0
    for batch in batches:
        chosen.append(batch)
        count += batch.size
        if count >= most:
            break
    return chosen


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
