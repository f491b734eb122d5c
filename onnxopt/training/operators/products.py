"""Products of matrices, and sums of products by subscripts."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxopt.training.node_view import Builder, Call, NodeView

__all__ = ["BUILDERS"]


def _matmul(node: NodeView) -> Call:
    return Call(torch.matmul, (node.tensor(0), node.tensor(1)))


def _gemm(node: NodeView) -> Call:
    """alpha A' B' + beta C."""
    alpha, beta = node.float_attribute("alpha", 1.0), node.float_attribute("beta", 1.0)
    turn_a, turn_b = node.int_attribute("transA", 0), node.int_attribute("transB", 0)
    if node.opset < 7:
        node.ignore_attributes("broadcast")  # C is broadcast to the product where it has to be

    def gemm(a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
        a = a.t() if turn_a else a
        b = b.t() if turn_b else b
        if c is not None and a.is_floating_point():
            return torch.addmm(c, a, b, beta=beta, alpha=alpha)
        product = torch.mm(a, b)
        product = product if alpha == 1.0 else alpha * product
        return product if c is None else product + (c if beta == 1.0 else beta * c)

    return Call(gemm, (node.tensor(0), node.tensor(1), node.tensor(2)))


def _einsum(node: NodeView) -> Call:
    equation = node.string_attribute("equation", "").replace(" ", "")
    return Call(lambda *tensors: torch.einsum(equation, *tensors), node.tensors())


BUILDERS: dict[str, Builder] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
