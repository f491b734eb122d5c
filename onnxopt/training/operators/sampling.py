"""Values of a map at places that are computed: GridSample."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from onnxopt.training.node_view import Builder, Call, NodeView

__all__ = ["BUILDERS"]

#: Names of opset 16 and of opset 20, and PyTorch's.
_MODES = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "bicubic": "bicubic",
    "cubic": "bicubic",
    "nearest": "nearest",
}


def _grid_sample(view: NodeView) -> Call:
    mode = view.string_attribute("mode", "linear")
    padding = view.string_attribute("padding_mode", "zeros")
    align = bool(view.int_attribute("align_corners", 0))
    view.require(mode in _MODES, f"mode {mode} is not known")
    view.require(padding in ("zeros", "border", "reflection"), f"padding {padding} is not known")

    def run(x: Tensor, grid: Tensor) -> Tensor:
        return functional.grid_sample(x, grid, _MODES[mode], padding, align)

    return Call(run, (view.tensor(0), view.tensor(1)))


BUILDERS: dict[str, Builder] = {"GridSample": _grid_sample}
