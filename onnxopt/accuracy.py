"""How much of the answers a lossy pass may cost, and how much it did cost.

No labels are needed: the original model is the reference. What is measured, for each output over
all samples that nothing was calibrated on:

- the signal-to-quantization-noise ratio, 10 log10(sum of ref^2 / sum of (ref - out)^2) in dB;
- the cosine between the two, sample by sample, and its mean;
- where the output is recognized as a decision, how often both models decide alike, with the 95 %
  interval of Wilson (1927, "Probable inference, the law of succession, and statistical inference").

Numbers such as -1e9 that masks put where there is nothing are left out, or nothing beside them
would count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxopt.errors import OptionError
from onnxopt.numerics.fillers import are_fillers

__all__ = [
    "Agreement",
    "Budget",
    "Fidelity",
    "OutputFidelity",
    "Score",
    "decision_kind",
    "fidelity",
]

#: Two-sided 95 % quantile of the normal distribution.
_Z = 1.959964
#: Rows of probabilities add up to 1 within this.
#: A row of so many unbounded numbers is taken for the scores of classes.
_CLASSES = 5
_SUM_TOLERANCE = 1e-3
#: Scores above this are a yes.
_THRESHOLD = 0.5

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How often two models decide alike.

    Attributes:
        kind: ``top-1``: the largest along the last axis (or, in a map of probabilities, along the
            axis that adds up to 1); ``largest``: the same of a few unbounded numbers, which may as
            well be measures of several things as scores of classes; ``threshold``: which side of
            one half; ``equal``: whole numbers or texts.
        same: Decisions that are the same.
        total: Decisions that were compared.
    """

    kind: Literal["top-1", "largest", "threshold", "equal"]
    same: int
    total: int

    @property
    def fraction(self) -> float:
        """Share of equal decisions; 1 where there are none."""
        return self.same / self.total if self.total else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share, as if decisions were independent."""
        if not self.total:
            return 0.0, 1.0
        count, share = self.total, self.fraction
        centre = share + _Z**2 / (2 * count)
        spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
        scale = 1 + _Z**2 / count
        return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)

    @property
    def noun(self) -> str:
        """What is the same, in the plural."""
        return "largest scores" if self.kind == "largest" else "decisions"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with what it is of, the share and its interval."""
        facts = {**dataclasses.asdict(self), "noun": self.noun}
        return {**facts, "fraction": self.fraction, "interval": list(self.interval)}

    def falls_short_of(self, wanted: float) -> bool:
        """Whether it is below what is wanted, as far as so many decisions can tell.

        Where a single flip would already be too many, only a share whose whole interval is below
        counts: ten samples prove nothing.
        """
        if self.fraction >= wanted:
            return False
        enough = wanted >= 1 or self.total * (1 - wanted) >= 1
        return enough or self.interval[1] < wanted


@dataclasses.dataclass(frozen=True)
class OutputFidelity:
    """How true one output is to the original's.

    Attributes:
        output: Its name.
        sqnr_db: Signal-to-noise ratio in dB over all samples; infinite when equal.
        cosine: Mean cosine over samples.
        worst_cosine: The lowest of a sample.
        agreement: How often decisions are the same, where it is one.
        mismatch: Why values cannot be compared (other shape or type), else empty.
    """

    output: str
    sqnr_db: float
    cosine: float
    worst_cosine: float
    agreement: Agreement | None = None
    mismatch: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """What the user's own function says of the two models; higher is better."""

    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How true a model is to the original.

    Attributes:
        outputs: By output.
        samples: Number of samples that were compared.
        score: The user's own measure, if there is one.
    """

    outputs: tuple[OutputFidelity, ...]
    samples: int
    score: Score | None = None

    @property
    def sqnr_db(self) -> float:
        """Of the worst output."""
        return min((each.sqnr_db for each in self.outputs), default=math.inf)

    @property
    def cosine(self) -> float:
        """Mean over samples, of the worst output."""
        return min((each.cosine for each in self.outputs), default=1.0)

    @property
    def agreement(self) -> Agreement | None:
        """Of the worst output that is a decision."""
        known = [each.agreement for each in self.outputs if each.agreement is not None]
        return min(known, key=lambda each: each.fraction, default=None)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with the figures that are worked out; decibels may be infinite."""
        return {
            "samples": self.samples,
            "sqnr_db": self.sqnr_db,
            "cosine": self.cosine,
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
            "score": None if self.score is None else dataclasses.asdict(self.score),
            "outputs": [
                {
                    **dataclasses.asdict(each),
                    "agreement": None if each.agreement is None else each.agreement.to_dict(),
                }
                for each in self.outputs
            ],
        }


