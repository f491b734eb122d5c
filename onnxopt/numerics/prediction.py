"""How much more noise other samples may have than those that were seen."""

from __future__ import annotations

import math

__all__ = ["most_noise"]


def most_noise(spread: float, deviations: float) -> float:
    """How many times the noise that was seen as many other samples have at most.

    Noise is often the work of a few samples, such as the ones that are nearly undecided, and then
    neither normal nor symmetric. A sum of squares whose standard error is a share s of it is like a
    chi-squared variable of 2 / s^2 degrees of freedom (Satterthwaite 1946, "An approximate
    distribution of estimates of variance components"); the ratio of two such sums is distributed
    like F, and its quantiles are near to those of Paulson (1942, "An approximate normalization of
    the analysis of variance distribution").

    Args:
        spread: Standard error of the noise that was seen, as a share of it.
        deviations: Quantile, in standard deviations of a normal variable: 1.645 for 95 %.

    Returns:
        At least 1; infinite where so little was seen that there is no telling.
    """
    variance = spread**2 / 9  # of the cube root of chi-squared over its degrees of freedom
    mean, reach = (1 - variance) ** 2, deviations**2 * variance
    if reach == 0:
        return 1.0
    if reach >= mean:
        return math.inf
    # The cube root x of the quantile: mean (x - 1)^2 = reach (x^2 + 1), x > 1.
    root = (mean + math.sqrt(reach * (2 * mean - reach))) / (mean - reach)
    return float(root**3)
