"""The pass from end to end. Nothing here depends on how fast the machine is: the goal is size."""

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    quantize_dynamic,
    quantize_static,
)

import onnxopt
from onnxopt.accuracy import Budget
from onnxopt.analysis.quantization import is_quantized
from onnxopt.errors import CalibrationError, EvaluationError, OptionError
from onnxopt.model import from_proto
from onnxopt.pass_manager import parse_pipeline
from onnxopt.report.run import RunReport
from onnxopt.settings import Settings
from tests.differential import parse

RNG = np.random.default_rng(0)


def _net() -> onnx.ModelProto:
    return parse(
        """
        <ir_version: 7, opset_import: ["" : 12]>
        g (float[N, 3, 16, 16] x) => (float[N, 5] y) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1)
            r = Relu(a)
            b = Conv<pads=[1, 1, 1, 1]>(r, w2)
            s = Add(r, b)
            p = GlobalAveragePool(s)
            f = Flatten(p)
            y = Gemm(f, w3)
        }
        """,
        {
            name: (RNG.standard_normal(shape) * 0.2).astype(np.float32)
            for name, shape in (("w1", (32, 3, 3, 3)), ("w2", (32, 32, 3, 3)), ("w3", (32, 5)))
        },
    )


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "net.onnx"
    onnx.save(_net(), path)
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((12, 3, 16, 16)).astype(np.float32))
    return path


def _optimize(source: pathlib.Path, path: pathlib.Path, **settings: Any) -> RunReport:
    chosen = {"passes": "quantize", "goal": "size", "seconds": 0.05, "guard_speed": False}
    data = source.with_name("data.npz")
    return onnxopt.optimize(source, path, data=data, **{**chosen, **settings})


def _operators(path: pathlib.Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_net_becomes_smaller_within_the_budget(source: pathlib.Path) -> None:
    target = source.with_name("out.onnx")
    report = _optimize(source, target)
    assert report.undone == []
    assert report.fidelity is not None
    assert report.fidelity.sqnr_db >= 20
    assert report.after.bytes < report.before.bytes / 2
    assert "QuantizeLinear" in _operators(target)
    assert onnx.load(target).opset_import[0].version >= 13  # scales for each channel need that


def test_a_quantized_model_is_left_as_it_is(source: pathlib.Path) -> None:
    first, second = source.with_name("first.onnx"), source.with_name("second.onnx")
    _optimize(source, first)
    report = _optimize(first, second)
    assert not report.changed
    assert first.read_bytes() == second.read_bytes()
    reasons = [each.reason for one in report.passes for each in one.outcome.refusals]
    assert reasons == ["the model is quantized already"]


def test_a_converted_model_has_nothing_left_to_clear_away(source: pathlib.Path) -> None:
    # Axes are an attribute of Squeeze before opset 13, and an input since.
    model = parse(
        """
        <ir_version: 7, opset_import: ["" : 11]>
        g (float[N, 3, 16, 16] x) => (float[N, 5] y) {
            a = Conv(x, w1)
            r = Relu(a)
            p = GlobalAveragePool(r)
            f = Squeeze<axes=[2, 3]>(p)
            y = Gemm(f, w2)
        }
        """,
        {
            "w1": (RNG.standard_normal((32, 3, 5, 5)) * 0.2).astype(np.float32),
            "w2": (RNG.standard_normal((32, 5)) * 0.2).astype(np.float32),
        },
    )
    onnx.save(model, source)
    first, second = source.with_name("first.onnx"), source.with_name("second.onnx")
    passes, budget = "exact,quantize", Budget(min_agreement=None)
    assert _optimize(source, first, passes=passes, budget=budget).changed
    assert onnx.load(first).opset_import[0].version >= 13
    assert "Constant" not in _operators(first)
    assert not _optimize(first, second, passes=passes, budget=budget).changed
    assert first.read_bytes() == second.read_bytes()


def test_what_the_budget_does_not_allow_stays_float(source: pathlib.Path) -> None:
    target = source.with_name("out.onnx")
    report = _optimize(source, target, budget=Budget(min_sqnr=150.0))
    assert not report.changed
    assert source.read_bytes() == target.read_bytes()
    refusals = [each for one in report.passes for each in one.outcome.refusals]
    assert {each.rule for each in refusals} == {"Conv", "Gemm"}
    assert all(each.reason for each in refusals)


def test_nodes_can_be_kept_float(source: pathlib.Path) -> None:
    model = onnx.load(source)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}{index}"
    onnx.save(model, source)
    target = source.with_name("out.onnx")
    report = _optimize(source, target, passes="quantize{float=Conv0|Gemm6}")
    refusals = {each.node: each.reason for one in report.passes for each in one.outcome.refusals}
    assert refusals["Conv0"] == refusals["Gemm6"] == "it is to stay float"
    assert "Gemm" in _operators(target)