@dataclasses.dataclass(frozen=True)
class Budget:
    """What lossy passes may cost at most.

    Attributes:
        min_sqnr: Least signal-to-noise ratio of any output, in dB; None for no limit.
        min_agreement: Least share of equal decisions, where an output is one.
        min_cosine: Least mean cosine of any output.
        evaluate: A measure of the user's own: given the path of a model, a number that is better
            when higher. It replaces the limits above unless they are given too.
        max_drop: How much lower than the original's that number may be.
    """

    min_sqnr: float | None = 20.0
    min_agreement: float | None = 0.97
    min_cosine: float | None = None
    evaluate: Callable[[str], float] | None = None
    max_drop: float = 0.01

    def __post_init__(self) -> None:
        for name, low, high in (("min_agreement", 0.0, 1.0), ("min_cosine", -1.0, 1.0)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise OptionError(f"{name} is a share from {low:g} to {high:g}, not {value:g}")
        if not self.max_drop >= 0:
            raise OptionError(f"max_drop is a number from 0, not {self.max_drop:g}")

    def objection(self, found: Fidelity) -> str | None:
        """What is over the budget, as one phrase with the figures; None when nothing is."""
        for each in found.outputs:
            if each.mismatch:
                return f"output '{each.output}' {each.mismatch}"
            if self.min_sqnr is not None and not each.sqnr_db >= self.min_sqnr:
                return (
                    f"output '{each.output}' is at {each.sqnr_db:.1f} dB, below the budget of "
                    f"{self.min_sqnr:.3g} dB"
                )
            if self.min_cosine is not None and not each.cosine >= self.min_cosine:
                return (
                    f"output '{each.output}' has a cosine of {each.cosine:.4f}, below the budget "
                    f"of {self.min_cosine:g}"
                )
            agreement = each.agreement
            if (
                self.min_agreement is not None
                and agreement is not None
                and agreement.falls_short_of(self.min_agreement)
            ):
                return (
                    f"output '{each.output}' has {agreement.same:,} of {agreement.total:,} "
                    f"{agreement.noun} as the original, below the budget of "
                    f"{self.min_agreement:.1%}"
                )
        score = found.score
        if score is not None and not score.after >= score.before - self.max_drop:
            return (
                f"the evaluation drops from {score.before:.4g} to {score.after:.4g}, more than "
                f"{self.max_drop:g}"
            )
        return None


def fidelity(
    expected: Sequence[Sequence[Any]], actual: Sequence[Sequence[Any]], names: Sequence[str]
) -> Fidelity:
    """Compare the outputs of two models over samples.

    Args:
        expected: The original's outputs, by sample.
        actual: The other's, by sample.
        names: Names of the outputs.
    """
    found = []
    for index, name in enumerate(names):
        pairs = [(one[index], other[index]) for one, other in zip(expected, actual, strict=True)]
        found.append(_output_fidelity(name, pairs))
    return Fidelity(tuple(found), len(expected))


def _output_fidelity(name: str, pairs: Sequence[tuple[Any, Any]]) -> OutputFidelity:
    signal = noise = 0.0
    cosines: list[float] = []
    same = total = 0
    mismatch = ""
    kind = decision_kind([array for one, _ in pairs for array in _arrays(one)])
    for one, other in pairs:
        lefts, rights = list(_arrays(one)), list(_arrays(other))
        wrong = _mismatch(lefts, rights)
        if wrong:
            mismatch = mismatch or wrong
            continue
        for left, right in zip(lefts, rights, strict=True):
            if kind is not None:
                alike = _decide(left, kind) == _decide(right, kind)
                same, total = same + int(np.count_nonzero(alike)), total + alike.size
            if not _is_real(left):
                continue
            x, y = left.astype(np.float64).reshape(-1), right.astype(np.float64).reshape(-1)
            finite = np.isfinite(x)
            if not np.array_equal(finite, np.isfinite(y)) or not np.array_equal(
                x[~finite], y[~finite], equal_nan=True
            ):
                mismatch = mismatch or "is NaN or infinite where the original is not"
                continue
            x, y = _where(finite, x, y)
            x, y = _where(~are_fillers(x, y), x, y)
            error = x - y
            own, wrong_by = float(x @ x), float(error @ error)
            signal, noise = signal + own, noise + wrong_by
            cosines.append(1.0 if wrong_by == 0 and np.array_equal(x, y) else _cosine(x, y, own))
    agreement = None if kind is None or not total else Agreement(kind[0], same, total)
    if kind is not None and kind[0] == "equal":
        # Whole numbers and texts have no noise, only other answers.
        return OutputFidelity(name, math.inf, 1.0, 1.0, agreement, mismatch)
    return OutputFidelity(
        name,
        -math.inf if mismatch else _decibels(signal, noise),
        float(np.mean(cosines)) if cosines else 1.0,
        min(cosines, default=1.0),
        agreement,
        mismatch,
    )


def _arrays(value: Any) -> Iterator[Array]:
    """The arrays of an output, which may be a sequence, a map, or absent."""
    if value is None:
        return
    if isinstance(value, list):
        for item in value:
            yield from _arrays(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _arrays(item)
    else:
        yield np.asarray(value)


def _mismatch(lefts: Sequence[Array], rights: Sequence[Array]) -> str:
    if len(lefts) != len(rights):
        return f"has {len(rights)} elements where the original has {len(lefts)}"
    for left, right in zip(lefts, rights, strict=True):
        if left.dtype != right.dtype:
            return f"is {right.dtype} where the original's is {left.dtype}"
        if left.shape != right.shape:
            return f"has shape {list(right.shape)} where the original's has {list(left.shape)}"
    return ""


_Kind = tuple[Literal["top-1", "largest", "threshold", "equal"], int]


def decision_kind(arrays: Sequence[Array]) -> _Kind | None:
    """What kind of decision the values are, from what they look like in all samples; the axis.

    Non-negative numbers that add up to 1 along an axis are probabilities, numbers between 0 and 1
    are scores against a threshold, a row of unbounded numbers for each sample is logits, unless all
    rows have length 1, as normalized embeddings have; which of a few is the largest is looked at,
    and not called a decision. Anything else is no decision.
    """
    if not arrays:
        return None
    if not all(map(_is_real, arrays)):
        return ("equal", 0) if not any(map(_is_real, arrays)) else None
    if any(array.size == 0 or array.ndim == 0 for array in arrays):
        return None
    if any(not np.isfinite(array).all() for array in arrays):
        return None
    if len({array.ndim for array in arrays}) == 1:
        for axis in range(-1, -arrays[0].ndim, -1):
            if all(_are_probabilities(array, axis) for array in arrays):
                return "top-1", axis
    if all(float(array.min()) >= 0 and float(array.max()) <= 1 for array in arrays):
        return "threshold", 0
    if all(array.ndim == 2 and array.shape[1] > 1 for array in arrays):
        lengths = np.concatenate(
            [np.linalg.norm(array.astype(np.float64), axis=1) for array in arrays]
        )
        if not np.allclose(lengths, 1.0, atol=_SUM_TOLERANCE):
            fewest = min(array.shape[1] for array in arrays)
            return "top-1" if fewest >= _CLASSES else "largest", -1
    return None


def _are_probabilities(array: Array, axis: int) -> bool:
    if array.shape[axis] < 2 or float(array.min()) < 0:
        return False
    return bool(np.allclose(array.astype(np.float64).sum(axis=axis), 1.0, atol=_SUM_TOLERANCE))


def _decide(array: Array, kind: _Kind) -> Array:
    name, axis = kind
    if name in ("top-1", "largest"):
        return np.asarray(array.argmax(axis=axis))
    return array > _THRESHOLD if name == "threshold" else array


def _is_real(array: Array) -> bool:
    """Whether it holds floating-point numbers, those of ml_dtypes included."""
    return array.dtype.kind == "f" or (array.dtype.kind == "V" and "float" in array.dtype.name)


def _where(chosen: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """The chosen numbers of both; the same arrays where all are, since outputs may be large."""
    return (x, y) if chosen.all() else (x[chosen], y[chosen])


def _cosine(x: Array, y: Array, own: float) -> float:
    """The cosine of two vectors that differ, given the squared length of the first."""
    lengths = math.sqrt(own) * math.sqrt(float(y @ y))
    return float(x @ y) / lengths if lengths else 0.0


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
