"""What makes the noise of a layer: the largest of the parts that can be told apart.

All parts are powers, summed over samples, beside the power S of the float values x:

- clipping and rounding of the layer's own numbers: what its scale and zero point make of x;
- bias: the squared mean error of each channel, as often as there are numbers;
- weights: sum over channels c of |dw_c|^2 / |w_c|^2 S_c, dw being what is left of the weights when
  the whole numbers are scaled as well as can be (inputs taken for white noise);
- saturation: what the fast kernels give beside what unoptimized ones do, where that is much more
  than such differences of the inputs, which come of single steps that are rounded otherwise;
- upstream: the relative noise of the noisiest input, times S (a gain of 1 for noise as for signal).

Channels that have been given another scale (as smoothing and folding do) are compared after the
scale that suits them best has been taken off; that is no noise.

Estimates, then, to say where to look; only the noise itself is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxopt.noise.counterparts import Counterpart

__all__ = ["Evidence", "reason"]

Array = np.ndarray[Any, Any]

#: Above this a layer has no noise to speak of.
_FINE_DB = 60.0
#: A range of which less than this is used is wider than it should be.
_NARROW = 0.5
#: Scaled channels are told by so many decibels that are gained when the scale is taken off.
_RESCALED_DB = 10.0
#: With fewer numbers of each channel, a scale could account for anything.
_ENOUGH = 64
#: Fast kernels saturate if they are further off than their inputs are by this factor in power.
_SATURATES = 16.0
#: A part that is less than this share of the noise does not explain it.
_EXPLAINS = 0.2


class Evidence:
    """What has been seen of one value in both models.

    Args:
        pair: The value and its counterpart.
    """

    def __init__(self, pair: Counterpart) -> None:
        self.pair = pair
        self.signal = self.noise = self.clipping = self.rounding = self.saturation = 0.0
        self.least, self.greatest = math.inf, -math.inf
        self.size = 0  # numbers
        self.count = 0  # numbers of each channel
        self.errors: Array | None = None  # sums of errors by channel
        self.powers: Array | None = None  # of the signal, by channel
        self._products: Array | None = None  # sums of x y and of y y, by channel [2, channels]
        self.mismatch = ""

    def add(self, expected: Any, actual: Any, unoptimized: Any = None) -> None:
        """Take in one sample: float arrays of the first model, the second, and that one unfused."""
        if getattr(expected, "shape", None) != getattr(actual, "shape", None):
            self.mismatch = "has another shape"
            return
        if expected.dtype.kind != "f" or actual.dtype.kind != "f" or not expected.size:
            return
        x, y = expected.astype(np.float64), actual.astype(np.float64)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            self.mismatch = "is not finite"
            return
        error = y - x
        self.size += x.size
        self.signal += float(np.square(x).sum())
        self.noise += float(np.square(error).sum())
        self.least, self.greatest = (
            min(self.least, float(x.min())),
            max(self.greatest, float(x.max())),
        )
        codes = self.pair.codes
        if codes is not None:
            cut = codes.cut(x)
            self.clipping += float(np.square(cut - x).sum())
            self.rounding += float(np.square(codes.rounded(cut) - cut).sum())
        if unoptimized is not None and unoptimized.shape == y.shape:
            self.saturation += float(np.square(y - unoptimized).sum())
        self._add_channels(x, y)

    def _add_channels(self, x: Array, y: Array) -> None:
        if x.ndim < 2:
            return
        axis = 1 if x.ndim > 3 or (x.ndim == 3 and self._is_convolution()) else x.ndim - 1
        others = tuple(each for each in range(x.ndim) if each != axis)
        errors, powers = (y - x).sum(axis=others), np.square(x).sum(axis=others)
        products = np.array([(x * y).sum(axis=others), np.square(y).sum(axis=others)])
        if self.errors is None or self.powers is None or self._products is None:
            self.errors, self.powers, self._products = errors, powers, products
        elif len(self.errors) == len(errors):
            self.errors, self.powers = self.errors + errors, self.powers + powers
            self._products = self._products + products
        self.count += x.size // x.shape[axis]

    def _is_convolution(self) -> bool:
        return self.pair.node is not None and "Conv" in self.pair.node.op_type

    @property
    def sqnr_db(self) -> float:
        """Signal to noise over all samples."""
        if self.mismatch:
            return -math.inf
        if self.noise == 0:
            return math.inf
        return _decibels(self.signal, self._own_noise)

    @property
    def is_rescaled(self) -> bool:
        """Whether the channels have other scales than in the first model."""
        return self._own_noise < self.noise

    @property
    def relative(self) -> float:
        """Noise power beside the signal's."""
        return self._own_noise / self.signal if self.signal else 0.0

    @property
    def _own_noise(self) -> float:
        """Noise without what other scales of channels make."""
        if self._products is None or self.powers is None or self.count < _ENOUGH:
            return self.noise
        along, lengths = self._products
        fitted = np.divide(np.square(along), lengths, out=np.zeros_like(along), where=lengths > 0)
        left = max(float((self.powers - fitted).sum()), 1e-12 * self.signal)
        return left if left < self.noise * 10 ** (-_RESCALED_DB / 10) else self.noise

    @property
    def bias(self) -> float:
        """Power of the mean errors."""
        if self.errors is None or not self.count:
            return 0.0
        return float(np.square(self.errors).sum()) / self.count


