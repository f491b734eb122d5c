"""Names of 300 characters: what is added is called after them, and does not grow with them."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize.numbers import Numbers
from onnxopt.passes.quantize.plan import Mode
from onnxopt.passes.quantize.trials import Trials, Workshop, name_nodes
from onnxopt.passes.quantize.weights import quantize_weights

from onnxopt.model import from_proto
from onnxopt.noise.counterparts import counterparts
from onnxopt.regions import Product, products
from onnxopt.runtime.trial import try_model
from onnxopt.runtime.worker import shared_worker
from tests.differential import parse
from tests.passes.quantize.lowered import decibels, lowered, ranges_of, run_at

RNG = np.random.default_rng(0)
LONG = "StatefulPartitionedCall/functional_1/" + "block/" * 44


def _net() -> onnx.ModelProto:
    return parse(
        """
        g (float[N, 8, 6, 6] x) => (float[N, 6, 6, 8] y, float[N, 5] z) {
            a = Conv(x, w1)
            r = Relu(a)
            t = Transpose<perm=[0, 2, 3, 1]>(r)
            b = Conv(r, w2)
            q = Relu(b)
            y = MatMul(t, w3)
            p = GlobalAveragePool(q)
            f = Flatten(p)
            z = Gemm(f, w4)
        }
        """,
        {
            name: (RNG.standard_normal(shape) * 0.3).astype(np.float32)
            for name, shape in (
                ("w1", (8, 8, 1, 1)),
                ("w2", (8, 8, 3, 3)),
                ("w3", (8, 8)),
                ("w4", (8, 5)),
            )
        },
    )


def _lengthened(model: onnx.ModelProto, *kept: str) -> onnx.ModelProto:
    """The model with long names of all nodes and of what they give."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    given = {name for node in result.graph.node for name in node.output} - set(kept)
    for node in result.graph.node:
        node.name = LONG + node.output[0]
        for names in (node.input, node.output):
            names[:] = [LONG + name if name in given else name for name in names]
    for output in result.graph.output:
        output.name = LONG + output.name if output.name in given else output.name
    return result


def _named_after_short(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        node.name = node.output[0]
    return result


@pytest.mark.parametrize("mode", [Mode.STATIC, Mode.DYNAMIC])
def test_what_is_added_weighs_the_same(mode: Mode) -> None:
    feed = {"x": RNG.standard_normal((2, 8, 6, 6)).astype(np.float32)}
    grown = []
    for model in (_named_after_short(_net()), _lengthened(_net())):
        found = [each for each in products(from_proto(model).graph) if isinstance(each, Product)]
        modes = {
            each.key: mode
            for each in found
            if (each.node.op_type == "Conv") == (mode is Mode.STATIC)
        }
        result, done = lowered(model, modes, feed)
        assert done[mode.value] == 2
        for expected, actual in zip(run_at(model, feed), run_at(result, feed), strict=True):
            assert decibels(expected, actual) > 28
        grown.append(result.ByteSize() - model.ByteSize())
    # A few names are handed on from what went; those that are new are short.
    assert grown[1] < grown[0] + 6 * len(LONG)


@pytest.mark.parametrize("treated", [[], ["b"], ["a", "b", "z"]])
def test_time_is_laid_to_products(treated: Sequence[str]) -> None:
    model = from_proto(_lengthened(_net()))
    InferShapes()(model)
    name_nodes(model)
    feed = {"x": RNG.standard_normal((2, 8, 6, 6)).astype(np.float32)}
    found = [each for each in products(model.graph) if isinstance(each, Product)]
    numbers = Numbers(
        False,
        ranges_of(_lengthened(_net()), feed),
        {each.key: quantize_weights(each.weights, each.channel_axis, None) for each in found},
    )
    with Workshop(model) as workshop:
        trials = Trials(workshop, model, found, numbers, [Mode.STATIC], {})
        choices = {LONG + name: "static" for name in treated}
        with trials.build(choices) as path:
            ran = try_model(shared_worker(), path, [feed]).kernels
    owners = {kernel.node: trials.owner(kernel.node) for kernel in ran}
    assert {owner for owner in owners.values() if owner} == {each.key for each in found}
    assert not trials.misplaced(ran, choices)
    strangers = {
        kernel.op_type for kernel in ran if owners[kernel.node] is None and LONG in kernel.node
    }
    assert not strangers


def test_layers_are_found_again_behind_short_names() -> None:
    feed = {"x": RNG.standard_normal((2, 8, 6, 6)).astype(np.float32)}
    for model, prefix in ((_net(), ""), (_lengthened(_net()), LONG)):
        result, _ = lowered(model, Mode.STATIC, feed)
        found = {each.value for each in counterparts(from_proto(model), from_proto(result))}
        assert {prefix + name for name in "rtqpfyz"} <= found
