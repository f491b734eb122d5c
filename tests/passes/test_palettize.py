from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnxopt.passes.palettize.clusters import clustered

from onnxopt.accuracy import Budget, fidelity
from onnxopt.errors import OptionError
from onnxopt.model import from_proto, to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.worker import Worker
from onnxopt.samples import Samples
from onnxopt.workbench import Workbench
from tests.differential import apply, parse, run

Array = np.ndarray[Any, Any]

TEXT = """g (float[n, 64] x) => (float[n, 32] y) {
    a = MatMul(x, p) b = Relu(a) y = Gemm <transB = 1> (b, q, c)
}"""


def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    found = {"p": rng.standard_normal((64, 96)) / 8, "q": rng.standard_normal((32, 96)) / 10}
    found["c"] = rng.standard_normal(32)
    return {name: array.astype(np.float32) for name, array in found.items()}


def palettize(options: str, given: dict[str, Array]) -> tuple[dict[str, Array], Outcome]:
    model, outcomes = apply(parse(TEXT, given), f"palettize{{{options}}}")
    run(to_proto(model), {"x": np.ones((2, 64), np.float32)})
    found = {}
    for name in given:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        found[name] = tensor.numpy()
    return found, outcomes["palettize"]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_so_many_numbers_and_less_error_than_an_even_grid(bits: int) -> None:
    given = arrays()
    found, outcome = palettize(f"bits={bits}", given)
    for name in "pq":
        assert len(np.unique(found[name])) <= 2**bits
        step = 2 * np.abs(given[name]).max() / 2**bits
        even = (np.floor(given[name] / step) + 0.5) * step
        errors = [np.square(each - given[name]).sum() for each in (found[name], even)]
        assert errors[0] < errors[1]
    np.testing.assert_array_equal(found["c"], given["c"])
    assert outcome.rewritten == {f"{bits} bits": 2}


def test_zeros_stay_zeros() -> None:
    given = arrays()
    given["p"][np.abs(given["p"]) < 0.1] = 0
    found, _ = palettize("bits=2", given)
    np.testing.assert_array_equal(found["p"] == 0, given["p"] == 0)
    assert len(np.unique(found["p"])) == 4


def test_clusters_of_clear_groups() -> None:
    numbers = np.array([1.0, 1.1, 5.0, 5.2, -3.0, 0.0, 0.0])
    expected = np.array([1.05, 1.05, 5.1, 5.1, -3.0, 0.0, 0.0])
    np.testing.assert_allclose(clustered(numbers, 4), expected)
    np.testing.assert_array_equal(clustered(np.zeros(5), 4), np.zeros(5))
    np.testing.assert_array_equal(clustered(numbers, 8), numbers)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_even_levels_are_integers_times_a_scale_for_each_output(bits: int) -> None:
    given = arrays()
    given["p"] *= np.linspace(0.1, 4, 96, dtype=np.float32)  # columns make outputs in MatMul
    found, outcome = palettize(f"bits={bits},levels=even", given)
    most = max(1, 2 ** (bits - 1) - 1)
    for name, axis in (("p", 1), ("q", 0)):
        rows, before = (np.moveaxis(each[name], axis, 0) for each in (found, given))
        for row in rows:
            sizes = np.unique(np.abs(row))
            assert len(sizes) <= most + (bits > 1)
        error = np.square(rows - before).sum(axis=1)
        step = np.abs(before).max(axis=1, keepdims=True) / most
        rounded = np.clip(np.rint(before / step), -most, most) * step
        if bits == 1:
            rounded = np.sign(before) * np.abs(before).mean(axis=1, keepdims=True)
        assert (error <= np.square(rounded - before).sum(axis=1) * (1 + 1e-5)).all()
    names = {1: "binary per channel", 2: "ternary per channel"}
    assert outcome.rewritten == {names.get(bits, f"{bits} bits per channel"): 2}


def test_channel_axes_of_all_operators() -> None:
    text = """g (float[n, 8, 6, 6] x, float[n, 5, 64] z)
        => (float[a, b, c, d] y, float[e, f, h] v) {
        a = Conv <group = 2> (x, k) y = ConvTranspose <group = 2> (a, t) v = MatMul (z, m)
    }"""
    rng = np.random.default_rng(0)
    shapes = {"k": (16, 4, 3, 3), "t": (16, 10, 3, 3), "m": (64, 40)}
    axes = {"k": 0, "t": 1, "m": 1}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model, _ = apply(parse(text, given), "palettize{bits=2,levels=even,min-elements=0}")
    for name, axis in axes.items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        rows = np.moveaxis(tensor.numpy(), axis, 0)
        assert all(len(np.unique(np.abs(row))) == 2 for row in rows)


