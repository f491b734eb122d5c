"""prune-channels: which channels go, what the others take over, and what stays as it is."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxopt.passes.prune_channels.plan as planning
import pytest

from onnxopt.accuracy import Budget
from onnxopt.errors import OptionError, PassFailure
from onnxopt.model import from_proto, to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.worker import shared_worker
from onnxopt.samples import Samples
from onnxopt.workbench import Workbench
from tests.channels.quantizing import quantized
from tests.differential import Feed, assert_same, parse, run
from tests.passes.pruning import normal
from tests.passes.test_fold_pruned_attention import block, parameters, parted


def prune(
    model: onnx.ModelProto, options: str, feeds: Sequence[Feed], *, before: str = "infer-shapes"
) -> tuple[onnx.ModelProto, Outcome]:
    """Prune a model; the result, which has the same interface, and the pass's outcome."""
    samples = Samples(lambda: [dict(feed) for feed in feeds])
    bench = Workbench(
        source=pathlib.Path("model.onnx"),
        calibration=samples,
        held_out=samples,
        given=True,
        budget=Budget(),
        worker=shared_worker(),
        seconds=0.1,
    )
    result = from_proto(model)
    passes = parse_pipeline(f"{before},prune-channels{{{options}}}")
    reports = PassManager(passes, workbench=bench).run(result)
    after = to_proto(result)
    onnx.checker.check_model(after)
    assert [each.name for each in after.graph.input] == [each.name for each in model.graph.input]
    assert [each.name for each in after.graph.output] == [each.name for each in model.graph.output]
    return after, reports[-1].outcome


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {each.name: tuple(each.dims) for each in model.graph.initializer}


def array(model: onnx.ModelProto, name: str) -> np.ndarray:
    (found,) = [each for each in model.graph.initializer if each.name == name]
    result: np.ndarray = onnx.numpy_helper.to_array(found)
    return result


FEEDS = [{"x": normal(2, 3, 9, 8, seed=seed)} for seed in range(8)]


def chain(
    width: int = 8, *, twins: Sequence[tuple[int, int]] = (), pads: int = 1
) -> onnx.ModelProto:
    """Two convolutions; of the channels between, twins are the same up to a factor."""
    first, bias = normal(width, 3, 3, 3), normal(width)
    for one, other in twins:
        first[other], bias[other] = 2 * first[one], 2 * bias[one]
    border = ", ".join([str(pads)] * 4)
    return parse(
        f"""g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  b = Relu(a)
            y = Conv <pads = [{border}]> (b, w2, b2)
        }}""",
        {"w1": first, "b1": bias, "w2": normal(5, width, 3, 3), "b2": normal(5)},
    )


def error(model: onnx.ModelProto, other: onnx.ModelProto, feed: Feed = FEEDS[0]) -> float:
    """The energy of the error over that of the output."""
    one, two = run(model, feed)[0], run(other, feed)[0]
    return float(np.square(one - two).sum() / np.square(one).sum())


@pytest.mark.parametrize("spread", ["uniform", "sensitivity"])
@pytest.mark.parametrize("criterion", ["reconstruction", "stability"])
def test_what_others_can_take_over_goes_first(criterion: str, spread: str) -> None:
    model = chain(twins=[(0, 3), (5, 6)])
    options = f"amount=0.25,round-to=1,criterion={criterion},spread={spread}"
    result, outcome = prune(model, options, FEEDS)
    assert outcome.rewritten == {"prune-channel": 2}
    assert shapes(result)["w1"] == (6, 3, 3, 3)
    assert shapes(result)["w2"] == (5, 6, 3, 3)
    assert error(model, result) < 1e-4
    # Without that, what they added is missing.
    alone, _ = prune(model, f"{options},compensate=false", FEEDS)
    assert error(model, alone) > 1e-2


def test_the_bias_takes_what_is_constant() -> None:
    # A channel that hardly moves: its mean goes into the bias, at the border too where unpadded.
    model = chain(pads=0)
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "b1"):
            numbers = onnx.numpy_helper.to_array(tensor).copy()
            numbers[2] = 1e-3 if tensor.name == "w1" else 7
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    result, _ = prune(model, "amount=0.1,round-to=1", FEEDS)
    assert shapes(result)["w1"] == (7, 3, 3, 3)
    assert error(model, result) < 1e-4


@pytest.mark.parametrize(
    ("criterion", "gone"),
    [("l1", 4), ("l2", 4), ("activation", 2)],
)
def test_criteria(criterion: str, gone: int) -> None:
    model = chain()
    for tensor in model.graph.initializer:
        numbers = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            numbers[4] *= 0.1  # small weights, but a large bias
        if tensor.name == "b1":
            numbers[4], numbers[2] = 30, -50  # never over 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    options = f"amount=0.1,round-to=1,criterion={criterion},compensate=false,spread=uniform"
    result, _ = prune(model, options, FEEDS)
    left = array(result, "w1")
    np.testing.assert_array_equal(left, np.delete(array(model, "w1"), gone, 0))


