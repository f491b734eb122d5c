"""Make Gemm of a matrix product and what is around it.

- ``matmul-add``: MatMul of two matrices, the right one constant, plus a constant that broadcasts to
  the product: Gemm with that bias. One node less in the file; runtimes do this when they load a
  model, and count on it elsewhere.
- ``gemm-add``: the same for a Gemm that has no bias yet.
- ``transposed-gemm``: Gemm of a transposed operand sets its own flag for that.

Exact. Left alone: stacks of matrices (Gemm takes none), a sum that broadcasts the product up, half
precision (its Gemm is slow where MatMul is not) and integers, and a sum that a GELU follows, which
runtimes fuse with the bias.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import onnx_ir as ir

from onnxopt.analysis import values
from onnxopt.analysis.attributes import int_attribute, ints_attribute
from onnxopt.op_traits import is_standard
from onnxopt.rewriting import Context, RewritePass, Rewriter, RewriteRule

__all__ = ["FuseMatMulAdd"]

_DTYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
#: GELU as one operator, of the standard domain or a runtime's own.
_GELUS = frozenset({"Gelu", "FastGelu", "QuickGelu", "BiasGelu"})
#: How many nodes from the sum to the Erf or Tanh of a GELU: square, cube, two scales and a sum.
_GELU_REACH = 5


@dataclasses.dataclass
class _Sum:
    sum: ir.Node
    product: ir.Node
    bias: ir.Value


class _AddBias(RewriteRule[_Sum]):
    """What the two rules that take in a bias share."""

    anchors: ClassVar[tuple[str, ...]] = ("Add",)
    product: ClassVar[str]

    def match(self, node: ir.Node, context: Context) -> _Sum | None:
        for index in (0, 1):
            operand, bias = node.inputs[index], node.inputs[1 - index]
            product = operand.producer() if operand is not None else None
            if product is not None and product.op_type == self.product and is_standard(product):
                return None if bias is None else _Sum(node, product, bias)
        return None

    def check(self, match: _Sum, context: Context) -> str | None:
        product = match.product.outputs[0]
        tensor = values.constant(match.bias)
        if tensor is None:
            return "the other summand is not constant"
        if tensor.dtype not in _DTYPES:
            return "the element type is not float or double"
        if not values.has_one_use(product):
            return "something else reads the product"
        if match.product.graph is not match.sum.graph:
            return "the product stands in another graph"
        known = values.dims(product)
        shape = tensor.shape.numpy()
        if known is None:
            return "the rank of the product is unknown"
        if len(known) != 2 or len(shape) > 2:
            return "it is no product of two matrices"
        pairs = zip(shape[::-1], known[::-1], strict=False)
        if not all(length == 1 or length == dim for length, dim in pairs):
            return "the sum is not known to have the shape of the product"
        if _gelu_follows(match.sum.outputs[0]):
            return "a GELU follows, which takes the bias in"
        return self.check_product(match.product)

    def check_product(self, product: ir.Node) -> str | None:
        """Why this product cannot take in a bias, or None."""
        raise NotImplementedError


class _MatMulAdd(_AddBias):
    """MatMul becomes Gemm."""

    name = "matmul-add"
    product: ClassVar[str] = "MatMul"

    def check_product(self, product: ir.Node) -> str | None:
        if not values.is_constant(product.inputs[1]):
            return "the right matrix is not constant"
        if any(values.rank(operand) != 2 for operand in product.inputs):
            return "it is no product of two matrices"
        return None

    def rewrite(self, match: _Sum, rewriter: Rewriter) -> None:
        inputs = [*match.product.inputs, match.bias]
        rewriter.replace(
            match.sum.outputs[0], rewriter.op("Gemm", inputs, like=match.sum.outputs[0])
        )


class _GemmAdd(_AddBias):
    """Gemm without a bias gets one."""

    name = "gemm-add"
    product: ClassVar[str] = "Gemm"

    def check_product(self, product: ir.Node) -> str | None:
        if len(product.inputs) > 2 and product.inputs[2] is not None:
            return "the product has a bias already"
        return None

    def rewrite(self, match: _Sum, rewriter: Rewriter) -> None:
        attributes = dict(match.product.attributes)
        attributes.pop("beta", None)  # it scaled nothing and must not scale the bias
        inputs = [*match.product.inputs[:2], match.bias]
        rewriter.replace(
            match.sum.outputs[0], rewriter.op("Gemm", inputs, attributes, like=match.sum.outputs[0])
        )


def _gelu_follows(value: ir.Value) -> bool:
    """Whether a GELU reads the value: one operator of any domain, or Erf or Tanh spelled out.

    A spelled-out GELU reads its input twice at least, for the product and for the function in it.
    """
    level = value.consumers()
    if any(node.op_type in _GELUS for node in level):
        return True
    if len(value.uses()) < 2:
        return False
    for _ in range(_GELU_REACH):
        if any(node.op_type in ("Erf", "Tanh") for node in level):
            return True
        scaled = [node for node in level if node.op_type in ("Mul", "Div", "Add", "Pow")]
        level = [reader for node in scaled for reader in node.outputs[0].consumers()]
    return False


@dataclasses.dataclass
class _Transposed:
    gemm: ir.Node
    sources: dict[int, ir.Value]


class _TransposedGemm(RewriteRule[_Transposed]):
    """Gemm reads a transposed operand through its own flag."""

    name = "transposed-gemm"
    anchors: ClassVar[tuple[str, ...]] = ("Gemm",)

    def match(self, node: ir.Node, context: Context) -> _Transposed | None:
        sources: dict[int, ir.Value] = {}
        for index in (0, 1):
            operand = node.inputs[index]
            transpose = operand.producer() if operand is not None else None
            if transpose is None or transpose.op_type != "Transpose" or not is_standard(transpose):
                continue
            source = transpose.inputs[0]
            if operand is not None and source is not None and len(operand.uses()) == 1:
                sources[index] = source
        return _Transposed(node, sources) if sources else None

    def check(self, match: _Transposed, context: Context) -> str | None:
        for index in match.sources:
            operand = match.gemm.inputs[index]
            assert operand is not None
            transpose = operand.producer()
            assert transpose is not None
            if operand.is_graph_output():
                return "the transposed operand is an output"
            if ints_attribute(transpose, "perm") not in (None, (1, 0)):
                return "it transposes nothing"  # Gemm's operands are matrices, so this is [0, 1]
        for name in ("transA", "transB"):
            int_attribute(match.gemm, name, 0)  # refuses a parameter of a function
        return None

    def rewrite(self, match: _Transposed, rewriter: Rewriter) -> None:
        for index, source in match.sources.items():
            name = ("transA", "transB")[index]
            flag = int_attribute(match.gemm, name, 0)
            rewriter.set_attribute(match.gemm, name, 0 if flag else 1)
            rewriter.replace_input(match.gemm, index, source)


class FuseMatMulAdd(RewritePass):
    """Make Gemm of a matrix product and what is around it."""

    name = "fuse-matmul-add"

    def rules(self) -> list[RewriteRule[Any]]:
        """The rules."""
        return [_MatMulAdd(), _GemmAdd(), _TransposedGemm()]
