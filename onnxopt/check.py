"""Do two models give the same answers, and if not, which layer is the first that differs?

Of a quantized model every layer differs; then it is said how much noise each has, and why.

Outputs are compared at the runtime's default optimization level, since that is what users deploy,
with the tolerance and the allowance for the first model's own rounding that `optimize` uses too.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from onnxopt.analysis.quantization import is_quantized
from onnxopt.data import Feed, FeedRequest, FeedSource
from onnxopt.errors import ModelError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.explain import AttributionReport, check_attribution_possible, explain
from onnxopt.instruments.verify import Objection, Referee
from onnxopt.model import load, save
from onnxopt.noise import LayerNoise, layer_noise
from onnxopt.runtime.compare import Difference, Tolerance, compare
from onnxopt.runtime.messages import SessionInfo
from onnxopt.runtime.probe import environment
from onnxopt.runtime.trial import try_model
from onnxopt.runtime.worker import Worker, shared_worker

__all__ = ["CheckReport", "LayerDifference", "check"]

#: So many samples are compared.
_MOST_FEEDS = 8
#: So many samples are explained.
_MOST_EXPLAINED = 16
#: Inner values are fetched in batches, so that not all are in memory at once.
_LAYERS_AT_ONCE = 24
_HOW_MEASURED = (
    "Layers that give whole numbers were looked at as ONNX Runtime's fused kernels give them. To "
    "look at a float value between layers undoes fusions over it: those were measured without."
)


@dataclasses.dataclass(frozen=True)
class LayerDifference:
    """The first inner value that differs, in the order in which the first model computes them.

    Attributes:
        value: Its name, the same in both models.
        first_node: Operator and name of the node that computes it in the first model.
        second_node: The same in the second model.
        reason: How it differs.
        agreed: How many inner values before it agree.
    """

    value: str
    first_node: str
    second_node: str
    reason: str
    agreed: int


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """Whether two models agree.

    Attributes:
        first: Path of the first model.
        second: Path of the second.
        agree: Whether the interface is the same and all outputs are within tolerance.
        interface: What differs between the interfaces, one sentence each.
        feeds: Number of feeds that were compared.
        differences: How each output of each feed differs.
        layer: The first inner value that differs, where outputs do and there is one.
        tolerance: What was allowed.
        notes: What to know about the result.
        environment: Machine and versions.
        attribution: Whether both answer for the same reasons, where that was asked.
        noise: Signal to noise of each layer, the worst first, where the second is quantized.
    """

    first: str
    second: str
    agree: bool
    interface: tuple[str, ...]
    feeds: int
    differences: tuple[Difference, ...]
    layer: LayerDifference | None
    tolerance: Tolerance
    notes: tuple[str, ...]
    environment: dict[str, Any]
    attribution: AttributionReport | None = None
    noise: tuple[LayerNoise, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; a difference may be infinite."""
        known = dataclasses.asdict(self)
        if self.attribution is not None:
            known["attribution"] = self.attribution.to_dict()
        return known


