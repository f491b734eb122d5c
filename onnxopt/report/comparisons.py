"""What `check`, `bench` and `bisect` found, for people."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxopt.bench import BenchReport
from onnxopt.bisect import BisectReport, Culprit
from onnxopt.check import CheckReport
from onnxopt.explain import AttributionReport
from onnxopt.noise import LayerNoise
from onnxopt.report.formats import (
    bytes_text,
    decibels_text,
    latency_text,
    ratio_text,
    seconds_text,
)
from onnxopt.report.layout import heading, list_of, new_table
from onnxopt.runtime.compare import Difference, worst

__all__ = ["bench_lines", "bisect_lines", "check_lines"]

#: So many of the samples that are explained least alike are listed.
_WORST = 5
#: So many layers of a quantized model are listed.
_NOISIEST = 20
#: So many nodes of a rewrite are listed.
_NODES = 6


def check_lines(report: CheckReport) -> Iterator[RenderableType]:
    """What to print about a comparison."""
    feeds = _count(report.feeds, "feed")
    verdict = "agree" if report.agree else "differ"
    yield Text(f"{report.first} and {report.second} {verdict} ({feeds})", style="bold")
    if report.interface:
        yield heading("Interface")
        yield list_of(list(report.interface))
    if report.differences:
        yield heading("Outputs")
        yield _differences(report.differences)
        allowed = report.tolerance
        yield Text(
            f"\nAllowed: {allowed.rtol:g} of a number, or {allowed.atol:g} of the output's largest."
        )
    if report.layer is not None:
        layer = report.layer
        yield heading("First layer that differs")
        grid = Table.grid(padding=(0, 2))
        grid.add_row("value", f"{layer.value}: {layer.reason}")
        grid.add_row("in the first", layer.first_node)
        grid.add_row("in the second", layer.second_node)
        grid.add_row("before it", f"{_count(layer.agreed, 'inner value')} agreed")
        yield grid
    if report.noise:
        yield from _noise(report.noise)
    if report.attribution is not None:
        yield from _attribution(report.attribution)
    if report.notes:
        yield heading("Notes")
        yield list_of(list(report.notes))


def _noise(layers: Sequence[LayerNoise]) -> Iterator[RenderableType]:
    """Signal to noise of the worst layers of a quantized model, and why."""
    yield heading("Signal to noise of layers, the worst first")
    table = new_table("layer", "operator", "S/N", "why", right=(2,))
    for each in layers[:_NOISIEST]:
        table.add_row(each.layer, each.operator, decibels_text(each.sqnr_db), each.reason)
    yield table
    if len(layers) > _NOISIEST:
        yield Text(f"\nand {len(layers) - _NOISIEST:,} more, which --json has.")


def _attribution(report: AttributionReport) -> Iterator[RenderableType]:
    """Whether both models answer for the same reasons; the samples on which they do so least."""
    yield heading("Reasons")
    yield Text(
        f"{report.verdict}\nMedian rank correlation of what matters in '{report.input}' to "
        f"'{report.output}': {report.occlusion:.3f} by occlusion, {report.shapley:.3f} by Shapley "
        "values.\n"
    )
    table = new_table("sample", "occlusion", "Shapley", "decision", "", right=(0, 1, 2))
    for each in report.samples[:_WORST]:
        decision = {None: "", True: "the same", False: "another"}[each.same_decision]
        table.add_row(
            str(each.sample),
            f"{each.occlusion:.3f}",
            f"{each.shapley:.3f}",
            decision,
            "for other reasons" if each.other_reasons else "",
        )
    yield table
    if report.notes:
        yield list_of(list(report.notes))


def _differences(differences: tuple[Difference, ...]) -> Table:
    """The worst difference of each output over all feeds."""
    by_output: dict[str, list[Difference]] = {}
    for difference in differences:
        by_output.setdefault(difference.output, []).append(difference)
    table = new_table("output", "", "largest difference", "noise", "", right=(2, 3))
    for output, found in by_output.items():
        each = worst(found)
        assert each is not None
        largest = max(one.max_abs for one in found)
        table.add_row(
            output,
            "agrees" if each.agrees else "differs",
            f"{largest:.3g}",
            decibels_text(each.snr_db),
            each.reason,
        )
    return table


def bench_lines(report: BenchReport) -> Iterator[RenderableType]:
    """What to print about a measurement."""
    names = {pathlib.PurePath(row.model).name for row in report.rows}
    short = len(names) == len(report.rows)  # a whole path where names alone do not tell apart
    table = new_table("model", "size", "load", "memory", "latency", "speed", right=(1, 2, 3, 4))
    for row in report.rows:
        table.add_row(
            pathlib.PurePath(row.model).name if short else row.model,
            bytes_text(row.bytes),
            seconds_text(row.load_seconds),
            bytes_text(row.peak_memory_bytes),
            latency_text(row.latency),
            "" if row.ratio is None else ratio_text(row.ratio),
        )
    yield table
    threads = report.environment["threads"]
    shapes = ", ".join(f"{name} {shape}" for name, shape in report.inputs.items())
    rounds = report.rows[0].latency.rounds
    order = "in turn" if report.paired else "one model after the other, since they are large"
    yield Text(
        f"\n{_count(threads, 'thread')}, {_count(rounds, 'round')}, {order}; "
        f"inputs {shapes}; latency is the median with the "
        f"10th and 90th percentile; memory is the peak of a process of its own; a process that "
        f"has loaded no model takes {bytes_text(report.idle_memory_bytes)}."
    )


def bisect_lines(report: BisectReport) -> Iterator[RenderableType]:
    """What to print about a search."""
    culprit = report.culprit
    if culprit is None:
        yield Text(
            f"Nothing breaks {report.model}: its outputs agree after all passes "
            f"({_count(report.runs, 'run')}).",
            style="bold",
        )
        return
    yield Text(f"Pass '{culprit.pass_text}' breaks {report.model}: {culprit.problem}", style="bold")
    yield Text("")
    yield _culprit(report, culprit)


def _culprit(report: BisectReport, culprit: Culprit) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("run", f"{culprit.run} of {_count(report.runs, 'run')} of passes")
    if culprit.rewrite is not None:
        grid.add_row("rewrite", f"{culprit.rewrite} of {culprit.rewrites} in this run")
    if culprit.rule:
        grid.add_row("rule", culprit.rule)
    for label, nodes in (("takes away", culprit.removed), ("puts in", culprit.added)):
        for index, node in enumerate(nodes[:_NODES]):
            grid.add_row(label if index == 0 else "", node)
        if len(nodes) > _NODES:
            grid.add_row("", f"and {len(nodes) - _NODES:,} more")
    grid.add_row("see it again", culprit.command)
    return grid


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
