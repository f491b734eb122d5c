"""The report of one optimization for people: a few tables and sentences."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxopt.accuracy import Fidelity
from onnxopt.findings import Treatment
from onnxopt.pass_contract import PassReport, Refusal
from onnxopt.report.formats import (
    bytes_text,
    decibels_text,
    latency_text,
    percent_text,
    ratio_text,
    seconds_text,
)
from onnxopt.report.layout import heading, list_of, new_table
from onnxopt.report.run import ModelFacts, RunReport
from onnxopt.runtime.compare import worst

__all__ = ["refusal_lines", "run_lines", "treatment_lines"]

#: So many nodes are listed in a terminal.
_MOST_NODES = 500

Number = TypeVar("Number", int, float)


def run_lines(report: RunReport, *, written: bool) -> Iterator[RenderableType]:
    """What to print about a run, from top to bottom.

    Args:
        report: The run.
        written: Whether the result was written to its target.
    """
    arrow = f"{report.source} → {report.target}" if written else f"{report.source} (not written)"
    yield Text(arrow, style="bold")
    yield Text(f"{_verdict(report)}, in {seconds_text(report.seconds)}\n")
    yield _before_and_after(report)
    if rows := _passes_that_changed(report.passes):
        yield heading("What changed it")
        yield _pass_table(rows)
    if report.undone:
        yield heading("Undone, because the result was no good")
        yield list_of(
            [
                f"{each.name}: {each.reason}"
                + (f" (see it again: {each.reproducer})" if each.reproducer else "")
                for each in report.undone
            ]
        )
    if report.notes:
        yield heading("Notes")
        yield list_of(report.notes)


def refusal_lines(reports: Sequence[PassReport]) -> Iterator[RenderableType]:
    """What each pass left alone and why, for ``--explain``."""
    last = {report.name: report.outcome.refusals for report in reports}
    grouped: dict[tuple[str, str, str], list[Refusal]] = collections.defaultdict(list)
    for name, refusals in last.items():
        for refusal in refusals:
            grouped[name, refusal.rule, refusal.reason].append(refusal)
    yield heading("Left alone")
    if not grouped:
        yield Text("Nothing: no pattern was found that had to be left alone.")
        return
    table = new_table("rule", "reason", "count", "for example", right=(2,))
    for (_, rule, reason), refusals in sorted(
        grouped.items(), key=lambda item: (item[0][0], -len(item[1]))
    ):
        table.add_row(rule, reason, f"{len(refusals):,}", refusals[0].node)
    yield table


def treatment_lines(nodes: Sequence[Treatment]) -> Iterator[RenderableType]:
    """How every node of the original is computed, and why; nothing where no pass told.

    Constants are counted only, and of a very large model the JSON has the rest.
    """
    if not nodes:
        return
    yield heading("Every node of the original, and why it is in 8 bits or not")
    listed = [each for each in nodes if each.operator != "Constant"]
    table = new_table("node", "operator", "", "why")
    for each in listed[:_MOST_NODES]:
        table.add_row(each.node, each.operator, each.precision or "-", each.reason)
    yield table
    counts = collections.Counter(each.precision or "computed no more" for each in listed)
    parts = [f"{count:,} {precision}" for precision, count in counts.most_common()]
    parts.append(f"{len(nodes) - len(listed):,} constants")
    if len(listed) > _MOST_NODES:
        parts.append(f"{len(listed) - _MOST_NODES:,} not listed here: --json has them")
    yield Text(f"\n{', '.join(parts)}.")


def _verdict(report: RunReport) -> str:
    if not report.changed:
        return "Nothing to improve"
    if not report.verified:
        return "Not verified"
    feeds = f"{report.feeds} feed{'s' if report.feeds != 1 else ''}"
    if report.fidelity is not None:
        return f"{_fidelity(report.fidelity)}, within the budget"
    found = worst(report.differences)
    if found is None:
        return f"Verified on {feeds}"
    if found.max_abs == 0:
        return f"Verified on {feeds}: outputs are equal"
    return (
        f"Verified on {feeds}: worst difference {found.max_abs:.2g} in output '{found.output}' "
        f"({decibels_text(found.snr_db)})"
    )


def _fidelity(found: Fidelity) -> str:
    """How true a lossy result is, on how many samples, and how sure that is."""
    count = found.samples
    parts = [decibels_text(found.sqnr_db), f"cosine {found.cosine:.4f}"]
    if (agreement := found.agreement) is not None:
        low, high = agreement.interval
        parts.append(
            f"{agreement.same:,} of {agreement.total:,} {agreement.noun} the same "
            f"({low:.1%} to {high:.1%})"
        )
    if found.score is not None:
        parts.append(f"evaluation {found.score.before:.4g} → {found.score.after:.4g}")
    return f"Judged on {count:,} sample{'s' if count != 1 else ''}: {', '.join(parts)}"


def _before_and_after(report: RunReport) -> Table:
    before, after = report.before, report.after
    table = new_table("", "before", "after", "change", right=(1, 2))
    table.add_row(
        "file size",
        bytes_text(before.bytes),
        bytes_text(after.bytes),
        percent_text(before.bytes, after.bytes),
    )
    _add_change(table, "file size, zipped", before.zip_bytes, after.zip_bytes, bytes_text)
    table.add_row("nodes", f"{before.nodes:,}", f"{after.nodes:,}", _delta(before, after))
    if before.kernels and after.kernels:
        ran = [sum(facts.kernels.values()) for facts in (before, after)]
        table.add_row("kernels run", f"{ran[0]:,}", f"{ran[1]:,}", _signed(ran[1] - ran[0]))
    _add_change(table, "load time", before.load_seconds, after.load_seconds, seconds_text)
    for name, field in (
        ("memory to load", "load_memory_bytes"),
        ("peak memory", "peak_memory_bytes"),
    ):
        _add_change(table, name, getattr(before, field), getattr(after, field), bytes_text)
    if before.latency is not None and after.latency is not None and report.speed is not None:
        table.add_row(
            "latency",
            latency_text(before.latency),
            latency_text(after.latency),
            ratio_text(report.speed),
        )
    return table


def _add_change(
    table: Table,
    name: str,
    before: Number | None,
    after: Number | None,
    text: Callable[[Number], str],
) -> None:
    """A row with both amounts, if both are known."""
    if before is not None and after is not None:
        table.add_row(name, text(before), text(after), percent_text(before, after))


@dataclasses.dataclass
class _PassRow:
    """All runs of one pass together."""

    rewrites: int = 0
    nodes: int = 0
    seconds: float = 0.0
    changed: bool = False


def _passes_that_changed(reports: Sequence[PassReport]) -> dict[str, _PassRow]:
    rows: dict[str, _PassRow] = {}
    for report in reports:
        row = rows.setdefault(report.name, _PassRow())
        row.seconds += report.facts.get("seconds", 0.0)
        if report.outcome.changed_model:
            row.changed = True
            row.rewrites += sum(report.outcome.rewritten.values())
            before, after = report.facts["nodes"]
            row.nodes += after - before
    return {name: row for name, row in rows.items() if row.changed}


def _pass_table(rows: dict[str, _PassRow]) -> Table:
    table = new_table("pass", "rewrites", "nodes", "time", right=(1, 2, 3))
    for name, row in rows.items():
        table.add_row(name, f"{row.rewrites:,}", _signed(row.nodes), seconds_text(row.seconds))
    return table


def _delta(before: ModelFacts, after: ModelFacts) -> str:
    return _signed(after.nodes - before.nodes)


def _signed(number: int) -> str:
    return "same" if number == 0 else f"{number:+,}"
