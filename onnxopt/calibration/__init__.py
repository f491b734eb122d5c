"""One streaming pass over the data: what a model's tensors look like when it runs.

`observe` runs the float model on samples, one by one, in the runtime's child process, where
observers look at the tensors that were asked for. Its memory does not depend on the number of
samples. `Observations` can be saved, loaded and merged.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxopt.calibration.channels import ChannelObserver, Channels
    from onnxopt.calibration.gram import Gram, GramObserver
    from onnxopt.calibration.histogram import Histogram, HistogramObserver
    from onnxopt.calibration.layers import layer_input
    from onnxopt.calibration.observations import Observations
    from onnxopt.calibration.observer import Observer, ObserverSpec
    from onnxopt.calibration.observing import observe
    from onnxopt.calibration.range import Range, RangeObserver
    from onnxopt.calibration.rows import Rows, RowsObserver

__all__ = [
    "ChannelObserver",
    "Channels",
    "Gram",
    "GramObserver",
    "Histogram",
    "HistogramObserver",
    "Observations",
    "Observer",
    "ObserverSpec",
    "Range",
    "RangeObserver",
    "Rows",
    "RowsObserver",
    "layer_input",
    "observe",
]

_HOMES = {
    "ChannelObserver": "onnxopt.calibration.channels",
    "Channels": "onnxopt.calibration.channels",
    "Gram": "onnxopt.calibration.gram",
    "GramObserver": "onnxopt.calibration.gram",
    "Histogram": "onnxopt.calibration.histogram",
    "HistogramObserver": "onnxopt.calibration.histogram",
    "Observations": "onnxopt.calibration.observations",
    "Observer": "onnxopt.calibration.observer",
    "ObserverSpec": "onnxopt.calibration.observer",
    "Range": "onnxopt.calibration.range",
    "RangeObserver": "onnxopt.calibration.range",
    "Rows": "onnxopt.calibration.rows",
    "RowsObserver": "onnxopt.calibration.rows",
    "layer_input": "onnxopt.calibration.layers",
    "observe": "onnxopt.calibration.observing",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for and nothing else: the child process needs the observers alone."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxopt.calibration' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