def reason(own: Evidence, sources: Sequence[Evidence], weights: Array | None) -> tuple[str, str]:
    """The cause of most of a layer's noise, and a phrase that says so."""
    if own.mismatch:
        return "mismatch", own.mismatch
    if own.sqnr_db >= _FINE_DB:
        return "", ""
    if own.is_rescaled:
        return "", "its channels have other scales here; compared without them"
    worst = max(sources, key=lambda each: each.relative, default=None)
    rounded_weights = _weight_noise(own, weights)
    parts = {
        "clipping": own.clipping,
        "rounding": own.rounding,
        "bias": own.bias,
        "weights": rounded_weights,
        "saturation": _saturated(own, sources),
        "upstream": 0.0 if worst is None else worst.relative * own.signal,
    }
    cause = max(parts, key=lambda each: parts[each])
    if parts[cause] < _EXPLAINS * own.noise:
        if worst is None or worst.relative == 0:
            return "arithmetic", "rounding of what it reads to 8 bits as it runs"
        return "arithmetic", (
            f"noise of its inputs adds up here ('{worst.pair.layer}', {worst.sqnr_db:.0f} dB)"
        )
    codes = own.pair.codes
    match cause:
        case "clipping":
            assert codes is not None
            return cause, (
                f"clipping: values from {own.least:.3g} to {own.greatest:.3g}, range "
                f"{codes.low:.3g} to {codes.high:.3g}"
            )
        case "rounding":
            assert codes is not None
            used = (own.greatest - own.least) / max(codes.high - codes.low, 1e-300)
            if used < _NARROW:
                return "range", f"range too wide: only {used:.0%} of it is used"
            return cause, f"rounding to {codes.steps} steps: most values are small beside the range"
        case "bias":
            return cause, f"bias: {own.bias / own.noise:.0%} of the noise is a mean that is off"
        case "weights":
            decibels = _decibels(own.signal, rounded_weights)
            return cause, f"weights: as they are rounded, they are {decibels:.0f} dB true"
        case "saturation":
            return cause, "saturation: sums overflow in the runtime's fast kernels on this machine"
    assert worst is not None
    return cause, f"inherited from '{worst.pair.layer}' ({worst.sqnr_db:.0f} dB)"


def _saturated(own: Evidence, sources: Sequence[Evidence]) -> float:
    """Power of what the fast kernels of this very layer change, as far as it is saturation."""
    codes = own.pair.codes
    if codes is not None and own.saturation < own.size * float(codes.scale.max()) ** 2:
        return 0.0  # a step or so: rounded otherwise
    inherited = max((each.saturation / each.signal for each in sources if each.signal), default=0.0)
    return own.saturation if own.saturation > _SATURATES * inherited * own.signal else 0.0


def _weight_noise(own: Evidence, weights: Array | None) -> float:
    """Power of the noise that rounded weights make, if inputs were white."""
    if weights is None or own.pair.weights is None or own.powers is None:
        return 0.0
    numbers, zero = own.pair.weights
    outputs = len(own.powers)
    rows = _rows(numbers.astype(np.float64) - _beside(zero, numbers, outputs), outputs)
    floats = _rows(weights.astype(np.float64), outputs)
    if rows is None or floats is None or rows.shape != floats.shape:
        return 0.0
    power = np.square(floats).sum(axis=1)
    along = (rows * floats).sum(axis=1)
    lengths = np.square(rows).sum(axis=1)
    left = power - np.divide(np.square(along), lengths, out=np.zeros_like(along), where=lengths > 0)
    shares = np.divide(left, power, out=np.zeros_like(left), where=power > 0)
    return float((shares.clip(0.0) * own.powers).sum())


def _beside(zero: Array, numbers: Array, outputs: int) -> Array:
    if zero.size == 1:
        return zero.reshape(())
    axis = 0 if numbers.ndim > 2 or numbers.shape[-1] != outputs else numbers.ndim - 1
    return zero.reshape([-1 if each == axis else 1 for each in range(numbers.ndim)])


def _rows(array: Array, outputs: int) -> Array | None:
    """One row for each output: kernels as they are, matrices [in, out] turned; None if neither."""
    if array.ndim == 2 and array.shape[1] == outputs:
        return array.T
    return array.reshape(outputs, -1) if array.ndim >= 2 and array.shape[0] == outputs else None


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else -math.inf