def check(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    data: pathlib.Path | None = None,
    request: FeedRequest | None = None,
    tolerance: Tolerance | None = None,
    threads: int = 1,
    attribution: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> CheckReport:
    """Compare two models in ONNX Runtime.

    Args:
        first: The reference.
        second: The model that is held against it.
        data: Folder of ``.npz`` feeds or one ``.npz`` of stacked samples; made up when None.
        request: What is fixed of made-up feeds.
        tolerance: How far outputs may be apart.
        threads: Threads for one operator.
        attribution: Compare why the two answer as they do, too (see `onnxopt.explain`).
        on_step: Told what is being done.

    Raises:
        OnnxoptError: When a model cannot be read or run, or no feed can be had.
    """
    if attribution:
        check_attribution_possible()
    comparison = _Check(
        pathlib.Path(first), pathlib.Path(second), tolerance or Tolerance(), threads, on_step
    )
    report = comparison.run(data, request)
    if not attribution:
        return report
    return dataclasses.replace(report, attribution=comparison.explain())


class _Check:
    """One comparison; the methods follow the order of the work."""

    def __init__(
        self,
        first: pathlib.Path,
        second: pathlib.Path,
        tolerance: Tolerance,
        threads: int,
        on_step: Callable[[str], None],
    ) -> None:
        self.paths = first, second
        self.tolerance, self.threads, self.on_step = tolerance, threads, on_step
        self.worker: Worker = shared_worker("trials")
        self.notes: list[str] = []

    def run(self, data: pathlib.Path | None, request: FeedRequest | None) -> CheckReport:
        self.on_step("loading")
        first, second = map(load, self.paths)
        source = self.source = FeedSource(first, data, request)
        self.given = data is not None
        self.on_step("running the first model")
        with _named(self.paths[0]):
            self.referee = Referee(
                self.worker,
                self.paths[0],
                lambda try_run: source.feeds(try_run, _MOST_FEEDS),
                threads=self.threads,
                tolerance=self.tolerance,
            )
        self.on_step("running the second model")
        with _named(self.paths[1]):
            info = self.worker.open(self.paths[1], threads=self.threads)
            self.worker.close(info.session)
        interface = _interface_differences(self.referee.reference.info, info)
        objection, differences = self._compare(info, bool(interface))
        layer, noise = None, []
        if objection is not None:
            if is_quantized(second) and not is_quantized(first):
                noise = self._noise(first, second)
            if not noise:
                self.on_step("looking for the first layer that differs")
                layer = self._first_layer(first, second)
        return CheckReport(
            str(self.paths[0]),
            str(self.paths[1]),
            not interface and objection is None,
            tuple(interface),
            len(self.referee.feeds),
            tuple(differences),
            layer,
            self.tolerance,
            tuple(self.notes),
            environment(self.threads),
            noise=tuple(noise),
        )

    def _noise(self, first: ir.Model, second: ir.Model) -> list[LayerNoise]:
        """How much noise each layer of a quantized model has, the worst first.

        In a quantized model nearly all layers differ, so that the first one that does says nothing.
        """
        try:
            found = layer_noise(
                first,
                second,
                self.referee.feeds,
                worker=self.worker,
                threads=self.threads,
                saturation=True,
                on_step=self.on_step,
            )
        except (RuntimeRefusalError, RuntimeCrashError) as error:
            self.notes.append(f"Layers could not be compared: {error}")
            return []
        if any(not each.whole for each in found):
            self.notes.append(_HOW_MEASURED)
        # What has another shape on purpose, such as fewer channels, has no noise to speak of.
        return sorted(found, key=lambda each: (each.cause == "mismatch", each.sqnr_db))

    def explain(self) -> AttributionReport:
        """Compare why the two answer as they do."""
        self.on_step("reading samples to explain")
        feeds = list(self.referee.feeds)
        if self.given:
            feeds = list(itertools.islice(self.source.read(), _MOST_EXPLAINED))
        outputs = [port.name for port in self.referee.reference.info.outputs]
        floats = [
            name
            for name, value in zip(outputs, self.referee.reference.outputs[0], strict=True)
            if getattr(value, "dtype", None) is not None and value.dtype.kind == "f"
        ]
        if not floats:
            raise ModelError(f"{self.paths[0]} gives no numbers that could be explained")
        return explain(
            self.paths,
            feeds,
            self.worker,
            output=floats[0],
            given=self.given,
            threads=self.threads,
            on_step=self.on_step,
        )

    def _compare(
        self, second: SessionInfo, other_interface: bool
    ) -> tuple[Objection | None, list[Difference]]:
        """Compare all outputs, or those that both have where the interfaces differ."""
        if not other_interface:
            objection, trial, differences = self.referee.judge(self.paths[1], fusions=False)
            if trial is None:
                assert objection is not None
                raise ModelError(f"{self.paths[1]}: {objection.message}")
            return objection, differences
        known = {port.name for port in self.referee.reference.info.inputs}
        missing = [port.name for port in second.inputs if port.name not in known]
        names = [port.name for port in self.referee.reference.info.outputs]
        positions = {port.name: index for index, port in enumerate(second.outputs)}
        common = [name for name in names if name in positions]
        if missing or not common:
            self.notes.append("Outputs were not compared, since the interfaces differ too much.")
            return None, []
        taken = {port.name for port in second.inputs}
        feeds = [
            {name: value for name, value in feed.items() if name in taken}
            for feed in self.referee.feeds
        ]
        with _named(self.paths[1]):
            trial = try_model(self.worker, self.paths[1], feeds, threads=self.threads)
        differences = []
        for expected, actual in zip(self.referee.reference.outputs, trial.outputs, strict=True):
            left = [expected[names.index(name)] for name in common]
            right = [actual[positions[name]] for name in common]
            differences.extend(compare(left, right, common, self.tolerance))
        wrong = next((each for each in differences if not each.agrees), None)
        message = "" if wrong is None else f"output '{wrong.output}' {wrong.reason}"
        return None if wrong is None else Objection("outputs", message), differences

    def _first_layer(self, first: ir.Model, second: ir.Model) -> LayerDifference | None:
        """Fetch inner values that both models have, in order, until one differs."""
        nodes = [_producers(model) for model in (first, second)]
        shared = [name for name in nodes[0] if name in nodes[1]]
        if not shared:
            self.notes.append("No inner value has the same name in both models.")
            return None
        with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
            copies = []
            for name, model in (("first", first), ("second", second)):
                path = pathlib.Path(folder) / name / "model.onnx"
                path.parent.mkdir()
                save(model, path, "always")  # so that only the graph is written again each time
                copies.append(path)
            for start in range(0, len(shared), _LAYERS_AT_ONCE):
                batch = shared[start : start + _LAYERS_AT_ONCE]
                self.on_step(f"comparing inner values, {start} of {len(shared)}")
                found = self._first_of(copies, batch)
                if found is not None:
                    index = batch.index(found.output.partition("[")[0])
                    name = batch[index]
                    return LayerDifference(
                        name,
                        _node_text(nodes[0][name]),
                        _node_text(nodes[1][name]),
                        found.reason,
                        start + index,
                    )
        self.notes.append(
            "All inner values that both models have agree when they are looked at: what differs "
            "lies behind them, or arises where ONNX Runtime fuses over them."
        )
        return None

    def _first_of(self, copies: Sequence[pathlib.Path], names: Sequence[str]) -> Difference | None:
        outputs: list[list[list[Any]]] = []
        for copy in copies:
            watching = _with_outputs(copy, names)
            session = self.worker.open(watching, threads=self.threads)
            try:
                taken = {port.name for port in session.inputs}
                at = {port.name: index for index, port in enumerate(session.outputs)}
                runs = [
                    self.worker.run(session.session, _only(feed, taken))
                    for feed in self.referee.feeds
                ]
                outputs.append([[run[at[name]] for name in names] for run in runs])
            finally:
                self.worker.close(session.session)
        found = [
            difference
            for expected, actual in zip(*outputs, strict=True)
            for difference in compare(expected, actual, names, self.tolerance)
            if not difference.agrees
        ]
        order = {name: index for index, name in enumerate(names)}
        return min(found, key=lambda each: order[each.output.partition("[")[0]], default=None)


class _named:  # noqa: N801 - reads as a phrase where it is used
    """Put the model's name before what the runtime says about it."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeRefusalError):
            raise ModelError(f"ONNX Runtime refuses {self._path}: {error}") from error
        if isinstance(error, RuntimeCrashError):
            raise ModelError(f"{self._path} cannot be run: {error}") from error


def _interface_differences(first: SessionInfo, second: SessionInfo) -> list[str]:
    """What differs, as the runtime sees it; sizes that only one model states do not count."""
    found: list[str] = []
    for kind in ("inputs", "outputs"):
        mine = {port.name: port for port in getattr(first, kind)}
        theirs = {port.name: port for port in getattr(second, kind)}
        word = kind[:-1]
        found.extend(f"{word} '{name}' is only in the first" for name in mine if name not in theirs)
        found.extend(
            f"{word} '{name}' is only in the second" for name in theirs if name not in mine
        )
        common = [name for name in mine if name in theirs]
        for name in common:
            one, other = mine[name], theirs[name]
            if one.type != other.type:
                found.append(
                    f"{word} '{name}' is {one.type} in the first, {other.type} in the second"
                )
            elif len(one.shape) != len(other.shape) or any(
                isinstance(a, int) and isinstance(b, int) and a != b
                for a, b in zip(one.shape, other.shape, strict=True)
            ):
                left, right = list(one.shape), list(other.shape)
                found.append(f"{word} '{name}' is {left} in the first, {right} in the second")
        if common != [name for name in theirs if name in mine]:
            found.append(f"the {kind} come in another order")
    return found


def _producers(model: ir.Model) -> Mapping[str, ir.Node]:
    """Nodes of the main graph by the inner values they compute, in order."""
    return {
        value.name: node
        for node in model.graph
        for value in node.outputs
        if value.name and not value.is_graph_output()
    }


def _with_outputs(path: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """A copy of a model, beside it, that gives these inner values too."""
    proto = onnx.load_model(path, load_external_data=False)
    known = {value.name: value for value in proto.graph.value_info}
    proto.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    watching = path.with_name("watching.onnx")
    watching.write_bytes(proto.SerializeToString())
    return watching


def _only(feed: Feed, names: set[str]) -> Feed:
    return {name: value for name, value in feed.items() if name in names}


def _node_text(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name}'" if node.name else node.op_type
