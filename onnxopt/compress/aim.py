"""How much to prune, so that a target is met: found by trying, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

from onnxopt.compress.judge import NEAR

__all__ = ["aim"]

#: No more than this is pruned at first; beyond it little is left to train.
_MOST = 0.85
_LEAST = 0.05
#: So many amounts are tried, beside none at all.
_TRIES = 4
#: An amount that leaves less than this share of the target prunes more than it need.
_TOO_MUCH = 0.9


def aim(left: Callable[[float], float], share: float) -> tuple[float, dict[float, float]]:
    """The least amount of pruning that meets a target.

    What is left goes about linearly with what is pruned, not through the origin: a part of the time
    cannot be pruned away, and widths are rounded. So the next amount is read off the line through
    the two nearest that were tried, one on each side of the target where there are such. What is
    measured on a busy machine scatters, so that less can seem to be left after pruning less: where
    it does, neighbours share their mean (isotonic regression).

    Args:
        left: What is left of the target's quantity after pruning an amount, as a share.
        share: What may be left.

    Returns:
        The amount, 0 where nothing need be pruned, and what was left after each that was tried. If
        none meets the target, the one that comes nearest.
    """
    found = {0.0: left(0.0)}
    if found[0.0] <= share * NEAR:
        return 0.0, found
    amount = _rounded(1 - share / found[0.0])
    for _ in range(_TRIES):
        if amount in found:
            break
        found[amount] = left(amount)
        if share * _TOO_MUCH <= found[amount] <= share * NEAR:
            break
        amount = _rounded(_next(_falling(found), share))
    smooth = _falling(found)
    good = [each for each, rest in smooth.items() if rest <= share * NEAR]
    return (min(good) if good else min(smooth, key=lambda each: (smooth[each], found[each]))), found


def _falling(found: dict[float, float]) -> dict[float, float]:
    """The nearest values, by squares, that nowhere rise with the amount."""
    pools: list[tuple[list[float], float]] = []
    for amount in sorted(found):
        amounts, mean = [amount], found[amount]
        while pools and pools[-1][1] < mean:
            before, other = pools.pop()
            mean = (len(before) * other + len(amounts) * mean) / (len(before) + len(amounts))
            amounts = before + amounts
        pools.append((amounts, mean))
    return {amount: mean for amounts, mean in pools for amount in amounts}


def _next(found: dict[float, float], share: float) -> float:
    """Where the line through the two nearest points meets the target."""
    over = {each: rest for each, rest in found.items() if rest > share}
    under = {each: rest for each, rest in found.items() if rest <= share}
    one = max(over)
    others = under or {each: rest for each, rest in over.items() if rest > over[one]}
    if not others:
        return _MOST
    other = min(others) if under else max(others)
    slope = (found[one] - found[other]) / (one - other)
    return one + (share - found[one]) / slope if slope < 0 else _MOST


def _rounded(amount: float) -> float:
    return round(min(_MOST, max(_LEAST, amount)), 2)
