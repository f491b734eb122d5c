"""Random nets with random channels pruned, for property tests of what is exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.differential import parse

__all__ = ["ACTIVATIONS", "PLAIN_BLOCKS", "Net", "nets"]

#: Activations and the first version of the standard operators that has them.
ACTIVATIONS = {
    "Relu": 9,
    "LeakyRelu": 9,
    "Sigmoid": 9,
    "Tanh": 9,
    "Elu": 9,
    "Softplus": 9,
    "HardSigmoid": 9,
    "Abs": 9,
    "Identity": 9,
    "Celu": 12,
    "HardSwish": 14,
    "Mish": 18,
    "Gelu": 20,
}
PLAIN_BLOCKS = (
    "conv",
    "strided",
    "transposed",
    "residual",
    "depthwise",
    "gate",
    "concat",
    "pool",
    "group",
    "shuffle",
    "norm",
    "split",
    "prelu",
)


@dataclasses.dataclass
class Net:
    """A net as it grows.

    Attributes:
        draw: Draws choices.
        rng: Draws numbers.
        opset: Version of the standard operators.
        size: Height and width of the values so far, None where they are not known.
    """

    draw: st.DrawFn
    rng: np.random.Generator
    opset: int
    lines: list[str] = dataclasses.field(default_factory=list)
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    widths: dict[str, int] = dataclasses.field(default_factory=lambda: {"x": 3})

    def step(self, text: str, width: int) -> str:
        name = f"s{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        self.widths[name] = width
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = array
        return name

    def weights(self, *shape: int, outputs: int = 0, inputs: int = 1) -> np.ndarray:
        """Weights with slices of zeros along both axes."""
        array = self.rng.standard_normal(shape) * 0.4
        dead = np.moveaxis(array, outputs, 0)
        dead[self.rng.random(shape[outputs]) < 0.45] = 0
        np.moveaxis(array, inputs, 0)[self.rng.random(shape[inputs]) < 0.2] = 0
        return array.astype(np.float32)

    def bias(self, width: int) -> np.ndarray:
        numbers = self.rng.standard_normal(width) * (self.rng.random(width) < 0.7)
        return numbers.astype(np.float32)

    def conv(
        self,
        source: str,
        width: int,
        group: int = 1,
        kernel: int = 3,
        pad: int = 1,
        stride: int = 1,
    ) -> str:
        weights = self.weights(width, self.widths[source] // group, kernel, kernel)
        inputs = [source, self.constant(weights)]
        if self.draw(st.integers(0, 4)):
            inputs.append(self.constant(self.bias(width)))
        pads = ", ".join([str(pad)] * 4)
        attributes = f"group = {group}, pads = [{pads}], strides = [{stride}, {stride}]"
        return self.activated(self.step(f"Conv <{attributes}> ({', '.join(inputs)})", width))

    def activated(self, source: str) -> str:
        known = [name for name, first in ACTIVATIONS.items() if first <= self.opset]
        return self.step(f"{self.draw(st.sampled_from(known))}({source})", self.widths[source])

    def block(self, kind: str, value: str) -> str:
        width = self.widths[value]
        match kind:
            case "conv":
                kernel = self.draw(st.sampled_from([1, 3]))
                pad = self.draw(st.integers(0, kernel // 2))
                return self.conv(value, self.draw(st.sampled_from([4, 6, 8])), 1, kernel, pad)
            case "strided":
                return self.conv(value, width, stride=2)
            case "transposed":
                inputs = [value, self.constant(self.weights(width, 6, 2, 2, outputs=1, inputs=0))]
                text = f"ConvTranspose <strides = [2, 2]> ({', '.join(inputs)})"
                return self.activated(self.step(text, 6))
            case "residual":
                return self.activated(self.step(f"Add({value}, {self.conv(value, width)})", width))
            case "depthwise":
                return self.conv(value, width, width, pad=self.draw(st.integers(0, 1)))
            case "gate":
                pooled = self.step(f"GlobalAveragePool({value})", width)
                inner = self.conv(pooled, 3, kernel=1, pad=0)
                gate = self.conv(inner, width, kernel=1, pad=0)
                return self.step(f"Mul({value}, {gate})", width)
            case "concat":
                other = self.conv(value, 4)
                return self.step(f"Concat <axis = 1> ({value}, {other})", width + 4)
            case "pool":
                name = self.draw(st.sampled_from(["AveragePool", "MaxPool"]))
                attributes = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
                return self.step(f"{name} <{attributes}> ({value})", width)
            case "group":
                return self.conv(value, width, group=2)
            case "shuffle":
                return self.shuffled(value)
            case "norm":
                return self.normalized(value)
            case "prelu":
                slopes = self.rng.standard_normal((width, 1, 1)).astype(np.float32)
                return self.step(f"PRelu({value}, {self.constant(slopes)})", width)
        half = width // 2
        parts = [f"l{len(self.lines)}", f"r{len(self.lines)}"]
        sizes = [half, width - half]
        if self.opset >= 13:
            sized = self.constant(np.array(sizes, np.int64))
            text = f"Split <axis = 1> ({value}, {sized})"
        else:
            text = f"Split <axis = 1, split = [{sizes[0]}, {sizes[1]}]> ({value})"
        self.lines.append(f"{parts[0]}, {parts[1]} = {text}")
        self.widths.update(zip(parts, sizes, strict=True))
        left = self.conv(parts[0], half)
        return self.step(f"Concat <axis = 1> ({left}, {parts[1]})", width)

    def shuffled(self, value: str) -> str:
        """Two groups of channels interleaved; sizes of height and width are computed."""
        width = self.widths[value]
        shape = self.step(f"Shape({value})", 0)
        picks = [self.constant(np.array(each, np.int64)) for each in ([0], [2, 3])]
        batch, window = (self.step(f"Gather <axis = 0> ({shape}, {each})", 0) for each in picks)
        parted = self.constant(np.array([2, width // 2], np.int64))
        first = self.step(f"Concat <axis = 0> ({batch}, {parted}, {window})", 0)
        apart = self.step(f"Reshape({value}, {first})", width)
        turned = self.step(f"Transpose <perm = [0, 2, 1, 3, 4]> ({apart})", width)
        whole = self.constant(np.array([width], np.int64))
        second = self.step(f"Concat <axis = 0> ({batch}, {whole}, {window})", 0)
        return self.step(f"Reshape({turned}, {second})", width)

    def normalized(self, value: str) -> str:
        width = self.widths[value]
        numbers = [self.rng.standard_normal(width).astype(np.float32) for _ in range(3)]
        numbers[0][self.rng.random(width) < 0.3] = 0
        if self.draw(st.booleans()):
            names = [self.constant(each) for each in numbers[:2]]
            # Where nothing varies the runtime divides its own rounding by the root of epsilon.
            text = f"InstanceNormalization <epsilon = 0.1> ({value}, {', '.join(names)})"
            return self.step(text, width)
        numbers.append((self.rng.random(width) + 0.5).astype(np.float32))
        names = [self.constant(each) for each in numbers]
        return self.step(f"BatchNormalization({value}, {', '.join(names)})", width)

    def head(self, value: str) -> tuple[str, int]:
        """A convolution, or pooling and two matrix products; the value and its rank."""
        kind = self.draw(st.sampled_from(["conv", "gemm", "matmul"]))
        if kind == "conv":
            return self.conv(value, 5), 4
        width = self.widths[value]
        flat = self.step(f"Flatten({self.step(f'GlobalAveragePool({value})', width)})", width)
        for out in (8, 5):
            array = self.weights(self.widths[flat], out, outputs=1, inputs=0)
            weights, bias = self.constant(array), self.constant(self.bias(out))
            if kind == "gemm":
                flat = self.step(f"Gemm({flat}, {weights}, {bias})", out)
            else:
                flat = self.step(
                    f"Add({self.step(f'MatMul({flat}, {weights})', out)}, {bias})", out
                )
            if out == 8:
                flat = self.activated(flat)
        return flat, 2


@st.composite
def nets(
    draw: st.DrawFn, opsets: tuple[int, int] = (9, 22), blocks: tuple[str, ...] = PLAIN_BLOCKS
) -> onnx.ModelProto:
    """A chain of layers and blocks with random channels pruned, at random constants.

    The input is ``x`` [n, 3, h, v] of any size.
    """
    opset = draw(st.integers(*opsets))
    net = Net(draw, np.random.default_rng(draw(st.integers(0, 10_000))), opset)
    value = net.conv("x", 8)
    for kind in draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=4)):
        value = net.block(kind, value)
    value, rank = net.head(value)
    net.lines.append(f"y = Identity({value})")
    sizes = ", ".join(f"o{axis}" for axis in range(rank))
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[n, 3, h, v] x) => (float[{sizes}] y) {{ {"  ".join(net.lines)} }}"""
    return parse(text, net.constants)
