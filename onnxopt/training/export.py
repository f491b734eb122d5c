"""Export a trained module to a new ONNX graph, for those who changed what it computes.

Where the graph is as it was, `write_back` is the better way: it keeps graph, opset and names.
"""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from onnxopt.errors import ModelError, RuntimeCrashError, RuntimeRefusalError
from onnxopt.model import from_proto, stage
from onnxopt.runtime.compare import Tolerance, compare
from onnxopt.runtime.worker import shared_worker
from onnxopt.training.evaluating import evaluating
from onnxopt.training.module import OnnxModule
from onnxopt.training.numbers import array_of, tensor_of

__all__ = ["export"]

_TOLERANCE = Tolerance(rtol=1e-3, atol=1e-4)


def export(
    module: OnnxModule,
    target: str | os.PathLike[str],
    feed: Mapping[str, NDArray[Any]],
    *,
    dynamic: bool = True,
    opset: int | None = None,
) -> None:
    """Trace a module with `torch.onnx` and write the graph, checked in ONNX Runtime.

    Sizes that were free in the model stay free where the trace allows it. Weights keep their names.

    Args:
        module: What `import_model` made, trained or not.
        target: The file to write; it appears only when the check succeeds.
        feed: Inputs by name, with sizes of at least 2 where they are free. It is what the trace is
            made with, and what ONNX Runtime and the module are compared on.
        dynamic: Whether sizes stay free; else they are those of the feed.
        opset: The opset to export to; None for PyTorch's default.

    Raises:
        ModelError: PyTorch cannot trace the module or write its operators, ONNX Runtime refuses the
            result or gives something else, or the file cannot be written.
    """
    tensors = tuple(tensor_of(feed[name]) for name in module.input_names)
    with evaluating(module), torch.no_grad():
        expected = module(*tensors)
        model = _traced(module, tensors, dynamic, opset)
    outputs = expected if isinstance(expected, tuple) else (expected,)
    _rename(model, module)
    staged = stage(from_proto(ir.to_proto(model)), target)
    try:
        _check(staged.path, feed, module.output_names, [array_of(each) for each in outputs])
    except BaseException:
        staged.discard()
        raise
    staged.commit()


def _traced(
    module: OnnxModule, tensors: tuple[Any, ...], dynamic: bool, opset: int | None
) -> ir.Model:
    shapes = None
    if dynamic:
        auto = torch.export.Dim.AUTO
        shapes = {"inputs": tuple(dict.fromkeys(axes, auto) for axes in module.free_axes)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own deprecations
            program = torch.onnx.export(
                module,
                tensors,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(module.input_names),
                output_names=list(module.output_names),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # of many kinds, from many layers
        hint = "; sizes that stay as they are may help (dynamic=False)" if dynamic else ""
        reason = _reason(error)
        raise ModelError(f"PyTorch cannot export the module: {reason}{hint}") from error
    traced: ir.Model = program.model
    return traced


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _rename(model: ir.Model, module: OnnxModule) -> None:
    """Give weights the names that they have in the graph they came from."""
    initializers = model.graph.initializers
    for name in module.weights:
        traced = module.module_name(name)
        if traced != name and traced in initializers and name not in initializers:
            initializers[traced].name = name


def _check(
    path: pathlib.Path,
    feed: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    expected: Sequence[NDArray[Any]],
) -> None:
    worker = shared_worker("export")
    try:
        session = worker.open(path).session
        actual = worker.run(session, dict(feed))
        worker.close(session)
    except (RuntimeRefusalError, RuntimeCrashError) as error:
        raise ModelError(f"ONNX Runtime refuses the exported model: {error}") from error
    for difference in compare(expected, actual, names, _TOLERANCE):
        if not difference.agrees:
            raise ModelError(
                f"the exported model gives something else for '{difference.output}': "
                f"{difference.reason}"
            )
