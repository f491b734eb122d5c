"""Tells whoever waits which pass runs.

No count of passes: they differ too much in cost for the number left to say how long it will take.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxopt.pass_contract import Instrument, Pass

__all__ = ["Telling"]


class Telling(Instrument):
    """Tells the name of each pass before it runs.

    Args:
        on_step: Told.
    """

    def __init__(self, on_step: Callable[[str], None]) -> None:
        self._on_step = on_step

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Tell which one it is."""
        self._on_step(f"optimizing: {pass_.name}")
