"""What a search asks of those who want something treated."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from onnxopt.runtime.messages import Kernel

__all__ = ["Choices", "Subject"]

#: A treatment for each region that gets one.
Choices = Mapping[str, str]


class Subject(Protocol):
    """What is to be treated."""

    def regions(self) -> Sequence[str]:
        """The regions, by name."""

    def treatments(self, region: str) -> Sequence[str]:
        """What can be done to a region."""

    def build(self, choices: Choices) -> contextlib.AbstractContextManager[pathlib.Path]:
        """A model with these treatments, as a file that is there while the context lasts."""

    def owner(self, kernel: str) -> str | None:
        """The region that a kernel of the runtime, by name, belongs to."""

    def misplaced(self, kernels: Sequence[Kernel], choices: Choices) -> Sequence[str]:
        """Regions for which the runtime did not choose the kernels that a treatment is for."""

    def bytes_saved(self, region: str, treatment: str, others: Choices | None = None) -> int:
        """About how much smaller a treatment makes the file; negative where it grows.

        Args:
            region: The region.
            treatment: What is done to it.
            others: What is done to other regions; all that can be, when None.
        """

    def size(self, choices: Choices) -> int:
        """Bytes of a model with these treatments, weights included."""

    def borders(self) -> Sequence[tuple[str, str, int]]:
        """Regions that hand numbers to one another, and how many numbers.

        Where one of the two has a treatment of `crossing_costs` and the other has none, these
        numbers have to be converted.
        """

    def crosses(self, first: str | None, second: str | None) -> bool:
        """Whether numbers are converted between regions with these treatments; None is none."""