def test_without_samples_it_says_what_to_give(source: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="--data"):
        onnxopt.optimize(source, source.with_name("out.onnx"), passes="quantize")


def test_options_are_read_from_text() -> None:
    (made,) = parse_pipeline("quantize{scheme=dynamic,float=a|b}")
    assert made.text == "quantize{scheme=dynamic,float=a|b}"


def test_an_unknown_target_is_refused(source: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="avx2"):
        _optimize(source, source.with_name("out.onnx"), settings=Settings(target="pentium"))


def test_samples_that_are_no_numbers_stop_the_run(source: pathlib.Path) -> None:
    numbers = RNG.standard_normal((12, 3, 16, 16)).astype(np.float32)
    numbers[5, 1, 2, 3] = np.nan
    np.savez(source.with_name("data.npz"), x=numbers)
    target = source.with_name("out.onnx")
    with pytest.raises(
        CalibrationError, match=r"tensor '\w+' is not a number \(NaN\), in sample 6 of data.npz"
    ):
        _optimize(source, target)
    assert not target.exists()


def test_an_evaluation_that_raises_stops_the_run(source: pathlib.Path) -> None:
    def evaluate(path: str) -> float:
        raise EvaluationError(f"no labels beside {pathlib.Path(path).name}")

    target = source.with_name("out.onnx")
    with pytest.raises(EvaluationError, match="no labels beside"):
        _optimize(source, target, budget=Budget(evaluate=evaluate))
    assert not target.exists()


def test_a_model_without_products_comes_back_as_it_was(source: pathlib.Path) -> None:
    onnx.save(parse("g (float[N, 3, 16, 16] x) => (float[N, 3, 16, 16] y) { y = Exp(x) }"), source)
    target = source.with_name("out.onnx")
    assert not _optimize(source, target).changed
    assert source.read_bytes() == target.read_bytes()


def test_constant_tensors_can_be_quantized(source: pathlib.Path) -> None:
    np.savez(source.with_name("data.npz"), x=np.zeros((12, 3, 16, 16), np.float32))
    report = _optimize(source, source.with_name("out.onnx"))
    assert report.undone == []


def test_the_report_tells_noise_and_ranges_of_layers(source: pathlib.Path) -> None:
    document = _optimize(source, source.with_name("out.onnx")).to_dict()
    layers = {each["name"]: each for each in document["layers"]}
    assert {"a", "b", "s", "y"} <= set(layers)
    assert all(layers[name]["sqnr_db"] > 15 for name in ("a", "b", "s", "y"))
    drawn = {each["tensor"]: each for each in document["histograms"]}
    assert {"x", "r", "b"} <= set(drawn)
    for each in drawn.values():
        assert sum(each["counts"]) > 0
        assert each["edges"] == sorted(each["edges"])
        assert each["low"] <= 0 <= each["high"]
        assert each["method"]
    # Extremes are all covered where nothing was cut off: a step at most is missing.
    step = (drawn["x"]["high"] - drawn["x"]["low"]) / 255
    assert drawn["x"]["low"] <= drawn["x"]["edges"][0] + step


def test_zeros_are_counted_where_zero_is(source: pathlib.Path) -> None:
    document = _optimize(source, source.with_name("out.onnx")).to_dict()
    (rectified,) = (each for each in document["histograms"] if each["tensor"] == "r")
    assert rectified["counts"][0] > sum(rectified["counts"]) / 3  # what Relu cut off


