"""Weights that several products read are rounded once, for all of them, and stored once."""

import pathlib

import numpy as np
import onnx
import pytest
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize.numbers import Numbers
from onnxopt.passes.quantize.plan import Mode
from onnxopt.passes.quantize.readings import Reading
from onnxopt.passes.quantize.recovery import recovered
from onnxopt.passes.quantize.trials import Trials, Workshop, name_nodes
from onnxopt.passes.quantize.weights import Weights, quantize_weights

import onnxopt
from onnxopt.calibration import Rows, RowsObserver
from onnxopt.calibration.activation import Activation
from onnxopt.calibration.lots import lot_of
from onnxopt.model import from_proto
from onnxopt.numerics.gram import output_error
from onnxopt.numerics.layer_inputs import ProductInput
from onnxopt.regions import Product, products
from onnxopt.runtime.hardware import resolve_target
from tests.differential import parse

RNG = np.random.default_rng(0)
VNNI = resolve_target("vnni")


def _array(*shape: int, scale: float = 0.3) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def _seen(rows: np.ndarray) -> RowsObserver:
    found = Rows(ProductInput()).start()
    for place, sample in enumerate(np.split(rows, 8)):
        found.update(Activation(sample, lot_of(place)))
    assert len(found.rows) == len(rows)
    return found


def _readings(*weights: np.ndarray) -> dict[int, Reading]:
    """Products of inputs with channels that go together, differently for each."""
    readings = {}
    for number, matrix in enumerate(weights):
        model = parse(
            "g (float[N, 12] x) => (float[N, 9] y) { y = Gemm(x, w, b) }",
            {"w": matrix, "b": _array(9, scale=10.0**number)},
        )
        (product,) = products(from_proto(model).graph)
        assert isinstance(product, Product)
        rows = (_array(200, 4) @ _array(4, 12) + 0.1 * _array(200, 12)).astype(np.float64)
        seen = _seen(rows)
        readings[number] = Reading(product, (-1.0, 1.0), seen, seen.rows.mean(axis=0))
    return readings


def _errors(readings: dict[int, Reading], weights: dict[int, Weights]) -> list[float]:
    errors = []
    for key, reading in readings.items():
        gram, matrix = reading.gram(), reading.product.weights
        assert gram is not None
        change = weights[key].dequantized().astype(np.float64) - matrix
        power = output_error(gram, matrix[None]).sum()
        errors.append(float(output_error(gram, change[None]).sum() / power))
    return errors


def test_rows_tell_the_power_that_the_gram_matrix_tells() -> None:
    reading = _readings(_array(12, 9))[0]
    factors = np.linspace(0.5, 2.0, 12)
    for each in (reading, reading.divided(factors, (-1.0, 1.0))):
        gram, other = each.gram(), _array(1, 12, 9)
        assert gram is not None
        assert each.power(other) == pytest.approx(output_error(gram, other).sum(), rel=1e-4)
    assert Reading(reading.product, None, None, None).power(other) == 0


@pytest.mark.parametrize("effort", ["low", "medium"])
def test_the_same_weights_get_the_same_numbers(effort: "onnxopt.workbench.Effort") -> None:
    matrix = _array(12, 9)
    readings = _readings(matrix, matrix.copy(), _array(12, 9))
    weights, biases = recovered(readings, VNNI, effort, lambda step: None)
    np.testing.assert_array_equal(weights[0].numbers, weights[1].numbers)
    np.testing.assert_array_equal(weights[0].scales, weights[1].scales)
    assert (weights[0].numbers != weights[2].numbers).any()
    assert (biases[0] != biases[1]).any()  # inputs differ, and so do the means that are set right


def test_rounding_makes_up_for_errors_at_all_readers() -> None:
    matrix = _array(12, 9)
    readings = _readings(matrix, matrix)
    plain, _ = recovered(readings, VNNI, "low", lambda step: None)
    careful, _ = recovered(readings, VNNI, "medium", lambda step: None)
    assert sum(_errors(readings, careful)) < 0.8 * sum(_errors(readings, plain))


def test_scales_are_wide_enough_for_every_bias() -> None:
    matrix = _array(12, 9, scale=1e-9)  # switched off, with biases of usual size
    readings = _readings(matrix, matrix)
    weights, _ = recovered(readings, VNNI, "low", lambda step: None)
    alone, _ = recovered({1: readings[1]}, VNNI, "low", lambda step: None)
    assert (weights[0].scales >= alone[1].scales).all()


def _net() -> onnx.ModelProto:
    """One kernel for three convolutions of inputs of different size, as a pyramid has."""
    return parse(
        """
        g (float[N, 24, 12, 12] x) => (float[N, 24, 12, 12] y) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w, b1)
            r = Relu(a)
            c = Conv<pads=[1, 1, 1, 1]>(r, w, b2)
            s = Relu(c)
            y = Conv<pads=[1, 1, 1, 1]>(s, w, b3)
        }
        """,
        {
            "w": _array(24, 24, 3, 3, scale=0.1),
            "b1": _array(24),
            "b2": _array(24, scale=3.0),
            "b3": _array(24, scale=0.01),
        },
    )


def test_a_model_with_one_kernel_for_all_shrinks(tmp_path: pathlib.Path) -> None:
    onnx.save(_net(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=_array(12, 24, 12, 12, scale=1.0))
    report = onnxopt.optimize(
        tmp_path / "net.onnx",
        tmp_path / "out.onnx",
        data=tmp_path / "data.npz",
        passes="quantize",
        goal="size",
        seconds=0.05,
        guard_speed=False,
    )
    assert report.undone == []
    assert report.after.bytes < report.before.bytes / 2
    stored = [
        tensor
        for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer
        if tuple(tensor.dims) == (24, 24, 3, 3)
    ]
    assert [tensor.data_type for tensor in stored] == [onnx.TensorProto.INT8]


def test_a_region_that_keeps_shared_weights_float_makes_the_file_grow() -> None:
    model = from_proto(_net())
    InferShapes()(model)
    name_nodes(model)
    found = [each for each in products(model.graph) if isinstance(each, Product)]
    weights = {each.key: quantize_weights(each.weights, 0, None) for each in found}
    numbers = Numbers(False, dict.fromkeys("xarcsy", (-1.0, 1.0)), weights)
    with Workshop(model) as workshop:
        trials = Trials(workshop, model, found, numbers, [Mode.STATIC], {})
        all_of_them = {each.key: "static" for each in found}
        two = dict.fromkeys(list(all_of_them)[:2], "static")
        assert trials.bytes_saved("a", "static") > 0
        assert trials.bytes_saved("a", "static", all_of_them) > 0
        assert trials.bytes_saved("a", "static", two) < 0
        assert trials.size(all_of_them) < trials.size({}) < trials.size(two)
