"""What goes into layers when the model runs, as Gram matrices, collected from samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute, ints_attribute, string_attribute
from onnxopt.calibration import Gram, GramObserver, observe
from onnxopt.errors import CalibrationError
from onnxopt.numerics.layer_inputs import ConvolutionInput, LayerInput, ProductInput
from onnxopt.rewriting import Refuse
from onnxopt.samples import Samples
from onnxopt.workbench import Workbench

from .layers import Layer

__all__ = ["GramMatrices"]

Array = np.ndarray[Any, Any]
#: A layer and what to observe for it, by tensor, or why nothing is.
_Wanted = tuple[Layer, list[tuple[str, Gram]] | str]

#: Gram matrices of so many bytes are collected in one go through the samples.
_MOST_BYTES = 1 << 29
_NUMBER_BYTES = 8
#: Rows to take from all samples together for each column, and from each sample at least: more rows
#: than these tell hardly more, and take their time.
_ROWS_A_COLUMN = 4
_LEAST_ROWS = 64


class GramMatrices:
    """The Gram matrix of each layer's inputs, with columns as `Layer.matrix` has them.

    Goes through the layers, each with its Gram matrix (the mean of ``x x^T`` over all rows x,
    float64 [groups, columns, columns]), or with a phrase why there is none. Samples are gone
    through as often as memory asks for, so layers come in parts; if there is only one part, it is
    kept for the next time.

    Args:
        model: The model, whose weights may be changed between layers.
        layers: What is asked for.
        samples: The samples.
        workbench: Where to run the model.
    """

    def __init__(
        self, model: ir.Model, layers: Sequence[Layer], samples: Samples, workbench: Workbench
    ) -> None:
        self._model, self._layers = model, layers
        self._samples, self._workbench = samples, workbench
        self._kept: list[tuple[Layer, Array | str]] = []

    def __iter__(self) -> Iterator[tuple[Layer, Array | str]]:
        if self._kept:
            yield from self._kept
            return
        parts = list(self._parts())
        for part in parts:
            found = list(_collect(self._model, part, self._samples, self._workbench))
            if len(parts) == 1:
                self._kept = found
            yield from found

    def _parts(self) -> Iterator[list[_Wanted]]:
        """Layers whose Gram matrices fit into memory together."""
        samples = sum(1 for _ in self._samples)
        part: list[_Wanted] = []
        held = 0
        for layer in self._layers:
            columns = layer.layout.columns
            rows = max(_LEAST_ROWS, -(-_ROWS_A_COLUMN * columns // max(1, samples)))
            wanted: list[tuple[str, Gram]] | str
            try:
                wanted = [_request(layer, node, rows) for node in layer.readers]
            except Refuse as refusal:
                wanted = str(refusal)
            size = layer.layout.groups * columns**2 * _NUMBER_BYTES * len(layer.readers)
            if part and held + size > _MOST_BYTES:
                yield part
                part, held = [], 0
            part.append((layer, wanted))
            held += size
        if part:
            yield part


def _collect(
    model: ir.Model, part: Sequence[_Wanted], samples: Samples, workbench: Workbench
) -> Iterator[tuple[Layer, Array | str]]:
    requests: dict[str, list[Gram]] = {}
    for _, wanted in part:
        for tensor, spec in () if isinstance(wanted, str) else wanted:
            requests.setdefault(tensor, []).append(spec)
    if not requests:
        yield from ((layer, str(wanted)) for layer, wanted in part)
        return
    found = observe(
        model,
        samples,
        requests,
        worker=workbench.worker,
        crew=workbench.crew,
        threads=workbench.threads,
        skip_unobservable=True,
        on_step=workbench.on_step,
    )
    for layer, wanted in part:
        if isinstance(wanted, str):
            yield layer, wanted
            continue
        try:
            seen = [found.get(tensor, spec) for tensor, spec in wanted]
        except CalibrationError:
            reasons = [found.left_alone[tensor] for tensor, _ in wanted if tensor not in found]
            yield layer, f"its input {reasons[0]}" if reasons else "its input was not seen"
            continue
        yield layer, _together(layer, [each for each in seen if each.count])


def _together(layer: Layer, seen: Sequence[GramObserver]) -> Array | str:
    """What all readers of a weight multiply it with."""
    count = sum(each.count for each in seen)
    if not count:
        return "its input is empty in all samples"
    order = layer.layout.columns_in_natural_order()
    gram = sum(each.gram for each in seen if each.gram is not None)
    assert isinstance(gram, np.ndarray)
    return _drawn(gram[:, order[:, None], order[None, :]] / count, count)


def _drawn(gram: Array, rows: int) -> Array:
    """A Gram matrix drawn towards its diagonal, the more the fewer rows it is made of.

    With fewer rows than columns, inputs seem to depend on one another that do not, and weights
    would be moved to where they fit these rows only.
    """
    columns = gram.shape[-1]
    share = (columns / (columns + rows)) ** 2
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    result: Array = (1 - share) * gram
    result[..., np.arange(columns), np.arange(columns)] = diagonal
    return result


def _request(layer: Layer, node: ir.Node, rows: int) -> tuple[str, Gram]:
    """The tensor that a node multiplies the weight with, and how it becomes rows."""
    index, seen = _SIDES.get(node.op_type, _no_side)(layer, node)
    value = node.inputs[index]
    if value is None or not value.name:
        raise Refuse("it has no input")
    return value.name, Gram(seen, rows, max(layer.layout.columns, 1))


# What the inputs of the operators look like

_Side = Callable[[Layer, ir.Node], tuple[int, LayerInput]]


def _no_side(layer: Layer, node: ir.Node) -> tuple[int, LayerInput]:
    raise Refuse(f"what {node.op_type} multiplies it with is not observed")


def _conv(layer: Layer, node: ir.Node) -> tuple[int, LayerInput]:
    axes = len(layer.shape) - 2
    return 0, ConvolutionInput(
        kernel=layer.shape[2:],
        strides=ints_attribute(node, "strides") or (1,) * axes,
        dilations=ints_attribute(node, "dilations") or (1,) * axes,
        pads=ints_attribute(node, "pads") or (0,) * (2 * axes),
        auto_pad=string_attribute(node, "auto_pad", "NOTSET"),
        groups=layer.layout.groups,
    )


def _conv_transpose(layer: Layer, node: ir.Node) -> tuple[int, LayerInput]:
    """Each place of the input by itself: what neighbours add to the same output is left out."""
    axes = len(layer.shape) - 2
    ones, zeros = (1,) * axes, (0,) * (2 * axes)
    return 0, ConvolutionInput(ones, ones, ones, zeros, groups=layer.layout.groups)


def _gemm(layer: Layer, node: ir.Node) -> tuple[int, LayerInput]:
    return 0, ProductInput(transposed=bool(int_attribute(node, "transA", 0)))


def _matmul(layer: Layer, node: ir.Node) -> tuple[int, LayerInput]:
    if layer.layout.groups > 1:
        raise Refuse("it holds several matrices")
    return (1, ProductInput(transposed=True)) if layer.index == 0 else (0, ProductInput())


_SIDES: dict[str, _Side] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
