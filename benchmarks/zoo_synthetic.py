"""Synthetic models that show how an optimizer scales: with the nodes, and with the weights.

Both builders are deterministic for a seed, so that two machines measure the same model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["build_chain", "build_transformer"]

OPSET = 17
IR_VERSION = 8
EXTERNAL_ALIGNMENT = 4096  # bytes; a page, so that a runtime can map the file into memory
WRITE_CHUNK = 4 * 1024 * 1024  # values drawn and written at a time


def build_chain(path: Path, length: int, width: int = 8, seed: int = 0) -> None:
    """Write a chain of exactly ``length`` small nodes, most of which an optimizer can remove.

    The chain repeats ten nodes: MatMul, Add, Identity, Relu, an Add of two constants and the Add
    that uses it, Shape and the Reshape to that shape, and two Transposes that cancel. What is left
    of ``length`` after the last whole round is filled with MatMuls.

    Every matrix is orthogonal, and the two shifts of a round cancel around a Relu that therefore
    only clips far from zero. So the chain keeps the norm of what passes through it, and an error
    made at any node is still there at the output.

    Args:
        path: The file to write.
        length: The number of nodes, at least 1.
        width: The features of ``input`` and ``output``, both float32 [batch, width].
        seed: Seeds the weights.

    Raises:
        ValueError: ``length`` is below 1.
    """
    if length < 1:
        raise ValueError(f"a chain needs at least 1 node, not {length}")
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, values: NDArray[np.floating]) -> str:
        name = f"{name}_{len(weights)}"
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(op_type: str, *inputs: str, **attributes: object) -> str:
        index = len(nodes)
        output = "output" if index == length - 1 else f"t{index}"
        nodes.append(
            helper.make_node(op_type, inputs, [output], f"{op_type}_{index}", **attributes)
        )
        return output

    def rotation() -> str:
        return weight("rotation", np.linalg.qr(rng.standard_normal((width, width)))[0])

    x = "input"
    for _ in range(length // 10):
        shift = rng.uniform(3.5, 4.5, width)
        part = rng.uniform(-1.0, 1.0, width)
        x = node("MatMul", x, rotation())
        x = node("Add", x, weight("shift", shift))
        x = node("Identity", x)
        x = node("Relu", x)
        back = node("Add", weight("part", part), weight("part", -shift - part))
        x = node("Add", x, back)
        x = node("Reshape", x, node("Shape", x))
        x = node("Transpose", x, perm=[1, 0])
        x = node("Transpose", x, perm=[1, 0])
    for _ in range(length % 10):
        x = node("MatMul", x, rotation())

    features = ["batch", width]
    graph = helper.make_graph(
        nodes,
        f"chain-{length}",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, features)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, features)],
        weights,
    )
    onnx.save(_model(graph), path)


def build_transformer(
    path: Path,
    *,
    layers: int = 21,
    width: int = 1024,
    heads: int = 16,
    vocabulary: int = 32_000,
    positions: int = 512,
    seed: int = 0,
) -> None:
    """Write a BERT-like encoder with random float32 weights in one external data file.

    The defaults make 298 million parameters, 1.19 GB. The weights are drawn and written a chunk at
    a time, so that building takes some tens of megabytes whatever the size of the model.

    The graph is spelled as PyTorch's tracing exporter spells it: LayerNorm and the erf form of GELU
    in elementary operators, scalars as Constant nodes, and the target of each attention Reshape
    computed anew from the shape of its input.

    Inputs are ``input_ids`` and ``attention_mask`` (1 for a token, 0 for padding), int64
    [batch, sequence], with ``sequence`` at most ``positions``. The output is ``last_hidden_state``,
    float32 [batch, sequence, width].

    Args:
        path: The file to write; the weights go beside it, to the same name with ``.data`` added.
        layers: The encoder layers.
        width: The features of a token; a multiple of ``heads``. The hidden layer of the
            feed-forward block is four times as wide.
        heads: The attention heads.
        vocabulary: The number of token ids.
        positions: The longest sequence.
        seed: Seeds the weights.

    Raises:
        ValueError: ``width`` is not a multiple of ``heads``.
    """
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads")
    with path.with_name(path.name + ".data").open("wb") as data:
        encoder = _Encoder(_WeightStream(data, seed), width, heads)
        output = encoder.build(layers, vocabulary, positions)
        tokens = ["batch", "sequence"]
        graph = helper.make_graph(
            [*encoder.nodes, helper.make_node("Identity", [output], ["last_hidden_state"])],
            "transformer",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, tokens)
                for name in ("input_ids", "attention_mask")
            ],
            [
                helper.make_tensor_value_info(
                    "last_hidden_state", TensorProto.FLOAT, [*tokens, width]
                )
            ],
            encoder.weights.tensors,
        )
    path.write_bytes(_model(graph).SerializeToString())


class _WeightStream:
    """Draws random weights straight into an external data file; only their headers are kept.

    Attributes:
        tensors: The headers of the weights written so far.
    """

    def __init__(self, data: BinaryIO, seed: int) -> None:
        self.tensors: list[onnx.TensorProto] = []
        self._data = data
        self._location = Path(data.name).name
        self._rng = np.random.default_rng(seed)

    def draw(self, name: str, shape: tuple[int, ...], mean: float = 0.0) -> str:
        """Write a float32 weight from a normal distribution of deviation 0.02, as BERT starts."""
        offset = -(-self._data.tell() // EXTERNAL_ALIGNMENT) * EXTERNAL_ALIGNMENT
        self._data.seek(offset)
        size = math.prod(shape)
        for start in range(0, size, WRITE_CHUNK):
            count = min(WRITE_CHUNK, size - start)
            values = self._rng.standard_normal(count, dtype=np.float32)
            values *= np.float32(0.02)
            values += np.float32(mean)
            self._data.write(values.astype("<f4", copy=False).data)
        tensor = TensorProto(
            name=name,
            data_type=TensorProto.FLOAT,
            dims=shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self._location),
            ("offset", str(offset)),
            ("length", str(4 * size)),
        ):
            tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)
        return name


class _Encoder:
    """Spells the encoder out, node by node.

    Attributes:
        nodes: The nodes so far, in topological order.
        weights: Where the weights go.
    """

    def __init__(self, weights: _WeightStream, width: int, heads: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights = weights
        self._width = width
        self._heads = heads
        self._scope = ""

    def build(self, layers: int, vocabulary: int, positions: int) -> str:
        """Add the embeddings and ``layers`` layers; return the name of their output."""
        self._scope = "embeddings"
        x = self._embeddings(vocabulary, positions)
        mask = self._mask()
        for layer in range(layers):
            self._scope = f"encoder/layer.{layer}/attention"
            x = self._layer_norm(self._op("Add", self._attention(x, mask), x))
            self._scope = f"encoder/layer.{layer}/feed_forward"
            x = self._layer_norm(self._op("Add", self._feed_forward(x), x))
        return x

    def _op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"/{self._scope}/{op_type}_{len(self.nodes)}"
        output = f"{name}_output_0"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name, **attributes))
        return output

    def _constant(self, value: float | int | list[int]) -> str:
        """A Constant node: float32 for a float, int64 for integers."""
        dtype = np.float32 if isinstance(value, float) else np.int64
        return self._op("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def _linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        name = f"{self._scope}.{name}"
        weight = self.weights.draw(f"{name}.weight", (inputs, outputs))
        bias = self.weights.draw(f"{name}.bias", (outputs,))
        return self._op("Add", bias, self._op("MatMul", x, weight))

    def _layer_norm(self, x: str) -> str:
        """``(x - mean) / sqrt(variance + 1e-12) * weight + bias`` over the last axis."""
        centred = self._op("Sub", x, self._op("ReduceMean", x, axes=[-1]))
        squared = self._op("Pow", centred, self._constant(2.0))
        variance = self._op("ReduceMean", squared, axes=[-1])
        deviation = self._op("Sqrt", self._op("Add", variance, self._constant(1e-12)))
        name = f"{self._scope}.layer_norm"
        weight = self.weights.draw(f"{name}.weight", (self._width,), mean=1.0)
        bias = self.weights.draw(f"{name}.bias", (self._width,))
        scaled = self._op("Mul", self._op("Div", centred, deviation), weight)
        return self._op("Add", scaled, bias)

    def _dimension(self, x: str, axis: int) -> str:
        """The length of an axis, int64 [1]."""
        length = self._op("Gather", self._op("Shape", x), self._constant(axis), axis=0)
        return self._op("Unsqueeze", length, self._constant([0]))

    def _reshape(self, x: str, *tail: int) -> str:
        """``x`` as [batch, sequence, *tail], both lengths read from ``x``."""
        lengths = [self._dimension(x, 0), self._dimension(x, 1)]
        target = self._op("Concat", *lengths, *(self._constant([n]) for n in tail), axis=0)
        return self._op("Reshape", x, target)

    def _embeddings(self, vocabulary: int, positions: int) -> str:
        words = self.weights.draw("embeddings.words", (vocabulary, self._width))
        places = self.weights.draw("embeddings.positions", (positions, self._width))
        words = self._op("Gather", words, "input_ids")
        end = self._dimension("input_ids", 1)
        start, axis = self._constant([0]), self._constant([0])
        x = self._op("Add", words, self._op("Slice", places, start, end, axis))
        return self._layer_norm(x)

    def _mask(self) -> str:
        """Zero for a token and the lowest float32 for padding, [batch, 1, 1, sequence]."""
        mask = self._op("Unsqueeze", "attention_mask", self._constant([1]))
        mask = self._op("Unsqueeze", mask, self._constant([2]))
        mask = self._op("Cast", mask, to=TensorProto.FLOAT)
        padding = self._op("Sub", self._constant(1.0), mask)
        return self._op("Mul", padding, self._constant(float(np.finfo(np.float32).min)))

    def _attention(self, x: str, mask: str) -> str:
        """``softmax(query key^T / sqrt(head size) + mask) value`` by head, then a linear layer."""
        width, heads = self._width, self._heads

        def split(name: str, perm: list[int]) -> str:
            projected = self._linear(x, name, width, width)
            return self._op("Transpose", self._reshape(projected, heads, width // heads), perm=perm)

        query = split("query", [0, 2, 1, 3])
        key = split("key", [0, 2, 3, 1])
        value = split("value", [0, 2, 1, 3])
        scores = self._op("MatMul", query, key)
        scores = self._op("Div", scores, self._constant(math.sqrt(width // heads)))
        weights = self._op("Softmax", self._op("Add", scores, mask), axis=-1)
        mixed = self._op("Transpose", self._op("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self._linear(self._reshape(mixed, width), "output", width, width)

    def _feed_forward(self, x: str) -> str:
        """Two linear layers around GELU, ``0.5 x (1 + erf(x / sqrt 2))``."""
        x = self._linear(x, "inner", self._width, 4 * self._width)
        erf = self._op("Erf", self._op("Div", x, self._constant(math.sqrt(2.0))))
        gate = self._op("Mul", x, self._op("Add", erf, self._constant(1.0)))
        x = self._op("Mul", gate, self._constant(0.5))
        return self._linear(x, "outer", 4 * self._width, self._width)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(
        graph,
        producer_name="onnxopt benchmarks",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
