"""Multiply-accumulate operations of a node, as a formula over the dynamic sizes.

One MAC is one multiplication with the addition that follows. Counted are the operators whose cost
is matrix products: convolutions, matrix products, recurrent layers and attention. Elementwise
operators, normalization, pooling and data movement are taken for free, as is usual; biases too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxopt.analysis.expressions import Expression, number, product
from onnxopt.analysis.symbolic import SymbolicFacts

__all__ = ["has_macs", "macs"]

#: ONNX's inference names sizes that it cannot tell so; they mean nothing to a reader.
_UNKNOWN_PREFIX = "unk__"
_FORMULA = frozenset(" +*/()")


def has_macs(node: ir.Node) -> bool:
    """Whether the operator is one of those whose cost counts."""
    return (_domain(node), node.op_type) in _RULES


def macs(node: ir.Node, facts: SymbolicFacts) -> Expression | None:
    """MACs of one run of a node, or None when a shape that it takes is not known.

    Zero for operators that are not counted.
    """
    rule = _RULES.get((_domain(node), node.op_type))
    return number(0) if rule is None else rule(_Shapes(node, facts))


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


class _Shapes:
    """A node with the shapes of what it reads and makes; None for a size that is not known."""

    def __init__(self, node: ir.Node, facts: SymbolicFacts) -> None:
        self.node = node
        self._facts = facts

    def input(self, index: int) -> _Sizes | None:
        values = self.node.inputs
        return self._sizes(values[index]) if len(values) > index else None

    def output(self) -> _Sizes | None:
        return self._sizes(self.node.outputs[0])

    def _sizes(self, value: ir.Value | None) -> _Sizes | None:
        shape = self._facts.shape(value)
        return None if shape is None else [size if _is_named(size) else None for size in shape]


_Sizes = list[Expression | None]
_Rule = Callable[[_Shapes], Expression | None]


def _is_named(size: Expression) -> bool:
    """Whether the size is made of numbers and of symbols that the model itself names.

    Some exporters name sizes by formulas, such as ``floor(height/2) + 1``: these cannot be told
    from ours in a sum, and say less to a reader than that the shape is not known.
    """
    return all(
        atom.kind == "dim"
        and not atom.name.startswith(_UNKNOWN_PREFIX)
        and _FORMULA.isdisjoint(atom.name)
        for atom in size.atoms
    )


def _times(*factors: Expression | None) -> Expression | None:
    known = [factor for factor in factors if factor is not None]
    return product(known) if len(known) == len(factors) else None


def _elements(shape: _Sizes | None) -> Expression | None:
    return None if shape is None else _times(*shape)


def _convolution(weight: int) -> _Rule:
    """Each output element is a dot product over C/group channels and the kernel's window."""

    def rule(shapes: _Shapes) -> Expression | None:
        kernel = shapes.input(weight)
        outputs = _elements(shapes.output())
        return None if kernel is None else _times(outputs, *kernel[1:])

    return rule


def _transposed_convolution(shapes: _Shapes) -> Expression | None:
    """Each input element is multiplied with M/group kernels."""
    kernel = shapes.input(1)
    inputs = _elements(shapes.input(0))
    return None if kernel is None else _times(inputs, *kernel[1:])


def _matrix_product(left: int, transpose: str = "") -> _Rule:
    """Each output element is a dot product over the shared dimension."""

    def rule(shapes: _Shapes) -> Expression | None:
        shape = shapes.input(left)
        if not shape:
            return None
        attribute = shapes.node.attributes.get(transpose)
        if attribute is not None and attribute.is_ref():
            return None
        first = attribute is not None and attribute.as_int() != 0 and len(shape) > 1
        shared = shape[-2] if first else shape[-1]
        return _times(_elements(shapes.output()), shared)

    return rule


def _block_quantized_product(shapes: _Shapes) -> Expression | None:
    """MatMulNBits of ONNX Runtime: input (..., K) times K x N."""
    columns = shapes.node.attributes.get("N")
    if columns is None or columns.is_ref():
        return None
    return _times(_elements(shapes.input(0)), number(columns.as_int()))


