"""The machine and the versions that a measurement belongs to."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

__all__ = ["environment", "processor_flags"]

_PACKAGES = ("onnxopt", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
#: Instruction sets that decide which kernels ONNX Runtime uses.
_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def environment(threads: int | None) -> dict[str, Any]:
    """Processor, instruction sets, cores, threads used (None where nothing ran), and versions."""
    return {
        "processor": _processor_name(),
        "instruction_sets": [name for name in _FEATURES if name in processor_flags()],
        "cores": os.cpu_count(),
        "threads": threads,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> list[str]:
    try:
        return pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return []


def _processor_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """Instruction sets by their names in /proc/cpuinfo; none where that is not known."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
