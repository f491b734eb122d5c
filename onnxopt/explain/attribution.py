"""Do two models answer alike for the same reasons?

Each part of an input (a patch, a token, a span) is given its share in the first model's answer, in
both models and in two ways:

- occlusion: how much less of the answer is left when the part is covered (Zeiler and Fergus 2014,
  "Visualizing and understanding convolutional networks", section 4.2);
- Shapley values by antithetic permutation sampling, from the library shap (Lundberg and Lee 2017,
  "A unified approach to interpreting model predictions"): what the part adds on average to all sets
  of others. Both models are asked about the same sets, so chance does not part them.

How alike two attributions are is told by Spearman's rank correlation: whether the same parts matter
most, whatever the scale of the answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxopt.data import Feed
from onnxopt.errors import FeedError, ModelError, OptionError
from onnxopt.explain.pictures import picture
from onnxopt.explain.scores import Answer, Scorer, answer_of
from onnxopt.explain.segments import Segments, baseline_of, segments_of
from onnxopt.runtime.worker import Worker

__all__ = ["AttributionReport", "Explained", "check_attribution_possible", "explain"]

#: Below this, other parts matter than before.
OTHER_REASONS = 0.8
#: So many of the worst samples are kept with all their numbers.
_WORST = 5
#: Effects below this share of the largest are rounding, and count as none.
_NO_EFFECT = 1e-3
#: How many orders of the parts the Shapley values are sampled from; each is gone both ways.
_ORDERS = 2

Attributions = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Explained:
    """How alike two models explain one sample.

    Attributes:
        sample: Its position in the data.
        occlusion: Rank correlation of what covering each part does.
        shapley: Rank correlation of the parts' Shapley values.
        same_decision: Whether both choose the same classes; None where nothing is chosen.
        other_reasons: Whether both answer alike, and yet other parts matter.
        grid: Rows and columns of parts.
        picture: The sample as a PNG in a data URI, where it is an image; only for the worst.
        attributions: By method, the values of the first and of the second model; only for the
            worst.
    """

    sample: int
    occlusion: float
    shapley: float
    same_decision: bool | None
    other_reasons: bool
    grid: tuple[int, int]
    picture: str = ""
    attributions: dict[str, tuple[list[float], list[float]]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def worst(self) -> float:
        """The lower of the two correlations."""
        return min(self.occlusion, self.shapley)


@dataclasses.dataclass(frozen=True)
class AttributionReport:
    """How alike two models explain their answers.

    Attributes:
        input: The input that was covered.
        output: The output whose answer was explained.
        samples: All that were compared, those that differ most first.
        verdict: What that means, in a sentence.
        threshold: Rank correlation below which reasons count as others.
        notes: What to know about the numbers.
    """

    input: str
    output: str
    samples: tuple[Explained, ...]
    verdict: str
    threshold: float = OTHER_REASONS
    notes: tuple[str, ...] = ()

    @property
    def occlusion(self) -> float:
        """Median rank correlation."""
        return statistics.median(each.occlusion for each in self.samples)

    @property
    def shapley(self) -> float:
        """Median rank correlation."""
        return statistics.median(each.shapley for each in self.samples)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with the medians."""
        return {
            **dataclasses.asdict(self),
            "occlusion": self.occlusion,
            "shapley": self.shapley,
        }


