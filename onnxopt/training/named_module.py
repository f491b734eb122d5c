"""A module of the user's own, with inputs and outputs by name as an imported model has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from onnxopt.errors import OptionError

__all__ = ["NamedModule"]


class NamedModule(nn.Module):
    """Calls a module with inputs in order, and gives its outputs names.

    Args:
        module: Takes tensors in the order of ``inputs``; gives a tensor, several, or a dict.
        inputs: Names of the inputs.
        outputs: Names of the outputs, in order; those of a dict keep their own.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    def forward(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name.

        Raises:
            OptionError: When the module gives another number of outputs.
        """
        given: Any = self.module(*[feed[name] for name in self._inputs])
        if isinstance(given, Mapping):
            return dict(given)
        found = given if isinstance(given, tuple | list) else (given,)
        if len(found) != len(self._outputs):
            raise OptionError(
                f"the module gives {len(found)} outputs, but {len(self._outputs)} are named"
            )
        return dict(zip(self._outputs, found, strict=True))
