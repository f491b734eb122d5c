import math

import pytest

from onnxopt.report import formats
from onnxopt.runtime.statistics import Latency, Ratio


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1536, "1.5 KiB"),
        (150 * 1024, "150 KiB"),
        (3 * 2**20, "3 MiB"),
        (5 * 2**40, "5,120 GiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert formats.bytes_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999_999, "999,999"), (16_574_720, "16.6 M"), (10**9, "1 G"), (5 * 10**14, "500 T")],
)
def test_counts(count: int, text: str) -> None:
    assert formats.count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 µs"), (12.34e-6, "12.3 µs"), (1.234e-3, "1.23 ms"), (0.25, "250 ms"), (75, "75 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert formats.seconds_text(seconds) == text


def test_latency_has_one_unit() -> None:
    assert formats.latency_text(Latency(9.5e-4, 9.1e-4, 1.2e-3, 20)) == "950 µs (910 to 1,200)"


def test_noise_is_called_noise() -> None:
    assert formats.ratio_text(Ratio(1.01, 0.99, 1.03)) == "1.01x (0.99 to 1.03), within noise"
    assert formats.ratio_text(Ratio(1.5, 1.4, 1.6)) == "1.50x (1.40 to 1.60)"


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (100, 100, "same"),
        (0, 0, "same"),
        (0, 1, ""),
        (200, 100, "-50.0 %"),
        (100_000, 99_999, "about the same"),
        (1, 1.5, "+50.0 %"),
    ],
)
def test_percent(before: float, after: float, text: str) -> None:
    assert formats.percent_text(before, after) == text


def test_decibels() -> None:
    assert formats.decibels_text(math.inf) == "equal"
    assert formats.decibels_text(None) == "equal"
    assert formats.decibels_text(-math.inf) == formats.decibels_text(formats.NO_SIGNAL) == "none"
    assert formats.decibels_text(116.4) == "116 dB"
