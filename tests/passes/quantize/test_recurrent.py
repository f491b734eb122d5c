"""LSTM with 8-bit weights, beside the float one in the runtime; GRU, RNN and others are left."""

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize.lowering import lower
from onnxopt.passes.quantize.numbers import Numbers
from onnxopt.passes.quantize.plan import Mode, Plan
from onnxopt.passes.quantize.recurrent import quantize_recurrence
from onnxopt.passes.quantize.trials import Trials, Workshop, name_nodes
from onnxopt.passes.quantize.weights import pairs_are_safe

import onnxopt
from onnxopt.model import from_proto, to_proto
from onnxopt.regions import Recurrence, recurrences
from onnxopt.runtime.trial import try_model
from onnxopt.runtime.worker import shared_worker
from tests.differential import parse
from tests.passes.quantize.lowered import decibels, kernels, run_at

RNG = np.random.default_rng(5)
INPUTS, UNITS = 7, 12  # odd numbers of inputs are paired too
HEAD = "float[T, B, 7] x"


def _lstm(
    attributes: str = "",
    extra: str = "",
    directions: int = 1,
    operator: str = "LSTM",
    gates: int = 4,
) -> onnx.ModelProto:
    shapes = {
        "w": (directions, gates * UNITS, INPUTS),
        "r": (directions, gates * UNITS, UNITS),
        "b": (directions, 2 * gates * UNITS),
        "p": (directions, 3 * UNITS),
        "h0": (directions, 2, UNITS),
        "c0": (directions, 2, UNITS),
    }
    inputs = f"x, w, r{extra or ', b'}"
    constants: dict[str, np.ndarray] = {
        name: (RNG.standard_normal(shape) * 0.4).astype(np.float32)
        for name, shape in shapes.items()
        if name in inputs.split(", ")
    }
    if "lengths" in inputs:
        constants["lengths"] = np.array([5, 3], np.int32)
    outputs = "float[T, D, B, 12] y, float[D, B, 12] h, float[D, B, 12] c"
    made = "y, h, c"
    if operator != "LSTM":
        outputs, made = outputs.rpartition(", float")[0], "y, h"
    return parse(
        f"g ({HEAD}) => ({outputs}) {{"
        f" {made} = {operator}<hidden_size={UNITS}{attributes}>({inputs}) }}",
        constants,
    )


def _lowered(model: onnx.ModelProto, pair_limit: int | None = None) -> onnx.ModelProto:
    converted = from_proto(model)
    InferShapes()(converted)
    found = [each for each in recurrences(converted.graph) if isinstance(each, Recurrence)]
    weights = {each.key: quantize_recurrence(each, pair_limit) for each in found}
    plan = Plan({each.key: Mode.DYNAMIC for each in found})
    done = lower(converted, plan, Numbers(False, {}, {}, recurrent=weights))
    assert done == {"recurrent": len(found)}
    result = to_proto(converted)
    onnx.checker.check_model(result)
    return result


CASES: dict[str, dict[str, Any]] = {
    "forward": {},
    "reverse": {"attributes": ', direction="reverse"'},
    "bidirectional": {"attributes": ', direction="bidirectional"', "directions": 2},
    "no bias": {"extra": ", "},
    "initial states": {"extra": ", b, , h0, c0"},
    "lengths": {"extra": ", b, lengths"},
    "peepholes": {"extra": ", b, , h0, c0, p"},
    "clipped": {"attributes": ", clip=0.5"},
    "input and forget gates together": {"attributes": ", input_forget=1"},
    "other activations": {
        "attributes": ', activations=["HardSigmoid", "Softsign", "Relu"]',
    },
    "all at once": {
        "attributes": ', direction="bidirectional", clip=2.0',
        "extra": ", b, lengths, h0, c0, p",
        "directions": 2,
    },
}


@pytest.mark.parametrize("pair_limit", [None, 128])
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_gives_what_lstm_gives(case: str, pair_limit: int | None) -> None:
    model = _lstm(**CASES[case])
    result = _lowered(model, pair_limit)
    for steps in (1, 5):
        if "lengths" in case + str(CASES[case]) and steps == 1:
            continue
        feed = {"x": RNG.standard_normal((steps, 2, INPUTS)).astype(np.float32)}
        for expected, actual in zip(run_at(model, feed), run_at(result, feed), strict=True):
            assert expected.shape == actual.shape
            assert decibels(expected, actual) > 28


def test_weights_do_not_saturate() -> None:
    converted = from_proto(_lstm(', direction="bidirectional"', directions=2))
    (layer,) = recurrences(converted.graph)
    assert isinstance(layer, Recurrence)
    safe, free = quantize_recurrence(layer, 128), quantize_recurrence(layer, None)
    for found in (*safe.inputs, *safe.states):
        assert pairs_are_safe(found.numbers, found.axis)
    assert not all(pairs_are_safe(each.numbers, each.axis) for each in (*free.inputs, *free.states))


def test_weights_behind_other_nodes_are_stored_once_and_small() -> None:
    model = _lstm()
    plain = {each.name: each for each in model.graph.initializer}
    turned = onnx.numpy_helper.to_array(plain["w"]).transpose(0, 2, 1)
    plain["w"].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(turned), "turned"))
    model.graph.node.insert(
        0, onnx.helper.make_node("Transpose", ["turned"], ["w"], perm=[0, 2, 1])
    )
    result = _lowered(model)
    assert [node.op_type for node in result.graph.node] == ["DynamicQuantizeLSTM"]
    stored = {each.name for each in result.graph.initializer}
    assert not stored & {"turned", "r", "w"}
    feed = {"x": RNG.standard_normal((3, 1, INPUTS)).astype(np.float32)}
    assert decibels(run_at(model, feed)[0], run_at(result, feed)[0]) > 28


