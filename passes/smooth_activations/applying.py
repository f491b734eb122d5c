"""Writing factors into a model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.rewriting import Context, Rewriter
from onnxopt.rewriting.dead_code import drop_unused_initializer

from ..shared.affine import Array
from .sites import Site

__all__ = ["apply_factors"]


def apply_factors(site: Site, factors: Array, context: Context) -> None:
    """Divide the activation by its factors, and let its readers know.

    Raises:
        Refuse: When a constant cannot hold the factors; nothing has changed then.
    """
    edits = site.layer_edits(factors)
    if not site.refusal:
        edits.extend(site.maker_edits(factors, context))
    rewriter = Rewriter(context, site.layers[0].node)
    for edit in edits:
        edit.apply(rewriter)
    if site.refusal:
        divided = _product(site, 1.0 / factors, "divided", rewriter)
        for layer in site.layers:
            rewriter.replace_input(layer.node, 0, divided)
    elif site.others:
        restored = _product(site, factors, "restored", rewriter)
        for node, index in site.others:
            rewriter.replace_input(node, index, restored)
    for value in rewriter.unread:
        drop_unused_initializer(value)


def _product(site: Site, factors: Array, suffix: str, rewriter: Rewriter) -> ir.Value:
    """The activation times factors, right behind what makes it."""
    name, context = site.value.name, rewriter.context
    numbers = site.shaped(factors).astype(np.float32)
    node = ir.node("Mul", [site.value, rewriter.initializer(numbers, f"{name}_factors")])
    output = node.outputs[0]
    output.name, output.type = context.unique_name(f"{name}_{suffix}"), site.value.type
    output.shape = site.value.shape.copy() if site.value.shape is not None else None
    maker, graph = site.value.producer(), context.model.graph
    if maker is None:
        graph.insert_before(graph[0], node)
    else:
        node.name = context.unique_name(maker.name) if maker.name else ""
        graph.insert_after(maker, node)
    return output