def check_attribution_possible() -> None:
    """Find out before long work whether attributions can be computed.

    Raises:
        OptionError: When a package is missing.
    """
    missing = [
        package
        for module, package in (("shap", "shap"), ("scipy", "scipy"), ("PIL", "pillow"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise OptionError(
            f"attributions need the package {' and '.join(missing)}: pip install 'onnxopt[explain]'"
        )


def explain(
    models: tuple[str | os.PathLike[str], str | os.PathLike[str]],
    feeds: Sequence[Feed],
    worker: Worker,
    *,
    output: str,
    given: bool = True,
    threads: int = 1,
    on_step: Callable[[str], None] = lambda step: None,
) -> AttributionReport:
    """Compare why two models answer as they do.

    Args:
        models: Paths of the two; the first one's answers are explained.
        feeds: Samples.
        worker: Where they run.
        output: Name of the output to explain.
        given: Whether the samples are the user's, and not made up.
        threads: Threads for one operator.
        on_step: Told what is being done.

    Raises:
        OptionError: When a package is missing.
        FeedError: When no input can be covered part by part.
        OnnxoptError: When a model cannot be run.
    """
    check_attribution_possible()
    samples = [_first_of_batch(feed) for feed in feeds]
    name = _input_to_cover(samples)
    notes = []
    if not given:
        notes.append("The inputs are made up: what matters in them says little; give --data.")
    with contextlib.ExitStack() as stack:
        scorers = []
        for model in models:
            scorers.append(Scorer(worker, model, output, threads))
            stack.callback(scorers[-1].close)
        outputs = [[scorer.output(feed) for feed in samples] for scorer in scorers]
        if any(each.dtype.kind != "f" for each in outputs[0]):
            raise ModelError(f"output '{output}' holds no numbers that could be explained")
        found = []
        for index, feed in enumerate(samples):
            on_step(f"explaining sample {index + 1} of {len(samples)}")
            sample = np.asarray(feed[name])
            same = [np.asarray(each[name]) for each in samples]
            alike = [each for each in same if each.shape == sample.shape]
            parts = segments_of(name, sample, baseline_of(alike))
            if parts.count < 3:
                raise FeedError(f"input '{name}' is too small to be covered part by part")
            answer = answer_of(output, outputs[0], index)
            decided = answer.same_decision(outputs[0][index], outputs[1][index])
            found.append(_explained(index, feed, parts, answer, scorers, decided))
    found.sort(key=lambda each: each.worst)
    kept = [
        each if place < _WORST else dataclasses.replace(each, picture="", attributions={})
        for place, each in enumerate(found)
    ]
    return AttributionReport(name, output, tuple(kept), _verdict(kept), notes=tuple(notes))


def _explained(
    index: int,
    feed: Feed,
    parts: Segments,
    answer: Answer,
    scorers: Sequence[Scorer],
    same_decision: bool | None,
) -> Explained:
    def scores(kept: NDArray[Any]) -> NDArray[np.float64]:
        """Of each set of parts that is kept, by model: [sets, models]."""
        wanted = np.asarray(kept) > 0.5
        return np.stack([each.scores(feed, parts, wanted, answer) for each in scorers], axis=1)

    occlusions = _occlusions(scores, parts.count)
    shapleys = _shapley_values(scores, parts.count)
    alike = _rank_correlation(*occlusions), _rank_correlation(*shapleys)
    return Explained(
        index,
        alike[0],
        alike[1],
        same_decision,
        same_decision is not False and min(alike) < OTHER_REASONS,
        parts.grid,
        picture(np.asarray(feed[parts.input]), parts.colours),
        {
            "occlusion": (_rounded(occlusions[0]), _rounded(occlusions[1])),
            "shapley": (_rounded(shapleys[0]), _rounded(shapleys[1])),
        },
    )


def _occlusions(
    scores: Callable[[NDArray[Any]], NDArray[np.float64]], count: int
) -> tuple[Attributions, Attributions]:
    """How much less of the answer is left without each part, in both models."""
    found = scores(np.vstack([np.ones((1, count)), 1 - np.eye(count)]))
    lost = found[:1] - found[1:]
    return lost[:, 0], lost[:, 1]


def _shapley_values(
    scores: Callable[[NDArray[Any]], NDArray[np.float64]], count: int
) -> tuple[Attributions, Attributions]:
    """What each part adds on average to sets of others, in both models, on the same sets."""
    import shap

    explainer = shap.explainers.Permutation(
        scores, shap.maskers.Independent(np.zeros((1, count))), seed=0
    )
    values = explainer(
        np.ones((1, count)),
        max_evals=_ORDERS * 2 * count + 1,
        batch_size=64,
        silent=True,
    ).values[0]
    return values[:, 0], values[:, 1]


def _rank_correlation(one: Attributions, other: Attributions) -> float:
    """Spearman's, of effects that are more than rounding; 1 where neither model sees any."""
    from scipy.stats import spearmanr

    one, other = _without_rounding(one), _without_rounding(other)
    flat = [not np.any(each != each[0]) for each in (one, other)]
    if any(flat):
        return 1.0 if all(flat) else 0.0
    return float(spearmanr(one, other).statistic)


def _without_rounding(values: Attributions) -> Attributions:
    """Values of which those that are mere rounding are 0, so that they make no order."""
    largest = float(np.abs(values).max(initial=0.0))
    return np.where(np.abs(values) < largest * _NO_EFFECT, 0.0, values)


def _first_of_batch(feed: Feed) -> Feed:
    """A feed of one sample; feeds that share no batch stay as they are."""
    sizes = {np.shape(value)[0] for value in feed.values() if np.ndim(value) > 0}
    if len(sizes) != 1 or sizes == {1}:
        return feed
    return {
        name: np.asarray(value)[:1] if np.ndim(value) > 0 else value for name, value in feed.items()
    }


def _input_to_cover(samples: Sequence[Feed]) -> str:
    """The input that says most: no mask, numbers before indices, then most to tell apart.

    Raises:
        FeedError: When none has one sample in a batch and more than two elements.
    """

    def told_apart(name: str) -> tuple[bool, bool, int]:
        arrays = [np.asarray(feed[name]) for feed in samples]
        distinct = max(len(np.unique(array)) for array in arrays[:4])
        return distinct > 2, arrays[0].dtype.kind == "f", distinct

    names = [
        name
        for name, value in samples[0].items()
        if np.asarray(value).dtype.kind in "fiu"
        and np.ndim(value) >= 2
        and np.shape(value)[0] == 1
        and np.size(value) > 2
    ]
    if not names:
        raise FeedError(
            "no input can be covered part by part: attributions need one with a batch of samples "
            "as its first dimension"
        )
    return max(names, key=told_apart)


def _verdict(found: Sequence[Explained]) -> str:
    others = [each for each in found if each.other_reasons]
    differ = [each for each in found if each.same_decision is False]
    count = f"{len(found):,} sample{'s' if len(found) != 1 else ''}"
    if others:
        return (
            f"On {len(others):,} of {count} the second model answers as the first does, but for "
            f"other reasons (rank correlation below {OTHER_REASONS})."
        )
    if differ:
        return f"On {len(differ):,} of {count} the second model decides otherwise."
    return f"The second model answers for the same reasons on all of {count}."


def _rounded(values: Attributions) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
