"""Worst-case activations on every kernel: what the runtime computes is what the model says.

Kernels overflow on x86 without VNNI only. Here they run on whatever machine this is; where QEMU is
installed (``qemu-user``), also on one with AVX2 and no VNNI, where weights that are not pair-safe
have to show what goes wrong.
"""

import shutil

import numpy as np
import onnx
import pytest

from benchmarks.saturation import EMULATOR, kernel_rows
from benchmarks.saturation_kernels import KERNELS, NAMES, case, feeds_of, weights_of
from onnxopt.runtime.hardware import probe_target
from tests.differential import run
from tests.passes.quantize.lowered import run_at

#: Rounding of an exact result to an 8-bit number, with some room for float32.
_ROUNDING = 0.52
_NO_EMULATOR = f"{EMULATOR[0]} is not there; Debian and Ubuntu have it in qemu-user"


def _furthest(model: onnx.ModelProto, exact: onnx.ModelProto, feeds: np.ndarray) -> float:
    return max(
        float(np.abs(run_at(model, {"x": each})[0] - run(exact, {"x": each})[0]).max())
        for each in feeds
    )


@pytest.mark.parametrize("name", KERNELS)
def test_pair_safe_weights_do_not_saturate_here(name: str) -> None:
    kernel = KERNELS[name]
    weights = weights_of(kernel, "pair-safe")
    assert weights is not None
    made = case(kernel, weights)
    assert _furthest(made.model, made.exact, feeds_of(kernel)) <= _ROUNDING * made.step


def test_weights_for_this_machine_do_not_saturate_here() -> None:
    safe = probe_target().pair_limit is not None
    kernel = KERNELS["MatMul, dynamic"]
    weights = weights_of(kernel, "pair-safe" if safe else "eight")
    assert weights is not None
    made = case(kernel, weights)
    assert _furthest(made.model, made.exact, feeds_of(kernel)) <= _ROUNDING * made.step


@pytest.mark.skipif(shutil.which(EMULATOR[0]) is None, reason=_NO_EMULATOR)
def test_only_pair_safe_weights_are_right_on_avx2_without_vnni() -> None:
    rows = kernel_rows()
    assert len(rows) == len(NAMES)
    for name, row in rows.items():
        assert row["target"] == "avx2"  # what `--target auto` would choose there
        for scheme in ("pair-safe", "seven"):
            assert max(row[scheme].values()) <= _ROUNDING, (name, scheme)
        if "depthwise" not in name:
            assert row["eight"]["default"] > 20, name
        if "channels first" in row:
            assert row["channels first"]["default"] > 20, name
