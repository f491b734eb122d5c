"""Reports with everything in them, for tests of the page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.accuracy import Agreement, Fidelity, OutputFidelity
from onnxopt.findings import (
    Curve,
    Findings,
    Histogram,
    Layer,
    Region,
    Search,
    Stage,
    Tried,
)
from onnxopt.pass_contract import Outcome, PassReport, Refusal
from onnxopt.report.document import document
from onnxopt.report.run import ModelFacts, RunReport, Undone
from onnxopt.runtime.statistics import Latency, Ratio

__all__ = ["full_document", "full_report"]

#: A name that would be markup if it were not escaped, and is longer than any line.
NASTY = "/model/</script><b>bold</b>/" + "block." * 20 + "conv"


def full_report(layers: int = 40, *, shift: float = 0.0) -> RunReport:
    """A run with all sections filled.

    Args:
        layers: How many layers it has.
        shift: Makes another run of it: added to signal-to-noise ratios.
    """
    random = np.random.default_rng(0)
    seconds = random.gamma(1.0, 2e-4, layers)
    found = [
        Layer(
            NASTY if index == 3 else f"block_{index // 4}/conv_{index}",
            "Conv" if index % 3 else "MatMul",
            kernel="QLinearConv" if index % 3 else "MatMul",
            seconds=float(seconds[index]),
            seconds_before=float(seconds[index] * 1.8),
            precision="int8" if index % 3 else "float32",
            sqnr_db=math.inf if index == 5 else 45 - 20 * float(random.random()) + shift,
            weight_bytes=int(random.integers(1_000, 500_000)),
            weight_bytes_before=int(random.integers(500_000, 2_000_000)),
            zeros=float(random.random()),
            channels=64,
            channels_removed=int(random.integers(0, 64)),
            macs=int(random.integers(10**6, 10**9)),
            reason="float32, since int8 would cost 3 dB" if index % 3 == 0 else "fast enough",
        )
        for index in range(layers)
    ]
    counts = np.histogram(random.standard_normal(10_000), 200)
    histograms = [
        Histogram(
            f"tensor_{index}" if index else NASTY,
            tuple(map(int, counts[0])),
            tuple(map(float, counts[1])),
            -2.5,
            2.5,
            "percentile 99.99",
        )
        for index in range(3)
    ]
    tried = [
        Tried(
            f"int8 but for {count} regions",
            1.9 - 0.08 * count,
            1.85 - 0.08 * count,
            1.95 - 0.08 * count,
            sqnr_db=12.0 + 2.5 * count + shift,
            agreement=0.9 + 0.008 * count,
            bytes=4_000_000 + 300_000 * count,
            within_budget=count >= 4,
            chosen=count == 4,
            treatments={f"region {region}": "float32" for region in range(count)},
            reason="noisier than the budget allows" if count < 4 else "",
        )
        for count in range(10)
    ]
    regions = [
        Region(f"region {index}", (f"conv_{index}",), "int8", "faster", 2e-3, 1e-3, 33.0)
        for index in range(6)
    ]
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    quantize = Outcome(model, True, findings=Findings(histograms=histograms))
    quantize.rewritten["quantize-conv"] = 12
    quantize.refusals = [Refusal("quantize-conv", "its output is the model's", "head")] * 3
    idle = Outcome(model, False)
    facts = {"seconds": 0.4, "nodes": (200, 240), "weight_bytes": (9_000_000, 4_000_000)}
    return RunReport(
        "models/model.onnx",
        "out/model.int8.onnx",
        "fold-constants,quantize{scheme=auto}",
        ModelFacts(
            9_500_000,
            200,
            {"Conv": 100},
            0.1,
            {"Conv": 90},
            Latency(9.5e-3, 9.1e-3, 11e-3, 40),
            120_000_000,
            {"Conv": 8e-3, "Relu": 1e-3},
        ),
        ModelFacts(
            4_500_000,
            240,
            {"Conv": 100},
            0.08,
            {"QLinearConv": 90},
            Latency(5.5e-3, 5.2e-3, 6.4e-3, 40),
            80_000_000,
            {"QLinearConv": 4.2e-3, "Relu": 1e-3},
        ),
        changed=True,
        verified=True,
        feeds=8,
        fidelity=Fidelity(
            (
                OutputFidelity("logits", 22.5 + shift, 0.997, 0.991, Agreement("top-1", 970, 1000)),
                OutputFidelity("boxes", 31.0, 0.999, 0.998),
            ),
            1000,
        ),
        speed=Ratio(1.72, 1.68, 1.77),
        passes=[
            PassReport("fold-constants", 0, idle, {"seconds": 0.02}),
            PassReport("quantize", 0, quantize, facts),
        ],
        undone=[Undone("fuse-affine", "it runs at 0.93x the original's speed")],
        notes=["Ranges come from 384 samples."],
        seconds=63.0,
        environment={
            "processor": "A processor",
            "instruction_sets": ["avx2"],
            "cores": 2,
            "threads": 1,
            "platform": "Linux",
            "python": "3.12",
            "versions": {"onnxopt": "0.1.0", "onnxruntime": "1.23.0"},
        },
        idle_memory_bytes=60_000_000,
        inputs={"x": [1, 3, 224, 224]},
        findings=Findings(
            found,
            search=Search(tried, regions, "latency", "at least 20 dB, 97 % of decisions"),
            stages=[
                Stage("prune", True, 40.0, 9_000_000, 8e-3, 1.2, 25.0, 0.98, zeros=0.5),
                Stage("distill", True, 400.0, 9_000_000, 8e-3, 1.2, 28.0, 0.99, zeros=0.5),
                Stage("quantize", False, 20.0, 4_000_000, reason="below 20 dB"),
            ],
            curves=[
                Curve("loss", tuple(range(50)), tuple(2.0 / (1 + step) for step in range(50))),
                Curve("held-out loss", (0, 25, 49), (2.1, 0.3, 0.2)),
            ],
        ),
    )


def full_document(layers: int = 40, *, shift: float = 0.0) -> dict[str, Any]:
    """The same as it stands in a file."""
    return document("optimize", full_report(layers, shift=shift).to_dict(), "onnxopt optimize …")
