"""The processors that a model can be made for, and what their 8-bit kernels compute exactly.

What matters to whoever chooses 8-bit numbers (ONNX Runtime, ``mlas/lib/platform.cpp``):

- x86 with VNNI multiplies unsigned activations by signed weights and adds four products in 32 bits:
  nothing saturates. Other pairs of types are slower.
- x86 without VNNI does the same with ``vpmaddubsw``, which adds two neighbouring products in 16
  bits and saturates. 255 (a + b) stays within 16 bits when the sum of the two weights is within
  -128..128, taken over those of one sign.
- ARM64 has kernels for both signs; signed activations with symmetric weights are the fastest.
"""

from __future__ import annotations

import dataclasses
import platform
from typing import Literal

from onnxopt.errors import OptionError
from onnxopt.runtime.probe import processor_flags
from onnxopt.runtime.saturation import sums_saturate

__all__ = ["TARGETS", "Target", "probe_target", "resolve_target"]

TargetName = Literal["avx2", "avx512", "vnni", "arm64", "portable", "npu-u16", "npu-s16"]


@dataclasses.dataclass(frozen=True)
class Target:
    """What 8-bit numbers should look like for a kind of processor.

    Attributes:
        name: What it is called on the command line.
        signed_activations: Whether activations are int8 rather than uint8.
        pair_limit: The sum of two weights of one sign that a kernel adds up must be within
            plus and minus this; None where no kernel saturates.
        activation_bits: Bits of activations.
    """

    name: TargetName
    signed_activations: bool
    pair_limit: int | None
    activation_bits: int = 8

    @property
    def is_timed_here(self) -> bool:
        """Whether times on this machine say anything: the runtime has no 16-bit kernels on CPUs."""
        return self.activation_bits == 8


TARGETS: dict[str, Target] = {
    "avx2": Target("avx2", False, 128),
    "avx512": Target("avx512", False, 128),
    "vnni": Target("vnni", False, None),
    "arm64": Target("arm64", True, None),
    # Exact wherever it is deployed, and the types for which every processor has a kernel.
    "portable": Target("portable", False, 128),
    # Accelerators that multiply activations of 16 bits by weights of 8.
    "npu-u16": Target("npu-u16", False, None, 16),
    "npu-s16": Target("npu-s16", True, None, 16),
}


def probe_target() -> Target:
    """The target that this machine is; portable where it is none that is known.

    On x86 the runtime's own product says whether sums saturate; the processor's flags only give
    the kind a name, and are not believed where they say otherwise.
    """
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return TARGETS["arm64"]
    if machine not in ("x86_64", "amd64"):
        return TARGETS["portable"]
    flags = processor_flags()
    has_vnni = bool(flags & {"avx512_vnni", "avx_vnni"})
    if sums_saturate():
        return TARGETS["avx512" if "avx512bw" in flags and not has_vnni else "avx2"]
    return TARGETS["vnni" if has_vnni or not flags else "portable"]


def resolve_target(name: str) -> Target:
    """The target of this name; ``auto`` is this machine.

    Raises:
        OptionError: When there is none of that name.
    """
    if name == "auto":
        return probe_target()
    if name not in TARGETS:
        raise OptionError(f"there is no target '{name}'; it is auto, {', '.join(TARGETS)}")
    return TARGETS[name]
