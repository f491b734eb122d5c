"""Quantities as text, the same everywhere."""

from __future__ import annotations

import math

from onnxopt.runtime.statistics import Latency, Ratio

__all__ = [
    "NO_SIGNAL",
    "bytes_text",
    "count_text",
    "decibels_text",
    "latency_text",
    "percent_text",
    "ratio_text",
    "seconds_text",
]

#: What stands for minus infinity in JSON: decibels where no signal is left.
NO_SIGNAL = -999.0


def bytes_text(count: int) -> str:
    """Bytes with a binary prefix: ``1.2 MiB``."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if abs(size) < 1000:
            break
        size, unit = size / 1024, larger
    return f"{_three_digits(size)} {unit}"


def count_text(count: int) -> str:
    """A large number with a decimal prefix: ``12.3 M``; below a million in full."""
    for factor, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if count >= factor:
            return f"{_three_digits(count / factor)} {letter}"
    return f"{count:,}"


def seconds_text(seconds: float) -> str:
    """A duration: ``1.23 ms``."""
    factor, unit = _unit_of_time(seconds)
    return f"{_three_digits(seconds * factor)} {unit}"


def latency_text(latency: Latency) -> str:
    """The median with its spread, 10th to 90th percentile: ``1.23 ms (1.20 to 1.31)``."""
    factor, _ = _unit_of_time(latency.median)
    low, high = _three_digits(latency.low * factor), _three_digits(latency.high * factor)
    return f"{seconds_text(latency.median)} ({low} to {high})"


def ratio_text(ratio: Ratio) -> str:
    """How many times faster, with the interval of the median, and whether that means anything."""
    text = f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{text}, within noise" if ratio.is_noise else text


def percent_text(before: float, after: float) -> str:
    """The change in percent: ``-12.3 %``."""
    if before == after or before == 0:
        return "same" if before == after else ""
    change = f"{100 * (after / before - 1):+.1f}"
    return "about the same" if float(change) == 0 else f"{change} %"


def decibels_text(decibels: float | None) -> str:
    """A signal to noise ratio: ``132 dB``, ``equal`` without noise, or ``none`` without a signal.

    In a report, null stands for no noise, and `NO_SIGNAL` for no signal.
    """
    if decibels is None or decibels == math.inf:
        return "equal"
    return "none" if decibels <= NO_SIGNAL else f"{decibels:.0f} dB"


def _unit_of_time(seconds: float) -> tuple[float, str]:
    if seconds < 1e-3:
        return 1e6, "µs"
    return (1e3, "ms") if seconds < 1 else (1.0, "s")


def _three_digits(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 100 else f"{number:,.0f}"
