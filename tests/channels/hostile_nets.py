"""Random nets of what channels are hard to follow through: odd axes, shared constants, captures."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.channels.random_nets import Net
from tests.differential import parse

__all__ = ["BLOCKS", "hostile_nets"]

#: Far beyond any size.
_END = 2**31 - 1


class Hostile(Net):
    """A net of the blocks here and of the plain ones."""

    outputs: list[str]
    shared: dict[tuple[int, ...], str]

    def ints(self, *numbers: int) -> str:
        """A constant of integers: now and then one that others read too, or a Constant."""
        if self.draw(st.integers(0, 3)) == 0 and numbers in self.shared:
            return self.shared[numbers]
        if self.draw(st.integers(0, 4)) == 0:
            text = ", ".join(map(str, numbers))
            return self.step(f"Constant <value = int64[{len(numbers)}] {{{text}}}> ()", 0)
        self.shared[numbers] = self.constant(np.array(numbers, np.int64))
        return self.shared[numbers]

    def floats(self, *shape: int, scale: float = 1.0) -> str:
        """A constant of random numbers, some of them 0."""
        array = self.rng.standard_normal(shape) * scale * (self.rng.random(shape) < 0.8)
        return self.constant(array.astype(np.float32))

    def hostile(self, kind: str, value: str) -> str:
        """A block behind a value [n, width, h, v]; what it makes has the same axes."""
        made: str = getattr(self, f"_{kind}")(value, self.widths[value])
        return made

    def _twice(self, value: str, width: int) -> str:
        other = self.activated(value)
        parts = self.draw(st.sampled_from([[value, value], [value, other, value]]))
        return self.step(f"Concat <axis = -3> ({', '.join(parts)})", len(parts) * width)

    def _uneven(self, value: str, width: int) -> str:
        sizes = [1, width - 3, 2]
        names = [f"{each}{len(self.lines)}" for each in "lmr"]
        if self.opset >= 13:
            text = f"Split <axis = -3> ({value}, {self.ints(*sizes)})"
        else:
            text = f"Split <axis = -3, split = {sizes}> ({value})"
        self.lines.append(f"{', '.join(names)} = {text}")
        self.widths.update(zip(names, sizes, strict=True))
        taken = self.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
        if sum(self.widths[name] for name in taken) < 2:
            taken = [*taken, names[1]]
        total = sum(self.widths[name] for name in taken)
        return self.step(f"Concat <axis = 1> ({', '.join(taken)})", total)

    def _gather(self, value: str, width: int) -> str:
        repeated = self.draw(st.booleans())
        count = max(2, width - self.draw(st.integers(0, 2)))
        chosen = self.rng.choice(width, count, replace=repeated)
        indices = [int(each) - width * int(self.rng.random() < 0.4) for each in chosen]
        return self.step(f"Gather <axis = -3> ({value}, {self.ints(*indices)})", count)

    def _slice(self, value: str, width: int) -> str:
        start, end = self.draw(st.sampled_from([(1, _END), (-width, -1), (0, width - 1)]))
        step = self.draw(st.sampled_from([1, 1, 1, 2]))
        if self.opset < 10:
            text = f"Slice <axes = [1, 2], starts = [{start}, 1], ends = [{end}, {_END}]>({value})"
            return self.step(text, len(range(width)[start:end]))
        inputs = [value, self.ints(start, 1), self.ints(end, _END), self.ints(-3, 2)]
        text = f"Slice({', '.join([*inputs, self.ints(step, 1)])})"
        return self.step(text, len(range(width)[start:end:step]))

    def _lower(self, value: str, width: int) -> str:
        shape = self.draw(st.sampled_from([(width, 1, 1), (1, width, 1, 1), (1,), (), (1, 1, 1)]))
        operator = self.draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Sum"]))
        if operator == "Max" and self.opset < 8:
            operator = "Add"
        operands = [value, self.floats(*shape)]
        operands = operands if self.draw(st.booleans()) else operands[::-1]
        return self.step(f"{operator}({', '.join(operands)})", width)

    def _counted(self, value: str, width: int) -> str:
        """The number of channels, taken from the shape, scales what comes out."""
        shape = self.step(f"Shape({value})", 0)
        place = self.draw(st.sampled_from([0, 1, -3, 2]))
        size = self.step(f"Gather <axis = 0> ({shape}, {self.ints(place)})", 0)
        number = self.step(f"Cast <to = 1> ({size})", 0)
        return self.step(f"Div({value}, {number})", width)

    def _mixed(self, value: str, width: int) -> str:
        """To places by channels, a matrix product over channels, and back."""
        shape = self.step(f"Shape({value})", 0)
        flat = self.step(f"Reshape({value}, {self.ints(0, width, -1)})", width)
        turned = self.step(f"Transpose <perm = [0, 2, 1]> ({flat})", width)
        weights = self.constant(self.weights(width, 6, outputs=1, inputs=0))
        made = self.step(f"MatMul({turned}, {weights})", 6)
        biased = self.step(f"Add({self.constant(self.bias(6))}, {made})", 6)
        back = self.step(f"Transpose <perm = [0, 2, 1]> ({biased})", 6)
        batch, window = (
            self.step(f"Gather <axis = 0> ({shape}, {self.ints(*each)})", 0)
            for each in ((0,), (2, 3))
        )
        target = self.step(f"Concat <axis = 0> ({batch}, {self.ints(6)}, {window})", 0)
        return self.step(f"Reshape({back}, {target})", 6)

    def _parted(self, value: str, width: int) -> str:
        """Channels along two axes, with sizes that are copied, and back."""
        if width % 2:
            return value
        shape = self.step(f"Shape({value})", 0)
        window = self.step(f"Gather <axis = 0> ({shape}, {self.ints(2, 3)})", 0)
        halves = self.ints(0, width // 2, 2)
        apart = self.step(f"Concat <axis = 0> ({halves}, {window})", 0)
        split = self.step(f"Reshape({value}, {apart})", width)
        axis = self.draw(st.sampled_from([1, 2]))
        summed = self.step(f"{self.reduction('ReduceMean', split, axis, 1)}", width)
        joined = self.step(f"Add({split}, {summed})", width)
        whole = self.step(f"Concat <axis = 0> ({self.ints(0, width)}, {window})", 0)
        return self.step(f"Reshape({joined}, {whole})", width)

    def reduction(self, operator: str, value: str, axis: int, keep: int) -> str:
        """A reduction over one axis, as an attribute or an input."""
        if self.opset >= 18:
            return f"{operator} <keepdims = {keep}> ({value}, {self.ints(axis)})"
        return f"{operator} <axes = [{axis}], keepdims = {keep}> ({value})"

    def _reduced(self, value: str, width: int) -> str:
        operator = self.draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceL2"]))
        axis = self.draw(st.sampled_from([-1, 2, 3, 1, -3]))
        made = self.step(self.reduction(operator, value, axis, 1), width)
        return self.step(f"Add({value}, {self.step(f'Tanh({made})', width)})", width)

    def _squeezed(self, value: str, width: int) -> str:
        pooled = self.step(f"GlobalMaxPool({value})", width)
        known = self.opset >= 13
        flat = self.step(
            f"Squeeze({pooled}, {self.ints(-1, 2)})"
            if known
            else f"Squeeze <axes = [2, 3]> ({pooled})",
            width,
        )
        weights = self.constant(self.weights(width, width))
        bias = self.floats(*self.draw(st.sampled_from([(1, width), (width,), (1,)])))
        attributes = "transB = 1, alpha = 0.5, beta = 2.0"
        made = self.step(f"Gemm <{attributes}> ({flat}, {weights}, {bias})", width)
        if known:
            back = self.step(f"Unsqueeze({made}, {self.ints(-1, 2)})", width)
        else:
            back = self.step(f"Unsqueeze <axes = [2, 3]> ({made})", width)
        return self.step(f"Mul({value}, {self.activated(back)})", width)

    def _shown(self, value: str, width: int) -> str:
        """An output of the graph."""
        if value == "x":
            return value
        self.outputs.append(value)
        return self.step(f"Neg({value})", width)

    def _captured(self, value: str, width: int) -> str:
        """Read in a body of control flow."""
        name = f"s{len(self.lines)}"
        bodies = ", ".join(
            f"{branch}_branch = b{branch}{len(self.lines)} () => "
            f"(float[i, j, k, l] {name}{branch}) {{ {name}{branch} = {operator}({value}) }}"
            for branch, operator in (("then", "Relu"), ("else", "Neg"))
        )
        always = self.step("Constant <value = bool {1}> ()", 0)
        made = self.step(f"If ({always}) <{bodies}>", width)
        return self.step(f"Add({value}, {made})", width)

    def _padded(self, value: str, width: int) -> str:
        mode = self.draw(st.sampled_from(["constant", "edge", "reflect"]))
        pads = self.draw(st.sampled_from([[0, 0, 1, 2, 0, 0, 1, 0], [0, 0, -1, 0, 0, 0, 0, 1]]))
        if mode == "reflect":
            pads = [abs(each) for each in pads]
        if self.opset < 11:
            return self.step(f'Pad <mode = "{mode}", pads = {pads}, value = 0.5> ({value})', width)
        filled = f", {self.constant(np.array(0.5, np.float32))}" if mode == "constant" else ""
        return self.step(f'Pad <mode = "{mode}"> ({value}, {self.ints(*pads)}{filled})', width)

    def _resized(self, value: str, width: int) -> str:
        scales = self.constant(np.array([1, 1, 2, 1.5], np.float32))
        if self.opset < 10:
            return self.step(f'Upsample <mode = "nearest"> ({value}, {scales})', width)
        if self.opset < 11:
            return self.step(f'Resize <mode = "linear"> ({value}, {scales})', width)
        mode = self.draw(st.sampled_from(["nearest", "linear", "cubic"]))
        region = self.constant(np.zeros(0, np.float32)) if self.opset < 13 else ""
        return self.step(f'Resize <mode = "{mode}"> ({value}, {region}, {scales})', width)

    def _pooled(self, value: str, width: int) -> str:
        operator = self.draw(st.sampled_from(["AveragePool", "MaxPool"]))
        more = self.draw(
            st.sampled_from(
                [
                    "pads = [1, 0, 1, 1]",
                    'auto_pad = "SAME_UPPER"',
                    "pads = [1, 1, 1, 1], ceil_mode = 1, strides = [2, 2]",
                    "pads = [1, 1, 1, 1], count_include_pad = 1",
                    "pads = [1, 1, 1, 1], dilations = [2, 2]",
                ]
            )
        )
        more = more if self.opset >= 10 else "pads = [1, 1, 1, 1]"
        if operator == "MaxPool":
            more = more.replace(", count_include_pad = 1", "")
        elif self.opset < 19:
            more = more.replace(", dilations = [2, 2]", "")
        return self.step(f"{operator} <kernel_shape = [2, 2], {more}> ({value})", width)

    def _clipped(self, value: str, width: int) -> str:
        low = self.draw(st.booleans())
        if self.opset < 11:
            return self.step(f"Clip <{'min' if low else 'max'} = 0.25> ({value})", width)
        bound = self.constant(np.array(0.25, np.float32))
        return self.step(
            f"Clip({value}, {bound if low else ''}{'' if low else ', ' + bound})", width
        )

    def _chosen(self, value: str, width: int) -> str:
        asked = self.step(f"Less({value}, {self.floats(width, 1, 1)})", width)
        return self.step(f"Where({asked}, {value}, {self.floats(1, width, 1, 1)})", width)

    def _cast(self, value: str, width: int) -> str:
        to = self.draw(st.sampled_from([6, 10, 11]))
        return self.step(
            f"Cast <to = 1> ({self.step(f'Cast <to = {to}> ({value})', width)})", width
        )

    def _across(self, value: str, width: int) -> str:
        """What mixes channels and is not followed, or not along them."""
        kinds = ["Softmax <axis = -3>", "LRN <size = 3>", "LpNormalization <axis = 1>"]
        kinds += ["Softmax <axis = -1>"] if self.opset >= 13 else []
        return self.step(f"{self.draw(st.sampled_from(kinds))} ({value})", width)

    def _spread(self, value: str, width: int) -> str:
        shape = self.draw(st.sampled_from([(1, width, 1, 1), (1, 1, 1, 1), (1,), (1, 1, 1, 1, 1)]))
        made = self.step(f"Expand({value}, {self.ints(*shape)})", width)
        if len(shape) == 5:
            squeezed = (
                f"Squeeze({made}, {self.ints(0)})"
                if self.opset >= 13
                else (f"Squeeze <axes = [0]> ({made})")
            )
            return self.step(squeezed, width)
        return made

    def _tiled(self, value: str, width: int) -> str:
        repeats = self.draw(st.sampled_from([1, 1, 2]))
        return self.step(f"Tile({value}, {self.ints(1, repeats, 1, 1)})", repeats * width)

    def _shared(self, value: str, width: int) -> str:
        """Two convolutions with one bias, and now and then with the same weights."""
        bias, weights = (
            self.constant(self.bias(width)),
            self.constant(self.weights(width, width, 1, 1)),
        )
        same = self.draw(st.booleans())
        others = weights if same else self.constant(self.weights(width, width, 1, 1))
        one = self.step(f"Conv({value}, {weights}, {bias})", width)
        other = self.step(f"Conv({self.activated(value)}, {others}, {bias})", width)
        return self.step(f"{self.draw(st.sampled_from(['Add', 'Mul']))}({one}, {other})", width)

    def _grouped_back(self, value: str, width: int) -> str:
        if width % 2:
            return value
        weights = self.constant(self.weights(width, 3, 3, 3, outputs=1, inputs=0))
        more = "group = 2, strides = [2, 1], pads = [1, 1, 0, 1], output_padding = [1, 0]"
        text = f"ConvTranspose <{more}> ({value}, {weights}, {self.constant(self.bias(6))})"
        return self.activated(self.step(text, 6))

    def _multiplied(self, value: str, width: int) -> str:
        """A depthwise convolution of two filters a channel, dilated or padded on one side."""
        more = self.draw(
            st.sampled_from(
                [
                    "pads = [2, 2, 2, 2], dilations = [2, 2]",
                    "pads = [0, 2, 1, 0]",
                    "pads = [0,0,0,0]",
                ]
            )
        )
        weights = self.constant(self.weights(2 * width, 1, 3, 2, inputs=0))
        bias = self.constant(self.bias(2 * width))
        text = f"Conv <group = {width}, {more}> ({value}, {weights}, {bias})"
        return self.activated(self.step(text, 2 * width))

    def _rational(self, value: str, width: int) -> str:
        one = self.constant(np.array(1, np.float32))
        square = self.step(f"Mul({value}, {value})", width)
        return self.step(f"Div({value}, {self.step(f'Add({square}, {one})', width)})", width)


BLOCKS = tuple(
    name[1:] for name in vars(Hostile) if name.startswith("_") and not name.startswith("__")
)


@st.composite
def hostile_nets(draw: st.DrawFn, opsets: tuple[int, int] = (9, 22)) -> onnx.ModelProto:
    """A chain of hostile and plain blocks, and a head; inputs are x [n, 3, h, v] of any size."""
    opset = draw(st.integers(*opsets))
    net = Hostile(draw, np.random.default_rng(draw(st.integers(0, 10_000))), opset)
    net.outputs, net.shared = [], {}
    value = net.conv("x", 8)
    for kind in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4)):
        value = net.hostile(kind, value)
        if net.widths[value] > 1 and draw(st.booleans()):
            value = net.conv(value, draw(st.sampled_from([4, 6, 8])), 1, 3, draw(st.integers(0, 1)))
    value, rank = net.head(value)
    net.lines.append(f"y = Identity({value})")
    results = [f"float[{', '.join(f'o{axis}' for axis in range(rank))}] y"]
    results += [
        f"float[a{i}, b{i}, c{i}, d{i}] {each}" for i, each in enumerate(dict.fromkeys(net.outputs))
    ]
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[n, 3, h, v] x) => ({", ".join(results)}) {{ {"  ".join(net.lines)} }}"""
    return parse(text, net.constants)
