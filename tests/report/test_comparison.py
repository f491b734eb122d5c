"""Two compressions, or two distillations, beside each other."""

from __future__ import annotations

from typing import Any

from onnxopt.report.page.comparison import compare
from onnxopt.report.page.views import ROOM


def stage(name: str, speed: float, db: float | None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "bytes": int(4_000_000 / speed),
        "latency_seconds": 0.01 / speed,
        "speed": {"median": speed, "low": speed - 0.05, "high": speed + 0.05},
        "fidelity": {
            "sqnr_db": db,
            "agreement": {"fraction": 0.98},
            "score": None,
            "samples": 40,
        },
        "objection": "",
        "chosen": False,
        "reached": False,
        **more,
    }


def compression(speed: float, *, chosen: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "kind": "compress",
        "command": f"onnxopt compress --target-latency {1 / speed}",
        "source": "model.onnx",
        "target": {"of": "latency", "share": 0.5},
        "bytes_before": 4_000_000,
        "seconds": 60.0,
        "stages": [
            stage("prune", 1.5, 12.0, objection="12 dB is below the budget"),
            stage("quantize", speed, 24.0, chosen=chosen, reached=True),
        ],
        **more,
    }


def rows(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(cells) for name, *cells in compare([first, second], ROOM).rows}


def test_two_compressions() -> None:
    found = rows(compression(2.0), compression(3.0))
    assert found["result"] == ("quantize", "quantize", "")
    assert found["target"][0] == "latency at 50%, reached"
    assert found["speed against its original"][2] == "1.50x"
    assert found["latency of one run"][2] == "-33.3 %"
    assert found["signal to noise, worst output"] == ("24 dB", "24 dB", "")
    assert found["decisions the same"] == ("98.0%", "98.0%", "")
    assert rows(compression(2.0), compression(2.02))["speed against its original"][2] == (
        "within noise"
    )
    stages = compare([compression(2.0), compression(3.0)], ROOM).stages
    assert stages is not None
    labels = [column.label for column in stages.columns]
    texts = [[cell.text for cell in row] for row in stages.rows]
    assert [row[0] for row in texts] == ["prune", "quantize"]
    assert texts[0][labels.index("budget, A")] == "over"
    assert texts[1][labels.index("speed, B")].startswith("3.00x")


def test_a_compression_that_came_to_nothing() -> None:
    found = rows(compression(2.0), compression(3.0, chosen=False))
    assert found["result"] == ("quantize", "the original", "")
    assert found["target"][1] == "latency at 50%, not reached"
    assert "speed against its original" not in found
    assert found["file size"][2] == "+100.0 %"


def distillation(after: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "distill",
        "teacher": "teacher.onnx",
        "student": "student.onnx",
        "before": {"accuracy": 0.8, "agreement": {"y": 0.9}, "sqnr_db": {"z": 10.0}},
        "after": {"accuracy": after, "agreement": {"y": 0.95}, "sqnr_db": {"z": None}},
        "bytes_after": 1000,
        "parameters": 5000,
        "training": {"steps": 100},
        "samples": 50,
        "held_out": 5,
        "seconds": 10.0,
        **more,
    }


def test_two_distillations() -> None:
    found = rows(distillation(0.85), distillation(0.9, training={"steps": 200}))
    assert found["accuracy"] == ("80.00% → 85.00%", "80.00% → 90.00%", "")
    assert found["decides as the teacher (y)"] == ("90.00% → 95.00%",) * 2 + ("",)
    assert found["signal to noise against the teacher (z)"][0] == "10 dB → equal"
    assert found["steps"] == ("100", "200", "+100.0 %")
    assert found["samples to learn from"][0] == "45"


def test_reports_of_two_kinds_have_settings_only() -> None:
    found = compare([distillation(0.9), compression(2.0)], ROOM)
    assert not found.rows
    assert found.stages is None
    assert ("source", "", "model.onnx") in found.settings
