"""What the samples say of the layers: the moments of what they read, and how often they run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.attributes import int_attribute, ints_attribute, string_attribute
from onnxopt.calibration import Channels, Gram, Observations, observe
from onnxopt.channels import GroupCount, Layer, Trace
from onnxopt.numerics.input_removal import Moments
from onnxopt.numerics.layer_inputs import ConvolutionInput, LayerInput, ProductInput
from onnxopt.samples import Samples, split
from onnxopt.workbench import Workbench

__all__ = ["Evidence", "layer_input"]

Array = np.ndarray[Any, Any]


def layer_input(layer: Layer) -> LayerInput | None:
    """How the input of a layer becomes rows; None where that is not known (ConvTranspose)."""
    node, shape = layer.node, layer.weights.stored.shape
    if node.op_type in ("Gemm", "MatMul"):
        transposed = node.op_type == "Gemm" and int_attribute(node, "transB", 0) != 0
        return ProductInput(weights_transposed=transposed)
    if node.op_type != "Conv":
        return None
    axes = len(shape) - 2
    return ConvolutionInput(
        kernel=tuple(shape[2:]),
        strides=ints_attribute(node, "strides") or (1,) * axes,
        dilations=ints_attribute(node, "dilations") or (1,) * axes,
        pads=ints_attribute(node, "pads") or (0,) * (2 * axes),
        auto_pad=string_attribute(node, "auto_pad", "NOTSET"),
        groups=layer.groups,
    )


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was seen of a model's layers.

    Attributes:
        fitted: What was seen of the samples that layers are fitted to.
        checked: The same for some that are kept back, to tell a fit from an accident.
        check: These samples.
    """

    fitted: Observations
    checked: Observations
    check: Samples

    @classmethod
    def gather(cls, model: ir.Model, trace: Trace, bench: Workbench, *, moments: bool) -> Evidence:
        """Run the calibration samples through the model once.

        Args:
            model: The model.
            trace: Its channels.
            bench: Where to run it, and on what.
            moments: Whether moments are wanted, or only how often layers run.
        """
        requests: dict[str, list[Any]] = {}
        for layer in trace.layers:
            source = layer_input(layer) if moments and layer.inputs is not None else None
            if source is not None:
                requests.setdefault(_name(layer.node.inputs[0]), []).append(Gram(source))
            axis = 1 if layer.output is None else layer.output.axis
            requests.setdefault(_name(layer.node.outputs[0]), []).append(Channels(axis))
        for node in _depthwise(trace):
            requests.setdefault(_name(node.outputs[0]), []).append(Channels(1))
        for pairing in trace.pairings:
            requests.setdefault(_name(pairing.node.outputs[0]), []).append(Channels(1))
        fit, check = split(bench.calibration)
        fitted, checked = (
            observe(
                model,
                samples,
                requests,
                worker=bench.worker,
                crew=bench.crew,
                threads=bench.threads,
                skip_unobservable=True,
                on_step=bench.on_step,
            )
            for samples in (fit, check)
        )
        return cls(fitted, checked, check)

    def moments(self, layer: Layer, group: int) -> tuple[Moments, Moments] | None:
        """The moments of the rows of one group of a layer: to fit to, and to check with.

        None where they were not observed.
        """
        source = layer_input(layer)
        if source is None:
            return None
        found = []
        for observations in (self.fitted, self.checked):
            seen = _seen(observations, layer.node.inputs[0], Gram(source))
            if seen is None or not seen.gram.size or not seen.count:
                return None
            centred = layer.bias_place is not None
            found.append(
                Moments.of(seen.gram[group], seen.sums[group], seen.count, centred=centred)
            )
        return found[0], found[1]

    def places(self, value: ir.Value, axis: int) -> float | None:
        """How many numbers of each channel there are in a sample; None where that is not known."""
        seen = _seen(self.fitted, value, Channels(axis))
        if seen is None or not seen.elements:
            return None
        return float(seen.elements / max(1, self.fitted.samples))


def _seen(observations: Observations, value: ir.Value | None, spec: Any) -> Any:
    return observations.observers.get(_name(value), {}).get(spec)


def _depthwise(trace: Trace) -> list[ir.Node]:
    return [each.node for each in trace.followers if isinstance(each, GroupCount)]


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return value.name or ""
