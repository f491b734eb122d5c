"""Carry out a plan: put QuantizeLinear and DequantizeLinear where the runtime fuses them.

The rules of ONNX Runtime's selectors that shape this: each input of an 8-bit node comes from a
DequantizeLinear of its own, and its output goes to one QuantizeLinear and nowhere else; readers in
float read behind that. Relu and Clip before a QuantizeLinear are left out, since the range ends
where they would cut, and saturation does the cutting. Nodes that only move numbers move 8-bit ones.

HardSigmoid needs no kernel of its own. With x = s (q - z), the numbers of x read with the scale
``slope * s`` are ``slope * x``; adding the offset and quantizing with scale 1/255 and zero point 0
saturates at 0 and 1, which is what HardSigmoid does.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant_array
from onnxopt.regions import Follower, FollowerKind, Product, Recurrence, recurrences

from .dynamic import lower_dynamic
from .editing import Editor, called_after
from .numbers import Divided, Numbers
from .parameters import Parameters
from .plan import Mode, Plan
from .recurrent import lower_recurrence
from .territory import Territory
from .weights import Weights, quantize_bias

__all__ = ["lower"]

Array = np.ndarray[Any, Any]


def lower(model: ir.Model, plan: Plan, numbers: Numbers) -> Counter[str]:
    """Carry out a plan on a model, in place.

    Args:
        model: The float model. Its opset has per-channel DequantizeLinear (13), and element types
            are known.
        plan: What becomes of each product.
        numbers: Ranges, weights and biases.

    Returns:
        How often each mode, and each kind of follower, was carried out.

    Raises:
        MissingRangeError: When a tensor that is to be quantized has no range.
    """
    return _Lowering(model, plan, numbers).run()


class _Lowering:
    def __init__(self, model: ir.Model, plan: Plan, numbers: Numbers) -> None:
        self._editor = Editor(model)
        self._graph = model.graph
        self._plan, self._numbers = plan, numbers
        self._territory = Territory(model.graph, plan, numbers)
        #: The 8-bit numbers of values that 8-bit nodes make; float readers must read behind them.
        self._made: dict[ir.Value, ir.Value] = {}
        #: The 8-bit numbers of values that are made in float.
        self._read: dict[ir.Value, ir.Value] = {}
        #: Activations divided by factors, by what was divided and the factors.
        self._divided: dict[tuple[ir.Value, bytes], ir.Value] = {}
        self._replaced: list[ir.Node] = []
        self._done: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        for node in list(self._graph):
            product = self._territory.products.get(node)
            following = self._territory.followers.get(node)
            if product is not None:
                self._lower_product(product)
            elif following is not None:
                self._done["follower"] += 1
                self._lower_follower(following)
        for layer in list(recurrences(self._graph)):
            if isinstance(layer, Recurrence) and self._plan.mode(layer.key) is Mode.DYNAMIC:
                self._done["recurrent"] += 1
                lower_recurrence(self._editor, layer, self._numbers.recurrent[layer.key])
        for value, numbers in self._made.items():
            self._let_float_readers_read(value, numbers)
        self._editor.remove_unread(self._replaced)
        self._editor.remove_unread_initializers()
        return self._done

    # Products

    def _lower_product(self, product: Product) -> None:
        mode = self._territory.mode(product)
        if mode is Mode.FLOAT:
            return
        self._done[mode.value] += 1
        weights, bias = self._numbers.weights[product.key], self._numbers.bias(product)
        divided = self._territory.smoothed(product)
        if divided is not None:
            self._done["divided input"] += 1
            self._divide_input(product, divided)
            weights = divided.weights
            bias = product.bias if divided.bias is None else divided.bias
        if mode is Mode.DYNAMIC:
            lower_dynamic(self._editor, product, weights, bias)
            self._replaced.extend(reversed(product.nodes))
        else:
            self._lower_static(product, weights, bias, narrow=mode is Mode.STATIC)

    def _divide_input(self, product: Product, divided: Divided) -> None:
        """Let a product read its input with even channels; one product serves equal readers."""
        source = product.activation
        factors = (1 / divided.factors).astype(np.float32)
        key = (source, factors.tobytes())
        if key not in self._divided:
            self._divided[key] = self._editor.node(
                "Mul",
                [source, self._editor.constant(factors, called_after(product.key, "factors"))],
                name=called_after(product.key, "divided"),
                before=product.node,
                dtype=ir.DataType.FLOAT,
                like=source,
            )
            self._territory.give(self._divided[key], divided.range)
        product.node.replace_input_with(0, self._divided[key])

    def _lower_static(
        self, product: Product, weights: Weights, bias: Array | None, *, narrow: bool
    ) -> None:
        node, name = product.node, product.key
        scale = self._territory.parameters(product.activation).scale
        self._feed(node, 0)
        # Constants may be nodes, and weights may come through others that only move numbers.
        constants = [value for value in node.inputs[1:3] if value is not None]
        self._replaced.extend(made for value in constants if (made := value.producer()) is not None)
        quantized = self._editor.constant(weights.numbers, called_after(name, "weight_quantized"))
        node.replace_input_with(
            1,
            self._dequantized_constant(
                quantized, weights.scales, weights.axis, called_after(name, "weight")
            ),
        )
        for attribute in ("alpha", "beta", "transB"):  # multiplied in, as the product's weights are
            node.attributes.pop(attribute, None)
        if node.op_type == "MatMul":
            self._subtract_bias(product, bias)
        elif bias is not None:
            wide, scales = quantize_bias(bias, scale, weights)
            integers = self._editor.constant(wide, called_after(name, "bias_quantized"))
            node.resize_inputs(3)
            node.replace_input_with(
                2, self._dequantized_constant(integers, scales, 0, called_after(name, "bias"))
            )
        if narrow:
            self._quantize_output(product.unclamped)

    def _subtract_bias(self, product: Product, bias: Array | None) -> None:
        """Subtract the negative bias; of an Add the runtime would make a float Gemm.

        A product without a bias gets none, though rounding may have moved the mean of its output:
        that would take a node more, and whoever reads the output would find no kernel for both.
        """
        if bias is None or product.bias_node is None:
            return
        old = product.unclamped
        result = self._editor.node(
            "Sub",
            [
                product.node.outputs[0],
                self._editor.constant(-bias, called_after(product.key, "negative_bias")),
            ],
            name=called_after(product.key, "biased"),
            after=product.node,
            dtype=ir.DataType.FLOAT,
            like=old,
        )
        self._editor.take_over(old, result)
        self._replaced.append(product.bias_node)

    # Followers

    def _lower_follower(self, found: Follower) -> None:
        node = found.node
        match found.kind:
            case FollowerKind.PASS:
                self._move_numbers(node)
            case FollowerKind.AFFINE:
                source = node.inputs[found.activations[0]]
                assert source is not None
                self._made[node.outputs[0]] = self._made[source]
                self._replaced.append(node)
            case FollowerKind.HARD_SIGMOID:
                self._made[node.outputs[0]] = self._hard_sigmoid(found)
                self._replaced.append(node)
            case FollowerKind.HARD_SWISH:
                self._hard_swish(found)
            case FollowerKind.COMPUTE:
                for at in found.activations:
                    self._feed(node, at)
                for at in found.constants:
                    self._feed_constant(node, at)
                self._quantize_output(node.outputs[0])

    def _move_numbers(self, node: ir.Node) -> None:
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        numbers = self._made[source]
        moved = self._editor.node(
            node.op_type,
            [numbers, *node.inputs[1:]],
            {name: attribute.value for name, attribute in node.attributes.items()},
            name=called_after(output, "quantized"),
            before=node,
            dtype=numbers.dtype,
            like=output,
        )
        self._made[output] = moved
        self._replaced.append(node)

    def _hard_sigmoid(self, found: Follower) -> ir.Value:
        """The 8-bit numbers of HardSigmoid(x), of scale 1/255."""
        node = found.node
        source, name = node.inputs[0], node.outputs[0].name or ""
        assert source is not None
        parameters = self._territory.parameters(source)
        scaled = dataclasses.replace(
            parameters, scale=float(np.float32(parameters.scale * found.factor))
        )
        unit = self._numbers.covering(0.0, found.summand)
        most = self._editor.constant(np.array(np.iinfo(unit.dtype).max, unit.dtype), "most")
        offset = self._dequantize(most, unit, node, called_after(name, "offset"))
        total = self._editor.node(
            "Add",
            [
                self._dequantize(self._made[source], scaled, node, called_after(name, "slope")),
                offset,
            ],
            name=called_after(name, "gate"),
            before=node,
            dtype=ir.DataType.FLOAT,
            like=source,
        )
        return self._quantize(total, self._numbers.covering(0.0, 1.0), node)

    def _hard_swish(self, found: Follower) -> None:
        node, output = found.node, found.node.outputs[0]
        source = node.inputs[0]
        assert source is not None
        gate = self._hard_sigmoid(found)
        parameters = self._territory.parameters(source)
        unit = self._numbers.covering(0.0, 1.0)
        result = self._editor.node(
            "Mul",
            [
                self._dequantize(
                    self._made[source], parameters, node, called_after(source, "read")
                ),
                self._dequantize(gate, unit, node, called_after(output, "gate_read")),
            ],
            name=called_after(output, "gated"),
            before=node,
            dtype=ir.DataType.FLOAT,
            like=output,
        )
        effective = self._territory.effective(output)
        self._made[effective] = self._quantize(result, self._territory.parameters(effective), node)
        self._replaced.append(node)

    # QuantizeLinear and DequantizeLinear

    def _feed(self, node: ir.Node, index: int) -> None:
        """Let an input of a node come from a DequantizeLinear of its own."""
        value = node.inputs[index]
        assert value is not None
        parameters = self._territory.parameters(value)
        numbers = self._made.get(value, self._read.get(value))
        if numbers is None:
            self._read[value] = numbers = self._quantize(value, parameters, node)
        node.replace_input_with(
            index, self._dequantize(numbers, parameters, node, called_after(value, "read"))
        )

    def _feed_constant(self, node: ir.Node, index: int) -> None:
        """Let a constant input be in 8 bits."""
        value = node.inputs[index]
        array = constant_array(value)
        assert value is not None
        assert array is not None
        parameters = self._numbers.covering(float(array.min()), float(array.max()))
        numbers = np.round(array / np.float32(parameters.scale)) + parameters.zero_point
        limits = np.iinfo(parameters.dtype)
        narrow = np.clip(numbers, limits.min, limits.max).astype(parameters.dtype)
        quantized = self._editor.constant(narrow, called_after(value, "quantized"))
        node.replace_input_with(
            index, self._dequantize(quantized, parameters, node, called_after(value, "read"))
        )

    def _quantize_output(self, value: ir.Value) -> None:
        """Quantize what an 8-bit node gives, behind the clamp that saturation stands for."""
        effective = self._territory.effective(value)
        node = value.producer()
        assert node is not None
        if effective is not value:
            clamp = effective.producer()
            assert clamp is not None
            self._replaced.append(clamp)
        parameters = self._territory.parameters(effective)
        numbers = self._editor.node(
            "QuantizeLinear",
            [value, *self._constants(parameters)],
            name=called_after(effective, "quantized"),
            after=node,
            dtype=ir.DataType.from_numpy(parameters.dtype),
            like=effective,
        )
        self._made[effective] = numbers

    def _quantize(self, value: ir.Value, parameters: Parameters, before: ir.Node) -> ir.Value:
        numbers: ir.Value = self._editor.node(
            "QuantizeLinear",
            [value, *self._constants(parameters)],
            name=called_after(value, "quantized"),
            before=before,
            dtype=ir.DataType.from_numpy(parameters.dtype),
            like=value,
        )
        return numbers

    def _dequantize(
        self, numbers: ir.Value, parameters: Parameters, before: ir.Node, name: str
    ) -> ir.Value:
        result: ir.Value = self._editor.node(
            "DequantizeLinear",
            [numbers, *self._constants(parameters)],
            name=name,
            before=before,
            dtype=ir.DataType.FLOAT,
            like=numbers,
        )
        return result

    def _dequantized_constant(
        self, numbers: ir.Value, scales: np.ndarray[Any, Any], axis: int, name: str
    ) -> ir.Value:
        assert numbers.dtype is not None
        zeros = np.zeros(len(scales), numbers.dtype.numpy())
        first = self._graph[0]
        result: ir.Value = self._editor.node(
            "DequantizeLinear",
            [
                numbers,
                self._editor.constant(scales, f"{name}_scale"),
                self._editor.constant(zeros, f"{name}_zero_point"),
            ],
            {"axis": axis},
            name=name,
            before=first,
            dtype=ir.DataType.FLOAT,
            like=numbers,
        )
        return result

    def _constants(self, parameters: Parameters) -> tuple[ir.Value, ir.Value]:
        scale = self._editor.constant(np.array(parameters.scale, np.float32), "scale")
        zero = self._editor.constant(
            np.array(parameters.zero_point, parameters.dtype), "zero_point"
        )
        return scale, zero

    def _let_float_readers_read(self, value: ir.Value, numbers: ir.Value) -> None:
        """Give what still reads a value in float its 8-bit numbers, made float again."""
        readers = [
            (node, index)
            for node, index in value.uses()
            if not (node.op_type == "QuantizeLinear" and node.outputs[0] is numbers)
            and node not in self._replaced
        ]
        if not readers and not value.is_graph_output():
            return
        producer = numbers.producer()
        assert producer is not None
        parameters = self._territory.parameters(value)
        result = self._editor.node(
            "DequantizeLinear",
            [numbers, *self._constants(parameters)],
            name=called_after(value, "float"),
            after=producer,
            dtype=ir.DataType.FLOAT,
            like=value,
        )
        for node, index in readers:
            node.replace_input_with(index, result)
        if value.is_graph_output():
            self._editor.take_over(value, result)
            if producer.op_type == "QuantizeLinear" and producer.inputs[0] is result:
                producer.replace_input_with(0, value)