def _recurrent(shapes: _Shapes) -> Expression | None:
    """All weights W and R once for each element of the sequence and the batch.

    W is (directions, gates * hidden, inputs), R is (directions, gates * hidden, hidden), in 8 bits
    with the last two sizes the other way about.
    """
    sequence = shapes.input(0)
    through_input = _elements(shapes.input(1))
    through_state = _elements(shapes.input(2))
    if sequence is None or len(sequence) != 3 or through_input is None or through_state is None:
        return None
    return _times(sequence[0], sequence[1], through_input + through_state)


def _attention(shapes: _Shapes) -> Expression | None:
    """Q times K transposed, and the result times V, for each head.

    The heads of K and V may be shared by several of Q (grouped queries), which does not change the
    count: B * Hq * Lq * Lk * (Dk + Dv).
    """
    query, key, value = (shapes.input(index) for index in range(3))
    if query is None or key is None or value is None:
        return None
    if len(query) == 4 and len(key) == 4 and len(value) == 4:
        batch, heads, length, depth = query
        width = value[3]
        keys = key[2]
    elif len(query) == 3 and len(key) == 3 and len(value) == 3:
        given = [shapes.node.attributes.get(name) for name in ("q_num_heads", "kv_num_heads")]
        if any(each is None or each.is_ref() for each in given):
            return None
        count, shared = (each.as_int() for each in given if each is not None)
        hidden = None if value[2] is None else value[2].quotient(number(shared))
        heads = number(count)
        batch, length, keys = query[0], query[1], key[1]
        depth = None if query[2] is None else query[2].quotient(heads)
        width = hidden
    else:
        return None
    if (past := shapes.input(4)) is not None:
        earlier = past[2] if len(past) == 4 else None
        keys = None if keys is None or earlier is None else keys + earlier
    if depth is None or width is None:
        return None
    return _times(batch, heads, length, keys, depth + width)


def _einsum(shapes: _Shapes) -> Expression | None:
    """Every combination of indices once; an upper bound where there are over two operands."""
    attribute = shapes.node.attributes.get("equation")
    if attribute is None or attribute.is_ref():
        return None
    terms = attribute.as_string().replace(" ", "").partition("->")[0].split(",")
    if len(terms) < 2:
        return number(0)
    if any("." in term for term in terms) or len(terms) != len(shapes.node.inputs):
        return None
    sizes: dict[str, Expression | None] = {}
    for index, term in enumerate(terms):
        shape = shapes.input(index)
        if shape is None or len(shape) != len(term):
            return None
        for letter, size in zip(term, shape, strict=True):
            known = sizes.get(letter)
            sizes[letter] = size if known is None or known == number(1) else known
    return _times(*sizes.values())


_MICROSOFT = "com.microsoft"
_RULES: Mapping[tuple[str, str], _Rule] = {
    ("", "Conv"): _convolution(1),
    ("", "DeformConv"): _convolution(1),
    ("", "ConvInteger"): _convolution(1),
    ("", "QLinearConv"): _convolution(3),
    (_MICROSOFT, "FusedConv"): _convolution(1),
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "Gemm"): _matrix_product(0, "transA"),
    ("", "MatMul"): _matrix_product(0),
    ("", "MatMulInteger"): _matrix_product(0),
    ("", "QLinearMatMul"): _matrix_product(0),
    (_MICROSOFT, "FusedMatMul"): _matrix_product(0, "transA"),
    (_MICROSOFT, "FusedGemm"): _matrix_product(0, "transA"),
    (_MICROSOFT, "QGemm"): _matrix_product(0, "transA"),
    (_MICROSOFT, "MatMulNBits"): _block_quantized_product,
    ("", "LSTM"): _recurrent,
    (_MICROSOFT, "DynamicQuantizeLSTM"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "RNN"): _recurrent,
    ("", "Attention"): _attention,
    ("", "Einsum"): _einsum,
}