def test_filters_near_the_middle() -> None:
    model = chain(twins=[])
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            numbers = onnx.numpy_helper.to_array(tensor).copy()
            numbers[5] = np.median(numbers, axis=0)
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, "w1"))
    result, _ = prune(model, "amount=0.1,round-to=1,criterion=fpgm,spread=uniform", FEEDS)
    np.testing.assert_array_equal(array(result, "w1"), np.delete(array(model, "w1"), 5, 0))


def test_scales() -> None:
    text = """g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
        a = Conv(x, w1)  b = BatchNormalization(a, g, c, m, s)  d = Relu(b)  y = Conv(d, w2)
    }"""
    scale = normal(8) + np.array([3, -3] * 4, np.float32)
    scale[[1, 6]] = [0.01, -0.02]
    constants = {
        "w1": normal(8, 3, 3, 3),
        "g": scale,
        "c": normal(8),
        "m": normal(8),
        "s": normal(8) ** 2 + 0.5,
        "w2": normal(5, 8, 1, 1),
    }
    options = "amount=0.25,round-to=1,criterion=bn-scale,spread=uniform"
    result, _ = prune(parse(text, constants), options, FEEDS)
    np.testing.assert_array_equal(array(result, "g"), np.delete(scale, [1, 6]))
    _, outcome = prune(chain(), options, FEEDS)
    assert not outcome.modified
    assert any("no BatchNormalization" in each.reason for each in outcome.refusals)


def test_saliencies_from_a_file(tmp_path: pathlib.Path) -> None:
    model = chain()
    table = np.abs(normal(8, 3, 3, 3)) + 1
    table[[3, 7]] = 0.01
    path = tmp_path / "saliency.npz"
    np.savez(path, w1=table)
    options = f"amount=0.25,round-to=1,criterion=saliency,spread=uniform,saliency={path}"
    result, _ = prune(model, options, FEEDS)
    np.testing.assert_array_equal(array(result, "w1"), np.delete(array(model, "w1"), [3, 7], 0))
    np.savez(path, w1=table[0])
    _, outcome = prune(model, options, FEEDS)
    assert any("another shape" in each.reason for each in outcome.refusals)
    np.savez(path, other=table)
    _, outcome = prune(model, options, FEEDS)
    assert any("no saliencies" in each.reason for each in outcome.refusals)
    path.write_bytes(b"no archive")
    with pytest.raises((OptionError, PassFailure), match="saliencies cannot be read"):
        prune(model, options, FEEDS)


RESIDUAL = """g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  b = Relu(a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w2, b2)  d = Relu(c)
    e = Conv <pads = [1, 1, 1, 1], group = 16> (d, w3, b3)  f = Relu(e)
    k = Conv(f, w4, b4)  m = Add(k, b)  o = Relu(m)  y = Conv(o, w5)
}"""


def residual() -> onnx.ModelProto:
    return parse(
        RESIDUAL,
        {
            "w1": normal(8, 3, 3, 3),
            "w2": normal(16, 8, 3, 3),
            "w3": normal(16, 1, 3, 3),
            "w4": normal(8, 16, 1, 1),
            "w5": normal(5, 8, 1, 1),
            **{f"b{layer}": normal(size) for layer, size in ((1, 8), (2, 16), (3, 16), (4, 8))},
        },
    )


def macs(model: onnx.ModelProto) -> int:
    """MACs at each place of the image, of which all layers have as many."""
    return sum(int(np.prod(dims)) for name, dims in shapes(model).items() if name.startswith("w"))


@pytest.mark.parametrize("of", ["macs", "parameters"])
@pytest.mark.parametrize("amount", [0.2, 0.5])
def test_members_go_together_and_the_amount_is_met(of: str, amount: float) -> None:
    model = residual()
    result, outcome = prune(model, f"amount={amount},of={of},round-to=2", FEEDS)
    found = shapes(result)
    stream, inner = found["w1"][0], found["w2"][0]
    assert found["w4"] == (stream, inner, 1, 1)
    assert found["w2"] == (inner, stream, 3, 3)
    assert found["w3"] == (inner, 1, 3, 3)
    assert found["w5"] == (5, stream, 1, 1)
    assert stream % 2 == inner % 2 == 0
    assert (1 - amount) * 0.8 * macs(model) < macs(result) <= (1 - amount) * macs(model)
    assert {each.name for each in outcome.findings.curves} == {"a", "c"}
    removed = {each.name: each.channels_removed for each in outcome.findings.layers}
    assert removed.get("a", 0) == 8 - stream
    run(result, {"x": normal(1, 3, 17, 5)})  # any other size


def test_no_tensor_loses_its_last_channel() -> None:
    result, _ = prune(residual(), "amount=0.99,max-ratio=0.99,round-to=1", FEEDS)
    assert all(size >= 1 for dims in shapes(result).values() for size in dims)
    assert shapes(result)["w1"][0] == 1