@pytest.mark.parametrize("group", [1, 8, 20])
def test_palettes_for_groups_of_channels(group: int) -> None:
    given = arrays()
    given["p"] *= np.linspace(0.1, 4, 96, dtype=np.float32)
    whole, _ = palettize("bits=3", given)
    found, outcome = palettize(f"bits=3,group={group}", given)
    columns = found["p"].T
    for start in range(0, 96, group):
        assert len(np.unique(columns[start : start + group])) <= 8
    errors = [np.square(each["p"] - given["p"]).sum() for each in (found, whole)]
    assert errors[0] < errors[1]
    assert outcome.rewritten == {f"3 bits per {group} channels": 2}


def test_zeros_stay_zeros_on_an_even_grid() -> None:
    given = arrays()
    given["p"][np.abs(given["p"]) < 0.1] = 0
    given["p"][:, 5] = 0
    for bits in (1, 2, 4):
        found, _ = palettize(f"bits={bits},levels=even", given)
        assert not found["p"][given["p"] == 0].any()
        assert not np.signbit(found["p"][found["p"] == 0]).any()
        if bits == 1:
            np.testing.assert_array_equal(found["p"] == 0, given["p"] == 0)


@pytest.mark.parametrize(
    ("options", "fold"),
    [("bits=1", 25), ("bits=2", 14), ("bits=4", 7.5), ("bits=8", 3.8)],
)
def test_low_bit_weights_are_stored_small(options: str, fold: float) -> None:
    rng = np.random.default_rng(0)
    given = {"p": rng.standard_normal((64, 512)), "q": rng.standard_normal((512, 512))}
    given["c"] = rng.standard_normal(512)
    text = TEXT.replace("float[n, 32]", "float[n, 512]")
    proto = parse(text, {name: array.astype(np.float32) for name, array in given.items()})
    model, outcomes = apply(proto, f"palettize{{{options},levels=even}},compact-weights")
    assert all(code.endswith("scaled") for code in outcomes["compact-weights"].rewritten)
    after = to_proto(model)
    assert after.ByteSize() < proto.ByteSize() / fold
    narrowed, _ = apply(proto, f"palettize{{{options},levels=even}}")
    feed = {"x": np.ones((2, 64), np.float32)}
    np.testing.assert_array_equal(run(after, feed)[0], run(to_proto(narrowed), feed)[0])


def test_float16() -> None:
    given = arrays()
    given["q"][0, 0] = 1e6  # beyond float16
    found, outcome = palettize("bits=16", given)
    np.testing.assert_array_equal(found["p"], given["p"].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(found["q"], given["q"])
    assert outcome.refusals[0].reason == "it has so few numbers already"


def test_compact_weights_stores_it_small() -> None:
    rng = np.random.default_rng(0)
    given = {"p": rng.standard_normal((64, 512)), "q": rng.standard_normal((32, 512))}
    given["c"] = np.zeros(32)
    proto = parse(TEXT, {name: array.astype(np.float32) for name, array in given.items()})
    sizes = {}
    for bits in (16, 8, 4, 2):
        model, _ = apply(proto, f"palettize{{bits={bits}}},compact-weights")
        sizes[bits] = to_proto(model).ByteSize()
    dense = proto.ByteSize()
    assert sizes[16] < dense / 1.9
    assert sizes[8] < dense / 3.6
    assert sizes[4] < dense / 7
    assert sizes[2] < dense / 12


@pytest.mark.parametrize("wanted", [20.0, 45.0])
def test_fewest_bits_within_the_budget(wanted: float, tmp_path: pathlib.Path) -> None:
    proto = parse(TEXT, arrays())
    path = tmp_path / "original.onnx"
    onnx.save(proto, path)
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((4, 64)).astype(np.float32)} for _ in range(16)]
    with Worker() as worker:
        bench = Workbench(
            path,
            Samples(lambda: samples[:12]),
            Samples(lambda: samples[12:]),
            True,
            Budget(min_sqnr=wanted),
            worker,
        )
        model = from_proto(proto)
        passes = parse_pipeline("palettize{bits=none}")
        (report,) = PassManager(passes, workbench=bench).run(model)
    assert report.outcome.modified
    after = to_proto(model)
    before, now = ([run(each, feed) for feed in samples[12:]] for each in (proto, after))
    found = fidelity(before, now, ["y"]).sqnr_db
    assert wanted - 1 < found < wanted + 15
    assert report.outcome.findings.search is not None


def test_options_and_need_of_data() -> None:
    for wrong in ("bits=0", "bits=9", "min-elements=-1", "levels=even,group=2", "group=-1"):
        with pytest.raises(OptionError):
            parse_pipeline(f"palettize{{{wrong}}}")
    with pytest.raises(OptionError, match="--data"):
        PassManager(parse_pipeline("palettize{bits=none}"))
