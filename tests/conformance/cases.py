"""ONNX's backend test cases, made ready to be optimized and run.

A node case usually feeds everything, so that constants are rare in it. `with_constants` turns fed
inputs into initializers: then the same case shows what passes make of known shapes, axes, bounds
and weights.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.model import Interface, from_proto, restore_interface, to_proto
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.compare import Tolerance, compare
from onnxopt.runtime.worker import Worker

__all__ = [
    "Case",
    "Verdict",
    "judge",
    "node_cases",
    "runnable_case",
    "stored_cases",
    "with_constants",
]

#: The differential tolerance of the tests of passes.
TOLERANCE = Tolerance(rtol=1e-4, atol=1e-5)
#: Tried in turn when the runtime has no kernel at a case's own opset, which may be newer than it.
_OLDER_OPSETS = (25, 21, 18, 15)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with its inputs and the outputs that it should give.

    Attributes:
        name: Name of the case.
        model: The model.
        feeds: Inputs by name, one dict a run.
        expected: Outputs by run, as the case gives them.
        tolerance: How close outputs have to be to those.
    """

    name: str
    model: onnx.ModelProto
    feeds: tuple[dict[str, Any], ...]
    expected: tuple[tuple[Any, ...], ...]
    tolerance: Tolerance


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        compared: Whether the original ran and gives the same outputs each time.
        changed: Whether the pipeline changed the model.
        fault: What is wrong with the result, or empty.
    """

    compared: bool
    changed: bool = False
    fault: str = ""


@functools.cache
def node_cases() -> tuple[Case, ...]:
    """The cases of single operators, in the order of their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy, on the overflows that some cases are about
        found = load_model_tests(kind="node")
    cases = []
    for test in found:
        names = [value.name for value in test.model.graph.input]
        outputs = tuple(tuple(_listed(value) for value in data[1]) for data in test.data_sets)
        feeds = tuple(
            {name: _listed(value) for name, value in zip(names, data[0], strict=False)}
            for data in test.data_sets
        )
        tolerance = Tolerance(test.rtol, test.atol)
        cases.append(Case(test.name, test.model, feeds, outputs, tolerance))
    return tuple(sorted(cases, key=lambda case: case.name))


def stored_cases(kind: str) -> Iterator[Case]:
    """Cases that the onnx package keeps as files: simple, pytorch-converted, pytorch-operator."""
    for test in load_model_tests(kind=kind):
        folder = pathlib.Path(test.model_dir)
        model = onnx.load(folder / "model.onnx")
        feeds, expected = [], []
        for data in sorted(folder.glob("test_data_set_*")):
            inputs = _read_values(data, "input", model.graph.input)
            feeds.append(
                {value.name: read for value, read in zip(model.graph.input, inputs, strict=False)}
            )
            expected.append(tuple(_read_values(data, "output", model.graph.output)))
        tolerance = Tolerance(test.rtol, test.atol)
        yield Case(test.name, model, tuple(feeds), tuple(expected), tolerance)


def with_constants(case: Case, keep: int) -> Case | None:
    """The case with all but the first ``keep`` inputs as initializers; None when none would be."""
    fixed = {
        name: array
        for name, array in list(case.feeds[0].items())[keep:]
        if isinstance(array, np.ndarray)
    }
    if not fixed or len(case.feeds) > 1:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs = [value for value in model.graph.input if value.name not in fixed]
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for name, array in fixed.items():
        tensor = onnx.numpy_helper.from_array(array, name)
        if tensor.data_type != types[name]:
            return None  # 4-bit numbers, which numpy holds as bytes
        model.graph.initializer.append(tensor)
    feed = {name: value for name, value in case.feeds[0].items() if name not in fixed}
    return dataclasses.replace(case, model=model, feeds=(feed,))


def runnable_case(case: Case, worker: Worker) -> Case | None:
    """The case at an opset that the runtime takes; None when there is none."""
    for opset in (None, *_OLDER_OPSETS):
        older = case if opset is None else _at_opset(case, opset)
        if older is None:
            continue
        try:
            _run(worker, older.model, older.feeds)
        except (RuntimeRefusalError, RuntimeCrashError):
            continue
        return older
    return None


def judge(case: Case, pipeline: str, worker: Worker) -> Verdict:
    """Optimize a case and hold the result against the original and the expected outputs."""
    runnable = runnable_case(case, worker)
    if runnable is None:
        return Verdict(False)
    case = runnable
    names = [value.name for value in case.model.graph.output]
    before = _run(worker, case.model, case.feeds)
    again = _run(worker, case.model, case.feeds, repeat=2)
    if any(_faults(one, two, names, TOLERANCE) for one, two in zip(before, again, strict=True)):
        return Verdict(False)
    original = from_proto(case.model)
    interface = Interface.of(original)
    model = from_proto(case.model)
    try:
        reports = PassManager(parse_pipeline(pipeline)).run(model)
        restore_interface(model, interface)
        result = to_proto(model)
        onnx.checker.check_model(result)
    except Exception as error:
        return Verdict(True, True, f"optimizing it failed: {error!r}")
    changed = any(report.outcome.changed_model for report in reports)
    difference = interface.difference(Interface.of(from_proto(result)))
    if difference is not None:
        return Verdict(True, changed, difference)
    try:
        after = _run(worker, result, case.feeds)
    except (RuntimeRefusalError, RuntimeCrashError) as error:
        return Verdict(True, changed, f"the result does not run: {error}")
    for wanted, was, now in zip(case.expected, before, after, strict=True):
        fault = _faults(was, now, names, TOLERANCE)
        if not fault and not _faults(wanted, was, names, case.tolerance):
            fault = _faults(wanted, now, names, case.tolerance)
        if fault:
            return Verdict(True, changed, fault)
    return Verdict(True, changed)


def _at_opset(case: Case, opset: int) -> Case | None:
    """The case with an older standard opset, where it is valid in that."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for entry in model.opset_import:
        if entry.domain == "" and entry.version > opset:
            entry.version = opset
            try:
                onnx.checker.check_model(model)
            except onnx.checker.ValidationError:
                return None
            return dataclasses.replace(case, model=model)
    return None


def _run(
    worker: Worker, model: onnx.ModelProto, feeds: Sequence[dict[str, Any]], repeat: int = 1
) -> list[list[Any]]:
    """Outputs by feed; of the last of ``repeat`` runs."""
    session = worker.open(model.SerializeToString()).session
    try:
        return [[worker.run(session, feed) for _ in range(repeat)][-1] for feed in feeds]
    finally:
        worker.close(session)


def _faults(
    expected: Sequence[Any], actual: Sequence[Any], names: Sequence[str], tolerance: Tolerance
) -> str:
    wrong = [each for each in compare(expected, actual, names, tolerance) if not each.agrees]
    return "; ".join(f"output '{each.output}' {each.reason}" for each in wrong)


def _listed(value: Any) -> Any:
    """Sequences as lists; tensors as arrays."""
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if value is None or isinstance(value, dict) else np.asarray(value)


def _read_values(
    folder: pathlib.Path, prefix: str, values: Sequence[onnx.ValueInfoProto]
) -> list[Any]:
    read: list[Any] = []
    for index, value in enumerate(values):
        path = folder / f"{prefix}_{index}.pb"
        if not path.exists():
            break
        content = path.read_bytes()
        kind = value.type.WhichOneof("value")
        if kind == "sequence_type":
            read.append(onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(content)))
        elif kind == "tensor_type":
            read.append(onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content)))
        else:
            raise ValueError(f"{path} holds a {kind}")
    return read
