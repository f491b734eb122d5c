"""Put narrow weights into a graph: DequantizeLinear before each product, a narrow table to gather.

Standard operators, or those of ONNX Runtime (see `operators`). Of the standard ones it makes one
kernel (MatMulNBits) of DequantizeLinear and MatMul, or Gemm without transposition, where scales are
along the inputs in blocks or one for each output. It does not where products share stored weights:
those are made float in every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.values import constant
from onnxopt.regions import Product

from ..quantize.editing import Editor, called_after
from .narrowing import Form, Narrow
from .operators import gather_rows, has_operator, multiply
from .stores import Store, Written

__all__ = ["LEAST_IR_VERSION", "least_opset", "lower_weights"]

#: Scales for outputs; blocks of DequantizeLinear, and 4 bits, are of this opset.
_LEAST_OPSET, _BLOCKS_OPSET = 13, 21
LEAST_IR_VERSION = 10


def lower_weights(
    model: ir.Model,
    found: Iterable[Store],
    choices: Mapping[str, Form],
    weights: Mapping[tuple[str, Form], Narrow],
    written: Written = "qdq",
) -> Counter[str]:
    """Narrow stored weights, in place.

    Args:
        model: The model; its opset has what the chosen forms need.
        found: Its stores.
        choices: The form of each store that gets one, by key.
        weights: Narrowed weights, by key and form.
        written: As DequantizeLinear or as operators of ONNX Runtime, where there are such.

    Returns:
        How often each form was chosen.
    """
    editor, done = Editor(model), Counter[str]()
    for store in found:
        form = choices.get(store.key)
        if form is None:
            continue
        done[form.value] += 1
        narrow = weights[store.key, form]
        if store.is_gathered_only and written == "nbits":
            for node in store.gathers:
                gather_rows(editor, node, narrow, store.key)
        elif store.is_table:
            _lower_table(editor, store, narrow)
        else:
            for product in store.products:
                if written == "nbits" and has_operator(product):
                    multiply(editor, product, narrow)
                else:
                    _lower_product(editor, product, narrow)
    if written == "qdq" and any(
        choices.get(store.key, Form.INT8) is not Form.INT8 for store in found
    ):
        model.ir_version = max(model.ir_version, LEAST_IR_VERSION)
    editor.remove_unread_initializers()
    return done


def least_opset(form: Form, written: Written) -> int:
    """The opset that a form takes."""
    return _LEAST_OPSET if form is Form.INT8 or written == "nbits" else _BLOCKS_OPSET


def _lower_product(editor: Editor, product: Product, narrow: Narrow) -> None:
    node, numbers, axis = product.node, narrow.numbers, 1
    if node.op_type == "Conv":
        numbers, axis = np.ascontiguousarray(numbers.T).reshape(product.weights.shape), 0
    stored = editor.constant(numbers, called_after(product.key, "narrow"))
    _read(editor, product, stored, narrow, axis)


def _lower_table(editor: Editor, store: Store, narrow: Narrow) -> None:
    """Rows with a scale each: gathered with their scales, and turned for products."""
    rows = editor.constant(
        np.ascontiguousarray(narrow.numbers.T), called_after(store.key, "narrow")
    )
    scales = editor.constant(narrow.scales[:, None], called_after(store.key, "row_scales"))
    for node in store.gathers:
        output, indices = node.outputs[0], node.inputs[1]
        name = output.name or ""
        numbers, scale = (
            editor.node(
                "Gather",
                [source, indices],
                {"axis": 0},
                name=called_after(name, word),
                before=node,
                dtype=source.dtype,
            )
            for source, word in ((rows, "numbers"), (scales, "scales"))
        )
        wide = editor.node(
            "Cast",
            [numbers],
            {"to": ir.DataType.FLOAT.value},
            name=called_after(name, "wide"),
            before=node,
            dtype=ir.DataType.FLOAT,
            like=output,
        )
        result = editor.node(
            "Mul",
            [wide, scale],
            name=called_after(name, "scaled"),
            before=node,
            dtype=ir.DataType.FLOAT,
            like=output,
        )
        editor.take_over(output, result)
        editor.remove_unread([node])
    for product in store.products:
        turned = editor.node(
            "Transpose",
            [rows],
            {"perm": [1, 0]},
            name=called_after(product.key, "turned"),
            before=product.node,
            dtype=rows.dtype,
        )
        _read(editor, product, turned, narrow, 1)


def _read(editor: Editor, product: Product, stored: ir.Value, narrow: Narrow, axis: int) -> None:
    """Let a product read stored weights through a DequantizeLinear of its own."""
    node, old = product.node, product.node.inputs[1]
    assert old is not None
    attributes = {"axis": 0, "block_size": narrow.block} if narrow.block else {"axis": axis}
    wide = editor.node(
        "DequantizeLinear",
        [
            stored,
            editor.constant(narrow.scales, called_after(product.key, "scales")),
            editor.constant(narrow.zeros, called_after(product.key, "zero_points")),
        ],
        attributes,
        name=called_after(product.key, "weights"),
        before=node,
        dtype=ir.DataType.FLOAT,
    )
    node.replace_input_with(1, wide)
    for attribute in ("alpha", "transB"):  # multiplied in and turned, as the product's weights are
        node.attributes.pop(attribute, None)
    producer = old.producer()
    if producer is not None and (constant(old) is None or producer.op_type == "Constant"):
        editor.remove_unread([producer])