def test_only_weights_of_zero() -> None:
    model = residual()
    options = "amount=0.4,round-to=2"
    masked, _ = prune(model, f"{options},keep-shapes=true", FEEDS)
    assert shapes(masked) == shapes(model)
    gone = ~array(masked, "w2").any(axis=(1, 2, 3))
    assert gone.any()
    np.testing.assert_array_equal(array(masked, "b2")[gone], 0)
    small, _ = prune(model, options, FEEDS)
    for feed in FEEDS:
        assert_same(run(small, feed), run(masked, feed))
    again = from_proto(masked)
    PassManager(parse_pipeline("infer-shapes,fold-pruned-channels{round-to=1}")).run(again)
    assert shapes(to_proto(again)) == shapes(small)


def test_heads() -> None:
    constants = parameters()
    # The third head hardly adds to the output.
    constants["wo"].reshape(4, 6, 24)[2] *= 1e-3
    model = block(constants)
    feeds = [{"x": normal(2, 7, 24, seed=seed)} for seed in range(8)]
    result, outcome = prune(model, "amount=0.15,round-to=1,spread=uniform", feeds)
    assert outcome.rewritten == {"prune-head": 1}
    assert shapes(result)["wq"] == shapes(result)["wk"] == shapes(result)["wv"] == (24, 18)
    assert shapes(result)["wo"] == (18, 24)
    left = np.delete(parted(constants["wv"]), 2, 1).reshape(24, 18)
    np.testing.assert_array_equal(array(result, "wv"), left)
    assert error(model, result, feeds[0]) < 1e-4
    _, outcome = prune(model, "heads=false", feeds)
    assert not outcome.modified
    assert any(each.reason == "heads are to stay" for each in outcome.refusals)


def test_target_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def race(worker: Any, models: Sequence[pathlib.Path], *_: Any, **__: Any) -> list[list[float]]:
        # As if time were in proportion to the MACs.
        return [[float(macs(onnx.load(path)))] for path in models]

    monkeypatch.setattr(planning, "race", race)
    model = residual()
    result, _ = prune(model, "amount=0.3,of=latency,round-to=1", FEEDS)
    assert 0.5 * macs(model) < macs(result) <= 0.7 * macs(model)


def test_layers_by_name() -> None:
    result, outcome = prune(residual(), "amount=0.3,round-to=1,layers=c*", FEEDS)
    assert shapes(result)["w1"] == (8, 3, 3, 3)
    assert shapes(result)["w2"][0] < 16
    assert any("not among those to prune" in each.reason for each in outcome.refusals)


def test_groups_of_a_convolution() -> None:
    model = parse(
        """g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
            a = Conv(x, w1, b1)  b = Relu(a)  c = Conv <group = 2> (b, w2, b2)  d = Relu(c)
            y = Conv(d, w3)
        }""",
        {
            "w1": normal(12, 3, 3, 3),
            "b1": normal(12),
            "w2": normal(8, 6, 3, 3),
            "b2": normal(8),
            "w3": normal(5, 8, 1, 1),
        },
    )
    result, _ = prune(model, "amount=0.4,round-to=1", FEEDS)
    found = shapes(result)
    assert found["w1"][0] == 2 * found["w2"][1] < 12
    assert found["w2"][0] == found["w3"][1] <= 8
    assert found["w2"][0] % 2 == 0
    run(result, FEEDS[0])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            parse(
                """<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
                g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
                    a = Conv(x, w1)  b = com.microsoft.FastGelu(a)  y = Conv(b, w2)
                }""",
                {"w1": normal(8, 3, 1, 1), "w2": normal(5, 8, 1, 1)},
            ),
            "read by FastGelu",
        ),
        (quantized(chain(), FEEDS[:2]), "its weights are quantized"),
        (
            parse(
                "g (float[n, 3, h, v] x) => (float[n, 8, p, q] y) { a = Conv(x, w1)  y = Relu(a) }",
                {"w1": normal(8, 3, 1, 1)},
            ),
            "part of an output of the graph",
        ),
    ],
)
def test_left_alone(model: onnx.ModelProto, reason: str) -> None:
    result, outcome = prune(model, "amount=0.5", FEEDS)
    assert not outcome.modified
    assert shapes(result) == shapes(model)
    assert any(reason in each.reason for each in outcome.refusals), outcome.refusals


@pytest.mark.parametrize(
    "options", ["amount=1", "amount=-0.1", "max-ratio=1", "round-to=0", "criterion=saliency"]
)
def test_options_that_make_no_sense(options: str) -> None:
    with pytest.raises(OptionError, match=r"from|needs"):
        parse_pipeline(f"prune-channels{{{options}}}")


def test_samples_are_needed() -> None:
    with pytest.raises(OptionError, match="--data"):
        PassManager(parse_pipeline("prune-channels"))
