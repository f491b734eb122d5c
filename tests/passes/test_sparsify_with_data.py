"""Criteria, allocation and budgets that need samples."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.accuracy import Budget, fidelity
from onnxopt.errors import OptionError
from onnxopt.model import from_proto, to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.worker import Worker
from onnxopt.samples import Samples
from onnxopt.workbench import Workbench
from tests.differential import parse, run

Array = np.ndarray[Any, Any]

#: A convolution, a grouped and strided one, a transposed one, Gemm, and MatMul from both sides.
NET = """g (float[n, 4, 8, 8] x) => (float[n, 6, 24] y) <int64[3] s = {0, 8, 64}> {
    a = Conv <pads = [1, 1, 1, 1]> (x, c, cb) b = Relu(a)
    d = Conv <group = 2, strides = [2, 2], pads = [1, 1, 1, 1]> (b, g) e = Relu(d)
    f = ConvTranspose <strides = [2, 2]> (e, t) h = Reshape(f, s)
    i = MatMul(h, r) j = Relu(i) k = MatMul(l, j) y = MatMul(k, m)
}"""
SHAPES = {
    "c": (16, 4, 3, 3),
    "g": (16, 8, 3, 3),
    "t": (16, 8, 2, 2),
    "r": (64, 32),
    "l": (6, 8),
    "m": (32, 24),
}


def net() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in SHAPES.items():
        fan_in = np.prod(shape[1:]) if len(shape) > 2 or name == "l" else shape[0]
        arrays[name] = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    arrays["cb"] = np.full(16, 0.1, np.float32)
    return parse(NET, arrays)


def feeds(count: int, seed: int) -> list[dict[str, Any]]:
    """Smooth pictures, whose neighbouring pixels go together, in channels of unlike strength."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 4, 2, 2)).repeat(4, 2).repeat(4, 3)
    pictures = coarse + 0.2 * rng.standard_normal((count, 4, 8, 8))
    pictures *= np.array([2, 1, 0.3, 0.1]).reshape(1, 4, 1, 1)
    return [{"x": picture[None].astype(np.float32)} for picture in pictures]


CALIBRATION, HELD_OUT = feeds(12, 1), feeds(8, 2)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as made:
        yield made


def bench(
    proto: onnx.ModelProto, folder: pathlib.Path, worker: Worker, budget: Budget | None = None
) -> Workbench:
    path = folder / "original.onnx"
    onnx.save(proto, path)
    return Workbench(
        path,
        Samples(lambda: CALIBRATION),
        Samples(lambda: HELD_OUT),
        True,
        budget or Budget(),
        worker,
    )


def sparsify(
    proto: onnx.ModelProto, options: str, workbench: Workbench
) -> tuple[ir.Model, Outcome]:
    model = from_proto(proto)
    (report,) = PassManager(
        parse_pipeline(f"sparsify{{min-elements=0,min-inputs=0,{options}}}"), workbench=workbench
    ).run(model)
    onnx.checker.check_model(to_proto(model))
    return model, report.outcome


def decibels(proto: onnx.ModelProto, model: ir.Model) -> float:
    """How true the outputs on samples are that nothing was learnt from."""
    after = to_proto(model)
    before, now = ([run(each, feed) for feed in HELD_OUT] for each in (proto, after))
    return fidelity(before, now, ["y"]).sqnr_db


def share(model: ir.Model) -> float:
    """Share of zeros over all layers together."""
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    return sum(each * sizes[name] for name, each in zeros(model).items()) / sum(sizes.values())


def zeros(model: ir.Model) -> dict[str, float]:
    found = {}
    for name in SHAPES:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        found[name] = float(np.mean(tensor.numpy() == 0))
    return found


def test_what_is_known_of_the_inputs_helps(tmp_path: pathlib.Path, worker: Worker) -> None:
    proto = net()
    workbench = bench(proto, tmp_path, worker)
    found = {}
    for criterion in ("magnitude", "wanda", "obs"):
        model, outcome = sparsify(proto, f"criterion={criterion},allocation=uniform", workbench)
        assert outcome.rewritten.total() == len(SHAPES)
        assert not outcome.refusals
        for name, found_share in zeros(model).items():
            assert found_share == pytest.approx(0.5, abs=0.03), name
        found[criterion] = decibels(proto, model)
    assert found["magnitude"] < found["wanda"] < found["obs"] - 2


@pytest.mark.parametrize("pattern", ["2:4", "2x2"])
def test_patterns(pattern: str, tmp_path: pathlib.Path, worker: Worker) -> None:
    proto = net()
    workbench = bench(proto, tmp_path, worker)
    found = [
        decibels(proto, sparsify(proto, f"criterion={each},pattern={pattern}", workbench)[0])
        for each in ("magnitude", "obs")
    ]
    assert found[0] < found[1] - 2


def test_auto_uses_samples_where_there_are_some(tmp_path: pathlib.Path, worker: Worker) -> None:
    proto = net()
    workbench = bench(proto, tmp_path, worker)
    auto, named = (sparsify(proto, each, workbench)[0] for each in ("", "criterion=obs"))
    assert to_proto(auto).SerializeToString() == to_proto(named).SerializeToString()
    workbench.given = False
    auto, named = (sparsify(proto, each, workbench)[0] for each in ("", "criterion=magnitude"))
    assert to_proto(auto).SerializeToString() == to_proto(named).SerializeToString()
    for options in ("criterion=obs", "criterion=wanda", "allocation=measured", "ratio=none"):
        with pytest.raises(OptionError, match="--data"):
            sparsify(proto, options, workbench)