def test_the_runtime_keeps_the_kernel(tmp_path: pathlib.Path) -> None:
    assert kernels(_lowered(_lstm()), tmp_path) == {"DynamicQuantizeLSTM": 1}


def test_time_is_laid_to_the_layer() -> None:
    model = from_proto(_lstm())
    InferShapes()(model)
    name_nodes(model)
    found = [each for each in recurrences(model.graph) if isinstance(each, Recurrence)]
    numbers = Numbers(False, {}, {}, recurrent={found[0].key: quantize_recurrence(found[0], None)})
    with Workshop(model) as workshop:
        trials = Trials(workshop, model, [], numbers, list(Mode), {}, found)
        assert list(trials.regions()) == ["y"]
        assert list(trials.treatments("y")) == ["dynamic"]
        saved = trials.size({}) - trials.size({"y": "dynamic"})
        assert saved == pytest.approx(trials.bytes_saved("y", "dynamic"), rel=0.2)
        with trials.build({"y": "dynamic"}) as path:
            feed = {"x": RNG.standard_normal((3, 1, INPUTS)).astype(np.float32)}
            (kernel,) = try_model(shared_worker(), path, [feed]).kernels
    assert kernel.op_type == "DynamicQuantizeLSTM"
    assert trials.owner(kernel.node) == "y"


def _reasons(model: onnx.ModelProto) -> list[str]:
    found = list(recurrences(from_proto(model).graph))
    assert all(isinstance(each, tuple) for each in found)
    return [each[1] for each in found if isinstance(each, tuple)]


@pytest.mark.parametrize(("operator", "gates"), [("GRU", 3), ("RNN", 1)])
def test_others_have_no_kernel(operator: str, gates: int) -> None:
    model = _lstm(operator=operator, gates=gates)
    assert _reasons(model) == [f"the runtime has no 8-bit kernel for {operator}"]


def test_a_batch_that_comes_first_is_left() -> None:
    assert _reasons(_lstm(", layout=1")) == [
        "its batch comes first, which the runtime's 8-bit kernel does not take"
    ]


def test_weights_that_are_no_constants_are_left() -> None:
    model = _lstm()
    weights = model.graph.initializer[1]
    model.graph.input.append(onnx.helper.make_tensor_value_info("r", 1, list(weights.dims)))
    model.graph.initializer.remove(weights)
    assert _reasons(model) == ["its weights are not constant"]


def test_weights_that_are_not_finite_are_left() -> None:
    model = _lstm()
    broken = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    broken[0, 0, 0] = np.inf
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(broken, "w"))
    assert _reasons(model) == ["its weights are not all finite"]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [("x, flat, r", "its weights are no matrices, one for each direction"), ("x, w", "not const")],
)
def test_a_broken_layer_is_left(inputs: str, reason: str) -> None:
    model = parse(
        f"g ({HEAD}) => (float[T, D, B, 12] y) {{ y = LSTM<hidden_size=12>({inputs}) }}",
        {
            "flat": np.zeros((48, 7), np.float32),
            "w": np.zeros((1, 48, 7), np.float32),
            "r": np.zeros((1, 48, 12), np.float32),
        },
    )
    (found,) = _reasons(model)
    assert reason in found


def _optimized(
    model: onnx.ModelProto, folder: pathlib.Path, passes: str
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Operators of the result, and the reasons of refusals and of treatments by node."""
    onnx.save(model, folder / "net.onnx")
    samples = RNG.standard_normal((8, 6, 1, INPUTS)).astype(np.float32)
    for number, sample in enumerate(samples):
        np.savez(_data(folder) / f"{number}.npz", x=sample)
    report = onnxopt.optimize(
        folder / "net.onnx",
        folder / "out.onnx",
        data=_data(folder),
        passes=passes,
        goal="size",
        seconds=0.05,
        guard_speed=False,
    )
    refusals = {each.node: each.reason for one in report.passes for each in one.outcome.refusals}
    told = {each["node"]: each["reason"] for each in report.to_dict()["treatments"]}
    return [node.op_type for node in onnx.load(folder / "out.onnx").graph.node], refusals, told


def _data(folder: pathlib.Path) -> pathlib.Path:
    (folder / "data").mkdir(exist_ok=True)
    return folder / "data"


def test_the_pass_quantizes_a_model_of_an_lstm_alone(tmp_path: pathlib.Path) -> None:
    operators, refusals, told = _optimized(_lstm(), tmp_path, "quantize")
    assert operators == ["DynamicQuantizeLSTM"]
    assert refusals == {}
    assert told["y"] == (
        "8-bit weights, the range of each run's own inputs and of each step's own state"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("scheme=static", "its 8-bit kernel takes ranges of each run's own, which the scheme"),
        ("float=y", "it is to stay float"),
    ],
)
def test_the_pass_leaves_an_lstm(tmp_path: pathlib.Path, options: str, reason: str) -> None:
    model = _lstm()
    model.graph.node[0].name = "y"
    operators, refusals, told = _optimized(model, tmp_path, f"quantize{{{options}}}")
    assert operators == ["LSTM"]
    assert refusals["y"].startswith(reason)
    assert told["y"].startswith(reason)


def test_the_pass_says_why_gru_stays_float(tmp_path: pathlib.Path) -> None:
    model = _lstm(operator="GRU", gates=3)
    operators, refusals, told = _optimized(model, tmp_path, "quantize")
    assert operators == ["GRU"]
    assert set(refusals.values()) == {"the runtime has no 8-bit kernel for GRU"}
    assert told["y"] == "the runtime has no 8-bit kernel for GRU"