def test_every_node_is_explained(tmp_path: pathlib.Path) -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 16, 16] x, bool c) => (float[N, 5] y, float[N, 5] z) {
            [zero] k = Constant<value = float {1.0}>()
            [first] a = Conv<pads=[1, 1, 1, 1]>(x, w1)
            [cut] r = Relu(a)
            [second] b = Conv<pads=[1, 1, 1, 1]>(r, w2)
            [sum] s = Add(r, b)
            [same] i = Identity(s)
            [pool] p = GlobalAveragePool(i)
            [flat] f = Flatten(p)
            [kept] m = MatMul(f, w3)
            [add] n = Abs(m)
            [soft] y = Softmax(n)
            [branch] z = If(c)<
                then_branch = t () => (float[N, 5] t1) { [inner] t1 = Exp(y) },
                else_branch = e () => (float[N, 5] e1) { [other] e1 = Neg(y) }
            >
        }
        """,
        {
            name: (RNG.standard_normal(shape) * 0.2).astype(np.float32)
            for name, shape in (("w1", (32, 3, 3, 3)), ("w2", (32, 32, 3, 3)), ("w3", (32, 5)))
        },
    )
    source = tmp_path / "net.onnx"
    onnx.save(model, source)
    rows = RNG.standard_normal((12, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=rows, c=np.ones(12, bool))
    report = _optimize(
        source, tmp_path / "out.onnx", passes="exact,quantize{float=kept,scheme=static}"
    )
    assert report.undone == []
    told = {each.node: each for each in report.treatments}
    assert set(told) == {
        *("zero", "first", "cut", "second", "sum", "same", "pool", "flat", "kept", "add", "soft"),
        *("branch", "inner", "other"),
    }
    assert all(each.reason for each in told.values())
    assert told["first"].precision == told["second"].precision == "int8"
    assert told["sum"].precision == "float"  # nothing but a float product is behind it
    assert told["sum"].reason == "reads 8 bits, but nothing behind it computes in 8 bits"
    assert told["add"].reason == "the runtime has no 8-bit kernel for it"
    assert "ends where it cuts" in told["cut"].reason
    assert told["kept"].precision == "float"
    assert told["kept"].reason == "it is to stay float"
    assert told["soft"].precision == "float"
    assert "slower" in told["soft"].reason
    assert told["inner"].reason == "is inside the body of control flow"
    assert told["same"].precision == ""
    assert "computed no more" in told["same"].reason
    assert told["zero"].reason == "a constant"
    document = report.to_dict()
    assert [each["node"] for each in document["treatments"]] == [
        each.node for each in report.treatments
    ]


def test_nodes_of_a_quantized_model_are_explained_too(source: pathlib.Path) -> None:
    first, second = source.with_name("first.onnx"), source.with_name("second.onnx")
    _optimize(source, first)
    report = _optimize(first, second)
    assert {each.reason for each in report.treatments} == {"the model is quantized already"}


class _Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter(RNG.standard_normal((4, 1, 3, 16, 16)).astype(np.float32))

    def get_next(self) -> Any:
        rows = next(self._left, None)
        return None if rows is None else {"x": rows}


@pytest.mark.parametrize("way", ["QDQ", "QOperator", "dynamic"])
def test_models_of_the_runtimes_own_tools_are_left_as_they_are(
    source: pathlib.Path, way: str
) -> None:
    quantized, target = source.with_name("quantized.onnx"), source.with_name("out.onnx")
    if way == "dynamic":
        quantize_dynamic(source, quantized)
    else:
        quantize_static(source, quantized, _Reader(), quant_format=QuantFormat[way])
    report = _optimize(quantized, target)
    assert not report.changed
    assert quantized.read_bytes() == target.read_bytes()
    reasons = [each.reason for one in report.passes for each in one.outcome.refusals]
    assert reasons == ["the model is quantized already"]


def test_a_model_of_fused_narrow_weights_counts_as_quantized(tmp_path: pathlib.Path) -> None:
    node = onnx.helper.make_node(
        *("MatMulNBits", ["x", "b", "s"], ["y"]),
        domain="com.microsoft",
        K=32,
        N=8,
        bits=4,
        block_size=32,
    )
    model = from_proto(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []), ir_version=8)
    )
    assert is_quantized(model)


def test_products_in_bodies_are_left_alone_and_say_so(source: pathlib.Path) -> None:
    model = parse(
        """
        g (float[N, 3, 16, 16] x, bool c) => (float[N, 3, 16, 2] y) {
            y = If (c) <
                then_branch = a () => (float[N, 3, 16, 2] t) { t = MatMul(x, w) },
                else_branch = b () => (float[N, 3, 16, 2] e) { m = MatMul(x, w) e = Neg(m) }
            >
        }
        """,
        {"w": RNG.standard_normal((16, 2)).astype(np.float32)},
    )
    onnx.save(model, source)
    x = RNG.standard_normal((12, 3, 16, 16)).astype(np.float32)
    folder = source.with_name("data.npz")
    np.savez(folder, x=x, c=np.arange(12) % 2 == 0)
    target = source.with_name("out.onnx")
    report = _optimize(source, target)
    assert not report.changed
    refusals = [each for one in report.passes for each in one.outcome.refusals]
    assert [(each.rule, each.reason) for each in refusals] == [
        ("MatMul", "it is inside the body of control flow")
    ] * 2
    assert source.read_bytes() == target.read_bytes()
