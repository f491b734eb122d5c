import json
import math

import onnx_ir as ir
import pytest

from onnxopt.findings import Curve, Findings, Histogram, Layer, Region, Search, Stage, Tried
from onnxopt.pass_contract import Outcome, PassReport
from onnxopt.report.run import ModelFacts, RunReport

FACTS = ModelFacts(10, 1, {"Relu": 1})


def report_with(*findings: Findings) -> RunReport:
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    passes = [PassReport("p", 0, Outcome(model, False, findings=each)) for each in findings]
    return RunReport("a", "b", "p", FACTS, FACTS, passes=passes)


def test_a_section_that_nobody_filled_is_not_there() -> None:
    document = report_with(Findings()).to_dict()
    assert not document.keys() & {"layers", "histograms", "search", "stages", "curves"}


def test_what_several_passes_say_of_a_layer_is_put_together() -> None:
    pruned = Findings([Layer("conv", "Conv", zeros=0.5, precision="float32", reason="50 % pruned")])
    quantized = Findings([Layer("conv", precision="int8", sqnr_db=31.5, reason="within budget")])
    report = report_with(pruned, quantized)
    report.findings.layers.append(Layer("conv", "Conv", seconds=0.25, precision="float32"))
    assert report.to_dict()["layers"] == [
        {
            "name": "conv",
            "operator": "Conv",
            "seconds": 0.25,
            "precision": "int8",
            "sqnr_db": 31.5,
            "zeros": 0.5,
            "reason": "50 % pruned; within budget",
        }
    ]


def test_zero_and_false_are_known() -> None:
    found = Findings([Layer("a", zeros=0.0, channels_removed=0)], stages=[Stage("s", kept=False)])
    document = report_with(found).to_dict()
    assert document["layers"] == [{"name": "a", "zeros": 0.0, "channels_removed": 0}]
    assert document["stages"] == [{"name": "s", "kept": False}]


def test_infinite_decibels_are_null_and_unknown_ones_are_left_out() -> None:
    found = Findings([Layer("a", sqnr_db=math.inf), Layer("b")])
    assert report_with(found).to_dict()["layers"] == [{"name": "a", "sqnr_db": None}, {"name": "b"}]


def test_every_section_survives_json() -> None:
    found = Findings(
        [Layer("a")],
        [Histogram("t", (1, 2), (0.0, 1.0, 2.0), 0.0, 1.5, "percentile 99")],
        Search(
            [Tried("all", 1.5, sqnr_db=20.0, chosen=True, treatments={"r": "int8"})],
            [Region("r", ("a", "b"), "int8")],
            "latency",
            "20 dB",
        ),
        [Stage("prune", zeros=0.5)],
        [Curve("loss", (1, 2), (0.5, 0.25))],
    )
    document = report_with(found).to_dict()
    again = json.loads(json.dumps(document))
    assert again == document
    assert again["histograms"][0]["edges"] == [0.0, 1.0, 2.0]
    assert again["search"]["tried"][0]["treatments"] == {"r": "int8"}
    assert again["search"]["regions"][0]["nodes"] == ["a", "b"]
    assert again["curves"][0]["y"] == [0.5, 0.25]


def test_the_last_on_a_tensor_and_the_last_search_count() -> None:
    first = Findings([], [Histogram("t", (1,), (0.0, 1.0))], Search(goal="size"))
    second = Findings([], [Histogram("t", (2,), (0.0, 1.0))], Search(goal="latency"))
    document = report_with(first, second).to_dict()
    assert [each["counts"] for each in document["histograms"]] == [[2]]
    assert document["search"]["goal"] == "latency"


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 counts need 3 edges, not 2"):
        Histogram("t", (1, 2), (0.0, 1.0))
    with pytest.raises(ValueError, match="2 x but 1 y"):
        Curve("loss", (1, 2), (0.5,))
