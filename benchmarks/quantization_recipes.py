"""Ways to quantize a model, each run as a process of its own.

Usage::

    python -m benchmarks.quantization_recipes RECIPE MODEL.onnx CALIBRATION_FOLDER OUT.onnx

ONNX Runtime's recipes are its best practice: pre-processed as its documentation says, uint8
activations with int8 weights, a scale for each channel, ``reduce_range`` where the processor has no
VNNI. Those that are ``helped`` get the model as our exact passes leave it, and in an opset that has
scales for each channel: what remains is the difference between the quantizers.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt.runtime.hardware import probe_target

__all__ = ["RECIPES", "static_u8s8"]

_PER_CHANNEL_OPSET = 13


class _Reader:
    """Feeds for ONNX Runtime's calibrators."""

    def __init__(self, folder: Path) -> None:
        self._files = iter(sorted(folder.glob("*.npz")))

    def get_next(self) -> dict[str, Any] | None:
        file = next(self._files, None)
        return None if file is None else dict(np.load(file))


def _onnxopt(model: Path, data: Path, target: Path) -> None:
    import onnxopt

    onnxopt.optimize(model, target, data=data)


def _ceiling(model: Path, data: Path, target: Path) -> None:
    """Whatever is fastest in 8 bits, without a budget: what could be had at most."""
    import onnxopt
    from onnxopt.accuracy import Budget

    budget = Budget(min_sqnr=None, min_agreement=None)
    onnxopt.optimize(model, target, data=data, budget=budget)


def _exact(model: Path, data: Path, target: Path) -> None:
    import onnxopt

    onnxopt.optimize(model, target, data=data, passes="exact")


def static_u8s8(model: Path, data: Path, target: Path) -> None:
    """ONNX Runtime's static quantization with weights of 7 bits, on the model as we simplify it."""
    _static("MinMax", helped=True, reduce_range=True)(model, data, target)


def _static(
    method: str, *, helped: bool = False, reduce_range: bool | None = None
) -> Callable[[Path, Path, Path], None]:
    """ONNX Runtime's static quantization, prepared as it says or, where that fails, by us."""

    def quantize(model: Path, data: Path, target: Path) -> None:
        from onnxruntime import quantization as q
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            if helped:
                _prepare(model, data, prepared)
            else:
                quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
            q.quantize_static(
                str(prepared),
                str(target),
                _Reader(data),
                quant_format=q.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=_needs_seven_bits() if reduce_range is None else reduce_range,
                activation_type=q.QuantType.QUInt8,
                weight_type=q.QuantType.QInt8,
                calibrate_method=getattr(q.CalibrationMethod, method),
            )

    return quantize


def _needs_seven_bits() -> bool:
    return probe_target().pair_limit is not None


def _prepare(model: Path, data: Path, target: Path) -> None:
    """Our exact passes, and the opset that scales for each channel need."""
    import onnx
    from onnx.version_converter import convert_version

    _exact(model, data, target)
    made = onnx.load(target)
    if made.opset_import[0].version < _PER_CHANNEL_OPSET:
        onnx.save(convert_version(made, _PER_CHANNEL_OPSET), target)


def _dynamic(model: Path, data: Path, target: Path) -> None:
    del data
    from onnxruntime import quantization as q

    q.quantize_dynamic(
        str(model),
        str(target),
        per_channel=True,
        reduce_range=_needs_seven_bits(),
    )


RECIPES: Mapping[str, Callable[[Path, Path, Path], None]] = {
    "onnxopt": _onnxopt,
    "onnxopt-ceiling": _ceiling,
    "onnxopt-exact": _exact,
    "ort-minmax": _static("MinMax"),
    "ort-entropy": _static("Entropy"),
    "ort-percentile": _static("Percentile"),
    "ort-minmax-helped": _static("MinMax", helped=True),
    "ort-entropy-helped": _static("Entropy", helped=True),
    "ort-percentile-helped": _static("Percentile", helped=True),
    "ort-dynamic": _dynamic,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", choices=tuple(RECIPES))
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("target", type=Path)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    RECIPES[chosen.recipe](chosen.model, chosen.data, chosen.target)


if __name__ == "__main__":
    main()
