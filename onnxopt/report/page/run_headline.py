"""What a run gained and what it cost: the sentences, cards and figures at the top of its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxopt.report.formats import (
    bytes_text,
    decibels_text,
    latency_text,
    percent_text,
    ratio_text,
    seconds_text,
)
from onnxopt.runtime.statistics import Latency, Ratio

__all__ = ["before_and_after", "blame", "cards", "lead"]

_Facts = Mapping[str, Any]


def lead(document: _Facts, layers: Sequence[_Facts]) -> Iterator[str]:
    """What was gained, what it cost, and which layer is to blame, one sentence each."""
    if document["changed"]:
        yield f"Gained: {', '.join(_gains(document))}."
        yield f"Cost: {_cost(document)}"
    else:
        yield "Nothing was found to improve: the output is the input."
    yield from blame(layers, document.get("search") or {})
    if document["undone"]:
        names = ", ".join(each["name"] for each in document["undone"])
        yield f"Undone, because the result was no good: {names}."


def _gains(document: _Facts) -> Iterator[str]:
    if document.get("speed") is not None:
        speed = _ratio(document["speed"])
        yield (
            "no speed that could be told from noise"
            if speed.is_noise
            else f"{speed.median:.2f} times the original's speed"
        )
    for label, field in (("file", "bytes"), ("peak memory", "peak_memory_bytes")):
        before, after = document["before"].get(field), document["after"].get(field)
        if before and after is not None:
            change = 100 * (after / before - 1)
            word = "smaller" if change < 0 else "larger"
            yield f"{label} {abs(change):.1f} % {word}" if round(change, 1) else f"{label} the same"


def _cost(document: _Facts) -> str:
    fidelity = document.get("fidelity")
    if fidelity is not None:
        parts = [f"{decibels_text(fidelity['sqnr_db'])} signal to noise at the worst output"]
        agreement = fidelity.get("agreement")
        if agreement is not None:
            noun = agreement.get("noun", "decisions")
            parts.append(f"{agreement['fraction']:.1%} of {noun} the same")
        return f"{', '.join(parts)}, on {fidelity['samples']:,} samples."
    if not document["verified"]:
        return "not known, since outputs were not compared."
    worst = _worst(document["differences"])
    if worst is None or worst["max_abs"] == 0:
        return "nothing; all outputs are equal."
    level = decibels_text(worst["snr_db"])
    return f"rounding only; the outputs agree to {worst['max_abs']:.2g} ({level})."


def blame(layers: Sequence[_Facts], search: _Facts) -> Iterator[str]:
    """Which layer takes most of the time, and which makes most of the noise."""
    timed = [each for each in layers if each.get("seconds")]
    total = sum(each["seconds"] for each in timed)
    if timed and total:
        slowest = max(timed, key=lambda each: each["seconds"])
        share = slowest["seconds"] / total
        operator = slowest.get("operator", "")
        yield f"Slowest layer: {slowest['name']} ({operator}), {share:.0%} of a run."
    noisy = [each for each in layers if each.get("sqnr_db") is not None]
    if noisy:
        worst = min(noisy, key=lambda each: each["sqnr_db"])
        level = decibels_text(worst["sqnr_db"])
        yield f"Noisiest layer: {worst['name']}, at {level} signal to noise."
        return
    regions = [each for each in search.get("regions", ()) if each.get("sqnr_db") is not None]
    if regions:
        worst = min(regions, key=lambda each: each["sqnr_db"])
        yield (
            f"Noisiest region: {worst['name']} ({worst.get('treatment', '')}), which alone takes "
            f"the output to {decibels_text(worst['sqnr_db'])}."
        )


def cards(document: _Facts) -> Iterator[tuple[str, str, str, str]]:
    """The figures that are shown large: name, value, remark, and whether that is good."""
    before, after = document["before"], document["after"]
    if document.get("speed") is not None:
        speed = _ratio(document["speed"])
        state = "" if speed.is_noise else "good" if speed.median > 1 else "bad"
        spread = f"{speed.low:.2f} to {speed.high:.2f}"
        value, remark = (
            ("the same", ratio_text(speed))
            if speed.is_noise
            else (
                f"{speed.median:.2f}x",
                spread,
            )
        )
        yield "speed", value, remark, state
    sizes = before["bytes"], after["bytes"]
    arrow = " → ".join(bytes_text(size) for size in sizes)
    yield "size", percent_text(*sizes), arrow, _less(*sizes)
    peaks = before.get("peak_memory_bytes"), after.get("peak_memory_bytes")
    if None not in peaks:
        arrow = " → ".join(bytes_text(each) for each in peaks)
        yield "peak memory", percent_text(*peaks), arrow, _less(*peaks)
    yield "answers", *_answers(document)


def _answers(document: _Facts) -> tuple[str, str, str]:
    fidelity = document.get("fidelity")
    if not document["changed"]:
        return "the same", "nothing was changed", "good"
    if fidelity is not None:
        samples = f"on {fidelity['samples']:,} samples that nothing was fitted to"
        agreement = fidelity.get("agreement")
        if agreement is None:
            return decibels_text(fidelity["sqnr_db"]), f"signal to noise, {samples}", "good"
        low, high = agreement["interval"]
        return (
            f"{agreement['fraction']:.1%}",
            f"of {agreement['total']:,} {agreement.get('noun', 'decisions')} the same "
            f"({low:.1%} to {high:.1%}), {samples}",
            "good",
        )
    if not document["verified"]:
        return "not compared", "verification was off or not possible", "bad"
    worst = _worst(document["differences"])
    if worst is None or worst["max_abs"] == 0:
        return "equal", f"on {document['feeds']} feeds", "good"
    return (
        decibels_text(worst["snr_db"]),
        f"worst of {document['feeds']} feeds: rounding only",
        "good",
    )


def _worst(differences: Sequence[_Facts]) -> _Facts | None:
    finite = [each for each in differences if not each["own_noise"] and each["snr_db"] is not None]
    return min(finite, key=lambda each: each["snr_db"], default=None)


# Both models


def before_and_after(document: _Facts) -> list[tuple[str, ...]]:
    """What is measured of both models: name, before, after, change, whether that is good."""
    before, after = document["before"], document["after"]
    rows: list[tuple[str, ...]] = []
    if document.get("speed") is not None:
        speed = _ratio(document["speed"])
        state = "" if speed.is_noise else "good" if speed.median > 1 else "bad"
        times = [latency_text(Latency(**facts["latency"])) for facts in (before, after)]
        rows.append(("latency of one run", *times, ratio_text(speed), state))
    amounts = (
        ("file size", "bytes", bytes_text),
        ("file size, zipped", "zip_bytes", bytes_text),
        ("load time", "load_seconds", seconds_text),
        ("memory to load", "load_memory_bytes", bytes_text),
        ("peak memory", "peak_memory_bytes", bytes_text),
    )
    for label, field, text in amounts:
        one, other = before.get(field), after.get(field)
        if one is not None and other is not None:
            rows.append(
                (label, text(one), text(other), percent_text(one, other), _less(one, other))
            )
    one, other = before["nodes"], after["nodes"]
    rows.append(("nodes", f"{one:,}", f"{other:,}", percent_text(one, other), ""))
    if before.get("kernels") and after.get("kernels"):
        one, other = (sum(facts["kernels"].values()) for facts in (before, after))
        rows.append(("kernels run", f"{one:,}", f"{other:,}", percent_text(one, other), ""))
    return rows


def _less(before: float, after: float) -> str:
    """Whether an amount became less, by enough to be worth a colour."""
    if not before or abs(after / before - 1) < 0.02:
        return ""
    return "good" if after < before else "bad"


def _ratio(facts: _Facts) -> Ratio:
    return Ratio(facts["median"], facts["low"], facts["high"])
