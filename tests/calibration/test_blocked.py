"""Tensors of convolutions, looked at as the runtime has them, are what they are in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.calibration import (
    Channels,
    Gram,
    Histogram,
    Observations,
    ObserverSpec,
    Range,
    Rows,
    observe,
)
from onnxopt.calibration.activation import Activation
from onnxopt.calibration.lots import lot_of
from onnxopt.model import from_proto
from onnxopt.numerics.layer_inputs import ConvolutionInput
from onnxopt.runtime import blocked
from onnxopt.runtime.worker import Worker
from tests.differential import parse

POINTWISE = ConvolutionInput((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
DEPTHWISE = ConvolutionInput((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), groups=32)
#: Reading "odd" twice, once by what is no convolution, and 20 channels that are no whole blocks.
MODEL = """
net (float[n, 3, h, w] image) => (float[n, 8, h, w] maps) {
    first = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(image, w1)
    wide = Relu(first)
    deep = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=32>(wide, w2)
    odd = Conv(deep, w3)
    bent = Sin(odd)
    added = Add(bent, odd)
    last = Conv(added, w4)
    maps = Sigmoid(last)
}
"""
BASIC: list[ObserverSpec[Any]] = [Range(), Histogram(64, 10**6), Channels(1)]
REQUESTS: dict[str, list[ObserverSpec[Any]]] = {
    "image": BASIC,
    "wide": [*BASIC, Rows(DEPTHWISE)],
    "deep": [*BASIC, Rows(POINTWISE)],
    "odd": BASIC,
    "added": [*BASIC, Gram(POINTWISE)],
    "maps": [*BASIC, Channels(-1)],
}


def _model() -> ir.Model:
    generator = np.random.default_rng(6)
    shapes = {"w1": (32, 3, 3, 3), "w2": (32, 1, 3, 3), "w3": (20, 32, 1, 1), "w4": (8, 20, 1, 1)}
    return from_proto(
        parse(
            MODEL,
            {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()},
        )
    )


def _seen(monkeypatch: pytest.MonkeyPatch, *, as_it_is: bool) -> Observations:
    generator = np.random.default_rng(7)
    shapes = [(1, 3, 9, 8), (2, 3, 7, 8), (1, 3, 12, 8)]
    samples = [{"image": generator.standard_normal(shape).astype(np.float32)} for shape in shapes]
    with Worker() as worker, monkeypatch.context() as patch:
        if not as_it_is:
            patch.setattr(worker, "let_through", lambda *arguments: None)
        return observe(_model(), samples, REQUESTS, worker=worker)


def test_nothing_depends_on_how_tensors_lie_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    ordered = _seen(monkeypatch, as_it_is=False)
    found = _seen(monkeypatch, as_it_is=True)
    assert found.observers.keys() == ordered.observers.keys()
    for tensor, observers in ordered.observers.items():
        for spec, observer in observers.items():
            for name, array in observer.arrays().items():
                theirs = found.observers[tensor][spec].arrays()[name]
                if isinstance(spec, Channels) and name == "limbs":
                    mean = found.get(tensor, Channels(spec.axis)).mean
                    expected = ordered.get(tensor, Channels(spec.axis)).mean
                    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
                else:
                    np.testing.assert_array_equal(theirs, array, err_msg=f"{tensor} {spec.kind}")


def test_blocks_are_used_where_the_runtime_has_them() -> None:
    with Worker() as worker:
        info = worker.open(_bytes())
        worker.watch(info.session, {name: _Spy() for name in ("first", "wide", "odd")})
        worker.let_through(info.session, _bytes(), 1, ["wide", "odd"])
        feed = {"image": np.ones((1, 3, 8, 8), np.float32)}
        worker.observe(info.session, feed)
        seen = worker.watched(info.session)
        blocks = {name: spy.block for name, spy in seen.items()}
    assert blocks["first"] == blocks["odd"] == 1
    if blocks["wide"] == 1:
        pytest.skip("the runtime has no blocks on this processor")
    assert 32 % blocks["wide"] == 0


def test_where_the_graph_cannot_be_written_down_it_is_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(model: str | bytes, path: str, threads: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(blocked, "_optimized", full)
    blocked._block_size.cache_clear()
    assert blocked.blocked_session(_bytes(), 1, ["wide", "odd"]) is None


class _Spy:
    takes_blocks = True
    block = 0

    def see(self, value: object, lot: int | None, block: int = 1) -> str | None:
        self.block = block
        return None

    def settle(self) -> str | None:
        return None


def _bytes() -> bytes:
    from onnxopt.model import to_proto

    model = _model()
    for node in model.graph:
        for value in node.outputs:
            if value.name in ("first", "wide", "odd"):
                model.graph.outputs.append(value)
    return bytes(to_proto(model).SerializeToString())


@pytest.mark.parametrize("layer", [POINTWISE, DEPTHWISE], ids=["pointwise", "depthwise"])
@pytest.mark.parametrize("block", [8, 16])
def test_an_activation_in_blocks_is_the_one_in_order(layer: ConvolutionInput, block: int) -> None:
    x = np.random.default_rng(8).standard_normal((2, 32, 5, 6)).astype(np.float32)
    laid = np.ascontiguousarray(np.moveaxis(x.reshape(2, 32 // block, block, 5, 6), 2, -1))
    ordered = Activation(x, 0)
    blocked = Activation(laid.reshape(x.shape), 0, block)
    np.testing.assert_array_equal(blocked.values, x)
    assert blocked.extremes == ordered.extremes
    for axis in range(4):
        for one, two in zip(
            blocked.channel_extremes(axis), ordered.channel_extremes(axis), strict=True
        ):
            np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(
            blocked.channel_sums(axis), ordered.channel_sums(axis), rtol=1e-4, atol=1e-4
        )
    for place in range(5):
        parts = [layer.part(each.parted, 6, lot_of(place)) for each in (blocked, ordered)]
        rows = [layer.rows_of_part(part) for part in parts]
        np.testing.assert_array_equal(rows[0], rows[1])
