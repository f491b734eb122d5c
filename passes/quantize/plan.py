"""What becomes of each product."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

__all__ = ["Mode", "Plan", "treatment"]


class Mode(enum.StrEnum):
    """How a product is computed."""

    #: As it was.
    FLOAT = "float"
    #: 8 bits in and out, with ranges from calibration.
    STATIC = "static"
    #: 8 bits in, float out.
    STATIC_INPUT = "static-input"
    #: 8 bits in, float out, with the range of each run's own input.
    DYNAMIC = "dynamic"


#: What a treatment begins with whose input is divided first.
_SMOOTHED = "smoothed-"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A mode for each product.

    Attributes:
        modes: By key of the product; what is not there stays float.
        smoothed: Products whose input is divided first, so that its channels are even.
    """

    modes: Mapping[str, Mode]
    smoothed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, treatments: Mapping[str, str]) -> Plan:
        """From what `treatment` gave, by key of the product."""
        modes = {key: Mode(text.removeprefix(_SMOOTHED)) for key, text in treatments.items()}
        smoothed = (key for key, text in treatments.items() if text.startswith(_SMOOTHED))
        return cls(modes, frozenset(smoothed))

    def mode(self, key: str) -> Mode:
        """The mode of a product."""
        return self.modes.get(key, Mode.FLOAT)

    def keys(self, *modes: Mode) -> list[str]:
        """The products that have one of these modes."""
        return [key for key, mode in self.modes.items() if mode in modes]

    @property
    def quantizes(self) -> bool:
        """Whether anything is in 8 bits."""
        return any(mode is not Mode.FLOAT for mode in self.modes.values())


def treatment(mode: Mode, *, smoothed: bool = False) -> str:
    """A mode, and whether the input is divided first, as one text."""
    return f"{_SMOOTHED if smoothed else ''}{mode.value}"
