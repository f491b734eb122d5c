"""What becomes of each product."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

__all__ = ["Mode", "Plan"]


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """A mode for each product.

    Attributes:
        modes: By key of the product; what is not there stays float.
    """

    modes: Mapping[str, Mode]

    def mode(self, key: str) -> Mode:
        """The mode of a product."""
        return self.modes.get(key, Mode.FLOAT)

    def with_mode(self, mode: Mode, *keys: str) -> Plan:
        """The plan with another mode for some products."""
        return Plan({**self.modes, **dict.fromkeys(keys, mode)})

    def keys(self, *modes: Mode) -> list[str]:
        """The products that have one of these modes."""
        return [key for key, mode in self.modes.items() if mode in modes]

    @property
    def quantizes(self) -> bool:
        """Whether anything is in 8 bits."""
        return any(mode is not Mode.FLOAT for mode in self.modes.values())