def test_layers_whose_inputs_cannot_be_seen(tmp_path: pathlib.Path, worker: Worker) -> None:
    text = """g (bool c, float[n, 64] x) => (float[n, 16] y) {
        y = If (c) <
            then_branch = t () => (float[n, 16] a) { a = MatMul(x, w) },
            else_branch = e () => (float[n, 16] b) { u = Neg(x) b = MatMul(u, w) }>
    }"""
    w = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    proto = parse(text, {"w": w})
    workbench = bench(proto, tmp_path, worker)
    x = np.ones((1, 64), np.float32)
    workbench.calibration = Samples(lambda: [{"c": np.array(True), "x": x}])
    _, outcome = sparsify(proto, "criterion=obs", workbench)
    assert not outcome.modified
    assert "inside the body of control flow" in outcome.refusals[0].reason
    _, outcome = sparsify(proto, "", workbench)
    assert outcome.modified
    assert "by magnitude: its input is inside" in outcome.findings.layers[0].reason


def test_quantized_weights_stay_on_their_grid(tmp_path: pathlib.Path, worker: Worker) -> None:
    text = """g (float[n, 4, 8, 8] x) => (float[n, 16, 8, 8] y) {
        v = DequantizeLinear <axis = 0> (w, s, z)
        y = Conv <pads = [1, 1, 1, 1]> (x, v)
    }"""
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 127, (16, 4, 3, 3)).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, 16).astype(np.float32)
    zero = rng.integers(-9, 9, 16).astype(np.int8)
    proto = parse(text, {"w": w, "s": scale, "z": zero})
    workbench = bench(proto, tmp_path, worker)
    found = {}
    for criterion in ("magnitude", "obs"):
        model, _ = sparsify(proto, f"criterion={criterion},allocation=uniform", workbench)
        tensor = model.graph.initializers["w"].const_value
        assert tensor is not None
        after = tensor.numpy()
        assert after.dtype == np.int8
        assert np.mean(after == zero.reshape(-1, 1, 1, 1)) == pytest.approx(0.5, abs=0.03)
        found[criterion] = decibels(proto, model)
    assert found["obs"] > found["magnitude"] + 2


def test_measured_allocation_spares_what_matters(tmp_path: pathlib.Path, worker: Worker) -> None:
    proto = net()
    workbench = bench(proto, tmp_path, worker)
    model, _ = sparsify(proto, "allocation=measured", workbench)
    found = zeros(model)
    assert share(model) == pytest.approx(0.5, abs=0.03)
    assert found["l"] < found["t"]
    uniform, _ = sparsify(proto, "allocation=uniform", workbench)
    assert decibels(proto, model) > decibels(proto, uniform)


def test_the_sparsest_model_within_the_budget(tmp_path: pathlib.Path, worker: Worker) -> None:
    proto = net()
    shares = {}
    for wanted in (12.0, 25.0):
        workbench = bench(proto, tmp_path, worker, Budget(min_sqnr=wanted))
        model, outcome = sparsify(proto, "ratio=none", workbench)
        assert wanted - 4 < decibels(proto, model) < wanted + 6
        search = outcome.findings.search
        assert search is not None
        assert any(each.within_budget for each in search.tried)
        shares[wanted] = share(model)
        again, _ = sparsify(proto, "ratio=none", workbench)  # from memory
        assert to_proto(again).SerializeToString() == to_proto(model).SerializeToString()
    assert shares[12.0] > 1.2 * shares[25.0] > 0


def test_n_of_m_within_a_budget_takes_whole_layers(tmp_path: pathlib.Path, worker: Worker) -> None:
    proto = net()
    workbench = bench(proto, tmp_path, worker, Budget(min_sqnr=8.0))
    model, _ = sparsify(proto, "ratio=none,pattern=2:4", workbench)
    found = {round(each, 3) for each in zeros(model).values()}
    assert found == {0.0, 0.5}
    assert decibels(proto, model) > 6


def test_a_budget_that_nothing_keeps_leaves_the_model(
    tmp_path: pathlib.Path, worker: Worker
) -> None:
    proto = net()
    workbench = bench(proto, tmp_path, worker, Budget(min_sqnr=200.0))
    model, outcome = sparsify(proto, "ratio=none", workbench)
    assert not outcome.modified
    assert set(zeros(model).values()) == {0.0}


def test_a_measure_of_the_users_own(tmp_path: pathlib.Path, worker: Worker) -> None:
    proto = net()
    asked = []

    def evaluate(path: str) -> float:
        asked.append(path)
        tensors = onnx.load(path).graph.initializer
        arrays = [onnx.numpy_helper.to_array(each) for each in tensors if each.name in SHAPES]
        return float(np.mean(np.concatenate([each.reshape(-1) for each in arrays]) != 0))

    budget = Budget(min_sqnr=None, min_agreement=None, evaluate=evaluate, max_drop=0.4)
    model, _ = sparsify(proto, "ratio=none", bench(proto, tmp_path, worker, budget))
    assert asked
    assert 0.2 < share(model) <= 0.4
