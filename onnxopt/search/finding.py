"""What a search found, and all that it tried."""

from __future__ import annotations

import dataclasses

from onnxopt.accuracy import Fidelity
from onnxopt.runtime.statistics import Ratio
from onnxopt.search.subject import Choices

__all__ = ["Finding", "Point"]


@dataclasses.dataclass(frozen=True)
class Point:
    """A plan that was tried on whole-model runs.

    Attributes:
        choices: The plan.
        sqnr_db: Of the worst output.
        agreement: Share of equal decisions, where an output is one.
        score: What the user's own measure gave.
        speed: Times faster than the untouched model; None where it was not timed.
        objection: What is over the budget, or why the plan was given up, or empty.
    """

    choices: Choices
    sqnr_db: float
    agreement: float | None
    score: float | None
    speed: Ratio | None
    objection: str

    @classmethod
    def of(
        cls, choices: Choices, found: Fidelity, objection: str | None, speed: Ratio | None = None
    ) -> Point:
        """A plan and how true it is."""
        agreement = None if found.agreement is None else found.agreement.fraction
        score = None if found.score is None else found.score.after
        return cls(dict(choices), found.sqnr_db, agreement, score, speed, objection or "")


@dataclasses.dataclass
class Finding:
    """What came out.

    Attributes:
        choices: The best plan; empty when nothing helps within the budget.
        reason: Why nothing helps, else empty.
        speed: The plan's paired ratio to the untouched model.
        fidelity: How true it is on samples that nothing was chosen by.
        curve: All whole plans that were tried.
        noise: Relative noise power of each treatment alone, by region and treatment.
        gain: Seconds that each treatment saves, by region and treatment.
        seconds: Of each region, by region and treatment; the treatment "" is none.
        left: Why a region is left alone, by region.
    """

    choices: dict[str, str]
    reason: str = ""
    speed: Ratio | None = None
    fidelity: Fidelity | None = None
    curve: list[Point] = dataclasses.field(default_factory=list)
    noise: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    gain: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    left: dict[str, str] = dataclasses.field(default_factory=dict)
