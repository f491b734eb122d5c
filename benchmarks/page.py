"""docs/benchmarks.md, made from the results alone."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import quantization
from benchmarks.peers import TOOLS
from benchmarks.results import FOLDER, Results
from benchmarks.simplification import REAL_MODELS, SCALING_MODELS

__all__ = ["write"]

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks.md"


def write(results: Results) -> None:
    """Write the page."""
    parts = [
        "# Benchmarks",
        "",
        "Made by `make bench DATA=samples/` (`python -m benchmarks.run`) from "
        "`benchmarks/results/`, which says where and, from now on, on which day each row was "
        "measured. What fails or is worse is in the tables too.",
        "A speed is the median of paired, interleaved rounds of the original and the result, one "
        "thread, with the 95 % interval of the median: above 1 the result is faster.",
        "",
        _environment(),
        "",
        "## Real models: what comes out",
        "",
        "Nodes count those of bodies and `Constant` nodes. *wrong* and *does not run* are what "
        "ONNX Runtime says of the result on realistic inputs.",
        "",
        _table(REAL_MODELS, results, _outcome, "original"),
        "",
        "## Real models: what it costs",
        "",
        "Whole process: seconds, and the peak of its resident memory with everything it starts. "
        "Only onnxopt compares outputs and times the result by default; its figures include that.",
        "",
        _table(REAL_MODELS, results, _cost, "size"),
        "",
        "## Scaling",
        "",
        "A chain of small nodes, and a transformer with 1.2 GB of external data.",
        "",
        _table(SCALING_MODELS, results, _cost_and_outcome, "original"),
        "",
        "![Speed of the results](plots/simplification-speed.svg)",
        "",
        *_quantization(),
        *_channels(),
        *_training(),
        "## Other pages",
        "",
        *_other_pages(),
        "",
        *_remarks(results),
    ]
    _PAGE.write_text("\n".join(parts))


def _quantization() -> list[str]:
    results = Results("quantization")
    if not results:
        return []
    return [
        "## Quantization",
        "",
        "Calibrated on 32 inputs, judged on 32 others (classifiers and recognition on 200); "
        f"{_circumstances(results)}. More in [quantization.md](quantization.md).",
        "",
        quantization.table(results),
        "",
        "![Speed and fidelity of quantized models](plots/quantization.svg)",
        "",
    ]


def _channels() -> list[str]:
    """Channels that are removed exactly, and pruning in one shot."""
    lines: list[str] = []
    exact = Results("channels-exact")
    if exact:
        lines += [
            "## Pruned channels",
            "",
            "Largest error over the largest magnitude, when half of the channels are masked; "
            f"{_circumstances(exact)}. More in [channels.md](channels.md).",
            "",
            "| network | channels removed | onnxopt | constants dropped | onnxsim |",
            "| --- | --- | --- | --- | --- |",
        ]
        for key, row in sorted(exact.items()):
            cells = [_error(row[tool]) for tool in ("onnxopt", "dropped", "onnxsim")]
            name = key.partition("/")[2]
            lines.append(f"| {name} | {row['channels_removed']} | {' | '.join(cells)} |")
        lines.append("")
    for path in sorted(FOLDER.glob("channels-oneshot-*.json")):
        results = Results(path.stem)
        lines += [
            f"Pruned in one shot, without training: {path.stem.removeprefix('channels-oneshot-')}; "
            f"{_circumstances(results)}. Both models of a speed ran in turn on one core, another "
            "benchmark on the other.",
            "",
            "| amount | tool | MACs | fidelity | speed |",
            "| --- | --- | --- | --- | --- |",
        ]
        for key, row in sorted(results.items()):
            amount, tool = key.split("/")[-2:]
            if "failed" in row:
                lines.append(f"| {amount} | {tool} | fails: {row['failed'][:60]} | | |")
                continue
            speed = "" if row.get("speed") is None else f"{row['speed']:.2f}x"
            macs = "" if row.get("macs") is None else f"{row['macs']:.0%}"
            level = "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
            lines.append(f"| {amount} | {tool} | {macs} | {level} | {speed} |")
        lines.append("")
    return lines


def _training() -> list[str]:
    results = Results("importer")
    if not results:
        return []
    from benchmarks import importer

    text = f"Into PyTorch and back; {_circumstances(results)}. More in [training.md](training.md)."
    return ["## Importing for training", "", text, "", importer.table(results), ""]


def _other_pages() -> list[str]:
    found = []
    for suite, page, words in (
        ("sparsity", "sparsity", "accuracy at equal sparsity, beside onnxsim"),
        ("storage", "storage", "size and load time of sparse weights, beside sparse initializers"),
        ("calibration", "calibration", "cost and truth of ranges, beside onnxruntime.quantization"),
        ("scaling", "scale", "several workers, many models, many samples"),
    ):
        results = Results(suite)
        if results:
            found.append(f"- [{page}.md]({page}.md): {words}; {_circumstances(results)}.")
    if Results("sparsity"):
        found += ["", "![Accuracy at equal sparsity](plots/sparsity.svg)"]
    return found


def _circumstances(results: Results) -> str:
    """Where and when rows were measured."""
    facts = results.environment
    when = " to ".join(dict.fromkeys((results.dates or [""])[index] for index in (0, -1)))
    return f"{facts.get('processor')}, {facts.get('cores')} cores" + (f", {when}" if when else "")


def _error(value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{value:.1e}"


def _environment() -> str:
    path = FOLDER / "simplification.json"
    facts = json.loads(path.read_text())["environment"] if path.exists() else {}
    versions = facts.get("versions", {})
    return (
        f"Machine: {facts.get('processor')}, {facts.get('cores')} cores, "
        f"{', '.join(facts.get('instruction_sets', []))}. ONNX Runtime "
        f"{versions.get('onnxruntime')}, Python {facts.get('python')}. Peers: see "
        "`benchmarks/peer-requirements.txt`."
    )


def _table(models: Sequence[str], results: Results, cell: Any, first: str) -> str:
    lines = [
        f"| model | {first} | {' | '.join(TOOLS)} |",
        "| --- " * (len(TOOLS) + 2) + "|",
    ]
    for model in models:
        rows = [results.get(f"{model}/{tool}") for tool in TOOLS]
        known = next((row for row in rows if row), None)
        if known is None:
            continue
        before = known["before"]
        start = f"{before['bytes'] / 1e6:.1f} MB" if first == "size" else f"{before['all_nodes']}"
        cells = [cell(row) if row else "not measured" for row in rows]
        lines.append(f"| {model} | {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _remarks(results: Results) -> list[str]:
    """What is to be known of single rows, from their key ``remark``."""
    found = [f"- {key}: {row['remark']}" for key, row in results.items() if row.get("remark")]
    return ["## Remarks", "", *found, ""] if found else []


def _outcome(row: Mapping[str, Any]) -> str:
    if row["code"] is None:
        return f"stopped after {row['seconds']:.0f} s"
    if "after" not in row:
        return f"fails: {row['message'][:60]}"
    after, before = row["after"], row["before"]
    text = f"{after['all_nodes']} nodes, {after['bytes'] / before['bytes']:.1%} of the bytes"
    if not row["runs"]:
        return f"{text}, **does not run**"
    if not row["agrees"]:
        return f"{text}, **wrong** ({row['why']})"
    speed = row.get("speed")
    if speed:
        text += f", {speed['median']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})"
    return text


def _cost(row: Mapping[str, Any]) -> str:
    return f"{row['seconds']:.1f} s, {row['peak_bytes'] / 1e6:.0f} MB"


def _cost_and_outcome(row: Mapping[str, Any]) -> str:
    return f"{_cost(row)}, {_outcome(row)}"
