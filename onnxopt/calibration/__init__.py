"""One streaming pass over the data: what a model's tensors look like when it runs.

`observe` runs the float model on samples, one by one, in the runtime's child process, where
observers look at the tensors that were asked for. Its memory does not depend on the number of
samples. `Observations` can be saved, loaded and merged.
"""

from __future__ import annotations

from onnxopt.calibration.channels import ChannelObserver, Channels
from onnxopt.calibration.gram import Gram, GramObserver
from onnxopt.calibration.histogram import Histogram, HistogramObserver
from onnxopt.calibration.layers import layer_input
from onnxopt.calibration.observations import Observations
from onnxopt.calibration.observe import observe
from onnxopt.calibration.observer import Observer, ObserverSpec
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
