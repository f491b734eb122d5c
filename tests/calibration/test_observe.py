"""Observing against numpy on the same activations."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
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
from onnxopt.errors import CalibrationError, RuntimeRefusalError
from onnxopt.model import from_proto, to_proto
from onnxopt.numerics.layer_inputs import ConvolutionInput, ProductInput
from onnxopt.runtime.worker import Worker
from tests.differential import parse

CONVOLUTION = ConvolutionInput((3, 3), (2, 1), (1, 1), (1, 0, 1, 2))
PRODUCT = ProductInput()

MODEL = """
net (float[n, 3, h, w] image, float[n, k] vector) => (float[n, 4, p, q] maps, float[n, 5] scores) {
    shifted = Mul(image, image)
    maps = Conv<kernel_shape=[3, 3], pads=[1, 0, 1, 2], strides=[2, 1]>(shifted, kernel)
    doubled = Add(vector, vector)
    scores = MatMul(doubled, matrix)
}
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


def model() -> ir.Model:
    generator = np.random.default_rng(3)
    return from_proto(
        parse(
            MODEL,
            {
                "kernel": generator.standard_normal((4, 3, 3, 3)).astype(np.float32),
                "matrix": generator.standard_normal((6, 5)).astype(np.float32),
            },
        )
    )


def feeds(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Samples of different sizes."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        shape = (1 + index % 2, 3, 8 + index, 9)
        image = generator.standard_normal(shape).astype(np.float32)
        vector = generator.standard_normal((shape[0], 6)).astype(np.float32)
        made.append({"image": image * (1 + index), "vector": vector})
    return made


REQUESTS: Mapping[str, Sequence[ObserverSpec[Any]]] = {
    "shifted": [Range(), Histogram(), Channels(1), Gram(CONVOLUTION), Rows(CONVOLUTION)],
    "vector": [Range(), Channels(-1)],
    "doubled": [Range(), Histogram(64, 10**6), Gram(PRODUCT), Rows(PRODUCT)],
    "scores": [Range()],
}


def test_observations_are_those_of_numpy(worker: Worker) -> None:
    observations = observe(model(), feeds(5), REQUESTS, worker=worker)
    shifted = [feed["image"] ** 2 for feed in feeds(5)]
    doubled = [feed["vector"] * 2 for feed in feeds(5)]

    seen = observations.get("shifted", Range())
    assert (seen.low, seen.high) == (min(x.min() for x in shifted), max(x.max() for x in shifted))
    assert seen.samples == 5
    assert seen.elements == sum(x.size for x in shifted)
    np.testing.assert_allclose(seen.mean_range[1], np.mean([x.max() for x in shifted]))

    channels = observations.get("shifted", Channels(1))
    columns = np.concatenate([x.transpose(1, 0, 2, 3).reshape(3, -1) for x in shifted], axis=1)
    np.testing.assert_array_equal(channels.absmax, columns.max(axis=1))
    np.testing.assert_allclose(channels.mean, columns.mean(axis=1), rtol=1e-6)

    gram = observations.get("doubled", Gram(PRODUCT))
    rows = np.concatenate(doubled).astype(np.float64)
    np.testing.assert_allclose(gram.gram[0], rows.T @ rows, rtol=1e-5)
    np.testing.assert_allclose(gram.mean[0], rows.mean(axis=0), rtol=1e-5)

    histogram = observations.get("doubled", Histogram(64, 10**6))
    index = np.trunc(rows.reshape(-1) / histogram.width).astype(int) + 64
    np.testing.assert_array_equal(histogram.counts, np.bincount(index, minlength=128))


def test_a_convolution_is_the_product_of_its_rows(worker: Worker) -> None:
    net = model()
    sample = feeds(1)[0]
    observations = observe(net, [sample], REQUESTS, worker=worker)
    kernel = _weights(net, "kernel")
    rows = CONVOLUTION.rows(sample["image"] ** 2)
    product = (rows @ CONVOLUTION.matrix(kernel))[0]
    info = worker.open(_saved(net))
    maps = worker.run(info.session, sample)[0]
    np.testing.assert_allclose(product.T.reshape(maps[0].shape), maps[0], rtol=1e-4, atol=1e-4)
    gram = observations.get("shifted", Gram(CONVOLUTION))
    np.testing.assert_allclose(gram.gram[0], rows[0].T @ rows[0], rtol=1e-4)
    assert gram.count == rows.shape[1]


def _saved(net: ir.Model) -> bytes:
    return bytes(to_proto(net).SerializeToString())


def _assert_equal(one: Observations, other: Observations, exact: bool = True) -> None:
    assert one.samples == other.samples
    assert one.digest == other.digest
    assert one.observers.keys() == other.observers.keys()
    for tensor, observers in one.observers.items():
        for spec, observer in observers.items():
            theirs = other.observers[tensor][spec].arrays()
            for name, array in observer.arrays().items():
                if name in ("gram", "sums") and not exact:
                    np.testing.assert_allclose(theirs[name], array, rtol=1e-5, atol=1e-5)
                elif spec.kind == "rows" and not exact:
                    assert theirs[name].shape == array.shape  # which ones depends on the places
                else:
                    np.testing.assert_array_equal(theirs[name], array)


def test_pieces_merge_into_one_pass(worker: Worker) -> None:
    samples = feeds(7)
    whole = observe(model(), samples, REQUESTS, worker=worker)
    parts = [observe(model(), part, REQUESTS, worker=worker) for part in (samples[4:], samples[:4])]
    _assert_equal(parts[0].merge(parts[1]), whole, exact=False)
    _assert_equal(parts[1].merge(parts[0]), whole, exact=False)


def test_saved_observations_come_back(worker: Worker, tmp_path: pathlib.Path) -> None:
    whole = observe(model(), feeds(3), REQUESTS, worker=worker)
    whole.save(tmp_path / "seen.npz")
    _assert_equal(Observations.load(tmp_path / "seen.npz"), whole)


def test_known_observations_are_taken_over(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = observe(model(), feeds(3), REQUESTS, worker=worker)
    opened: list[object] = []
    monkeypatch.setattr(worker, "open", lambda *args, **options: opened.append(args))
    again = observe(model(), feeds(3), REQUESTS, worker=worker, known=whole)
    assert not opened
    _assert_equal(again, whole)


def test_other_samples_or_weights_are_observed_again(worker: Worker) -> None:
    whole = observe(model(), feeds(3), REQUESTS, worker=worker)
    other = observe(model(), feeds(3, seed=9), REQUESTS, worker=worker, known=whole)
    assert other.get("vector", Range()).low != whole.get("vector", Range()).low
    changed = model()
    changed.graph.initializers["matrix"].const_value = _negated(changed, "matrix")
    renewed = observe(changed, feeds(3), REQUESTS, worker=worker, known=whole)
    assert renewed.get("scores", Range()).low == -whole.get("scores", Range()).high
    assert renewed.fingerprints["doubled"] == whole.fingerprints["doubled"]


def _weights(net: ir.Model, name: str) -> np.ndarray:
    tensor = net.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


def _negated(net: ir.Model, name: str) -> ir.TensorProtocol:
    return ir.tensor(-_weights(net, name), name=name)


def test_the_model_is_left_as_it_is(worker: Worker) -> None:
    net = model()
    before = _saved(net)
    observe(net, feeds(1), REQUESTS, worker=worker)
    assert _saved(net) == before
    outputs = set(net.graph.outputs)
    inner = [value for node in net.graph for value in node.outputs if value not in outputs]
    assert not any(value.is_graph_output() for value in inner)


@pytest.mark.parametrize(("number", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_numbers_that_are_not_finite_are_named(worker: Worker, number: float, word: str) -> None:
    samples = feeds(3)
    samples[1]["image"][0, 0, 0, 0] = number
    with pytest.raises(CalibrationError, match=rf"'shifted'.*{word}.*sample 2"):
        observe(model(), samples, REQUESTS, worker=worker)
    skipped = observe(model(), samples, REQUESTS, worker=worker, skip_unobservable=True)
    assert word in skipped.left_alone["shifted"]
    assert skipped.get("doubled", Range()).samples == 3
    with pytest.raises(CalibrationError, match=f"'shifted'.*{word}"):
        skipped.get("shifted", Range())


def test_no_samples_are_an_error(worker: Worker) -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        observe(model(), [], REQUESTS, worker=worker)


def test_an_unknown_tensor_is_an_error(worker: Worker) -> None:
    with pytest.raises(CalibrationError, match="no tensor 'shiftet'"):
        observe(model(), feeds(1), {"shiftet": [Range()]}, worker=worker)


def test_a_sample_that_does_not_fit_is_named(worker: Worker) -> None:
    samples = feeds(2)
    samples[1]["vector"] = samples[1]["vector"][:, :3]
    with pytest.raises(RuntimeRefusalError, match="sample 2"):
        observe(model(), samples, REQUESTS, worker=worker)


def test_bodies_constants_and_integers_are_left_alone(worker: Worker) -> None:
    net = from_proto(
        parse(
            """
            net (float[n] x, bool c) => (float[m] y, int64[1] size)
            <float[1] one = {1}> {
                shifted = Add(x, one)
                size = Shape(shifted)
                y = If (c) <
                    then_branch = g1 () => (float[a] yes) { inner = Neg(shifted) yes = Exp(inner) },
                    else_branch = g2 () => (float[b] no) { no = Abs(shifted) }
                >
            }
            """
        )
    )
    names = ["shifted", "one", "size", "inner", "y"]
    samples = [
        {"x": np.arange(4, dtype=np.float32), "c": np.array(True)},
        {"x": np.arange(0, dtype=np.float32), "c": np.array(False)},
        {"x": np.arange(9, dtype=np.float32), "c": np.array(False)},
    ]
    seen = observe(net, samples, {name: [Range(), Histogram()] for name in names}, worker=worker)
    assert seen.left_alone.keys() == {"one", "size", "inner"}
    assert (seen.get("shifted", Range()).low, seen.get("shifted", Range()).high) == (1, 9)
    assert seen.get("shifted", Range()).samples == 2
    assert seen.get("y", Range()).high == 9


def test_channels_that_change_their_number_are_an_error(worker: Worker) -> None:
    net = from_proto(parse("net (float[n] x) => (float[n] y) { y = Abs(x) }"))
    samples = [{"x": np.ones(size, np.float32)} for size in (2, 3)]
    with pytest.raises(CalibrationError, match="2 channels in one sample and 3"):
        observe(net, samples, {"y": [Channels(0)]}, worker=worker)


def test_a_file_that_holds_no_observations(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        Observations.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(CalibrationError, match="holds no observations"):
        Observations.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(CalibrationError, match="holds no observations"):
        Observations.load(tmp_path / "other.npz")


def test_observations_of_other_models_do_not_merge(worker: Worker) -> None:
    one = observe(model(), feeds(1), {"vector": [Range()]}, worker=worker)
    two = observe(model(), feeds(1), {"doubled": [Range()]}, worker=worker)
    with pytest.raises(CalibrationError, match="not the same was asked"):
        one.merge(two)
    changed = model()
    changed.graph.initializers["matrix"].const_value = _negated(changed, "matrix")
    scores = {"scores": [Range()]}
    with pytest.raises(CalibrationError, match="in another way"):
        observe(model(), feeds(1), scores, worker=worker).merge(
            observe(changed, feeds(1), scores, worker=worker)
        )
