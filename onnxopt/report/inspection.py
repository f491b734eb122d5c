"""What is in a model, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxopt.analysis.inspection import Inspection, PortFacts
from onnxopt.report.comparisons import bench_lines
from onnxopt.report.formats import bytes_text, count_text
from onnxopt.report.layout import heading, list_of, new_table
from onnxopt.storage import Storage

__all__ = ["inspection_lines", "storage_lines"]

#: So many of the largest weights are listed.
_TENSORS = 10


def inspection_lines(name: str, facts: Inspection) -> Iterator[RenderableType]:
    """What to print about a model, from top to bottom."""
    yield Text(f"{name}\n", style="bold")
    yield _summary(facts)
    yield heading("Inputs and outputs")
    yield _ports(facts)
    yield heading("Operators")
    yield _operators(facts)
    if facts.tensors:
        yield heading("Where the bytes are")
        yield _tensors(facts)
    if facts.notes:
        yield heading("Notes")
        yield list_of(list(facts.notes))


def storage_lines(storage: Storage) -> Iterator[RenderableType]:
    """What to print about how a model is stored."""
    yield heading("How it is stored")
    grid = Table.grid(padding=(0, 2))
    grid.add_row("file", bytes_text(storage.bytes) + _zipped(storage.zip_bytes))
    if storage.coded:
        weights = f"{storage.coded:,} weight{'s' if storage.coded != 1 else ''}"
        grid.add_row("", f"{weights} in a shorter form, that the runtime unfolds when it loads it")
        dense = bytes_text(storage.dense_bytes) + _zipped(storage.dense_zip_bytes)
        ratio = storage.dense_bytes / storage.bytes
        grid.add_row("with all weights written out", f"{dense}; {ratio:.2f} times as large")
    yield grid
    if storage.measured is not None:
        yield Text()
        yield from bench_lines(storage.measured)


def _zipped(count: int | None) -> str:
    return "" if count is None else f", zipped {bytes_text(count)}"


def _summary(facts: Inspection) -> Table:
    grid = Table.grid(padding=(0, 2))
    opsets = ", ".join(f"{domain or 'ai.onnx'} {number}" for domain, number in facts.opsets.items())
    grid.add_row("producer", facts.producer or "not stated")
    grid.add_row("opsets", f"{opsets} (IR version {facts.ir_version})")
    inside = [f"{facts.nodes:,}"]
    if facts.bodies:
        inside.append(f"{facts.bodies} bodies of control flow")
    if facts.functions:
        inside.append(f"{len(facts.functions)} functions ({', '.join(facts.functions)})")
    grid.add_row("nodes", ", ".join(inside))
    grid.add_row("parameters", count_text(facts.parameters))
    grid.add_row("MACs", _macs(facts))
    place = f", {bytes_text(facts.external_bytes)} of them external" if facts.external_bytes else ""
    grid.add_row("weights", bytes_text(facts.weight_bytes) + place)
    shares = [
        f"{dtype} {bytes_text(count)} ({100 * count / max(facts.weight_bytes, 1):.0f} %)"
        for dtype, count in facts.precision.items()
    ]
    grid.add_row("precision", ", ".join(shares) or "no weights")
    if facts.zeros is not None:
        grid.add_row("zeros", f"{100 * facts.zeros:.2f} % of the parameters")
    for key, value in facts.metadata.items():
        grid.add_row(key, value)
    return grid


def _macs(facts: Inspection) -> str:
    text = _formula(facts.macs)
    if facts.unknown_macs:
        nodes = f"{facts.unknown_macs} node{'s' if facts.unknown_macs != 1 else ''}"
        return f"{text}, and {nodes} of unknown shape (give --shape NAME:SIZES)"
    return text


def _formula(text: str) -> str:
    """The formula with readable numbers: ``16.6 M batch + 4,096 batch length``."""
    terms = [term.split("*") for term in text.split(" + ")]
    return " + ".join(" ".join([count_text(int(term[0])), *term[1:]]) for term in terms)


def _ports(facts: Inspection) -> Table:
    table = new_table("", "name", "type", "shape")
    for kind, ports in (("input", facts.inputs), ("output", facts.outputs)):
        for port in ports:
            default = ", has a default" if port.has_default else ""
            table.add_row(kind, port.name, port.type, _shape(port) + default)
    return table


def _shape(port: PortFacts) -> str:
    if port.shape is None:
        return "any rank"
    return f"[{', '.join('?' if dim is None else str(dim) for dim in port.shape)}]"


def _operators(facts: Inspection) -> Table:
    table = new_table("operator", "nodes", "MACs", "weights", right=(1, 2, 3))
    for each in facts.operators:
        cost = "" if each.macs == "0" else _formula(each.macs)
        if each.unknown_macs:
            cost = f"{cost} + unknown" if cost else "unknown"
        weights = bytes_text(each.weight_bytes) if each.weight_bytes else ""
        table.add_row(each.name, f"{each.count:,}", cost, weights)
    return table


def _tensors(facts: Inspection) -> Table:
    table = new_table("weight", "read by", "type", "shape", "bytes", "zeros", right=(4, 5))
    for each in facts.tensors[:_TENSORS]:
        zeros = "" if not each.zeros else f"{100 * each.zeros / each.elements:.1f} %"
        table.add_row(
            each.name,
            each.operator,
            each.dtype,
            str(list(each.shape)),
            bytes_text(each.bytes),
            zeros,
        )
    rest = facts.tensors[_TENSORS:]
    if rest:
        size = bytes_text(sum(each.bytes for each in rest))
        table.add_row(f"{len(rest):,} more", "", "", "", size, "")
    return table
