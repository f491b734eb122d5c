"""Targets: by name, and what this machine is."""

import platform

import pytest

from onnxopt.errors import OptionError
from onnxopt.runtime import hardware
from onnxopt.runtime.hardware import TARGETS, probe_target, resolve_target


@pytest.mark.parametrize(
    ("flags", "saturates", "name"),
    [
        ({"avx2", "avx512bw", "avx512_vnni"}, False, "vnni"),
        ({"avx2", "avx_vnni"}, False, "vnni"),
        ({"avx2", "avx512bw"}, True, "avx512"),
        ({"avx2"}, True, "avx2"),
        ({"avx2", "avx512bw", "avx512_vnni"}, True, "avx2"),  # an emulator shows the host's flags
        (set(), True, "avx2"),  # not Linux
        (set(), False, "vnni"),
        ({"sse4_1"}, False, "portable"),
    ],
)
def test_a_product_and_flags_say_what_a_machine_is(
    flags: set[str], saturates: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(hardware, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr(hardware, "sums_saturate", lambda: saturates)
    assert probe_target().name == name


def test_an_unknown_processor_gets_what_is_exact_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "processor_flags", frozenset)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert probe_target().name == "portable"
    assert TARGETS["portable"].pair_limit == 128
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert resolve_target("auto").signed_activations


def test_names_are_checked() -> None:
    assert resolve_target("avx2").pair_limit == 128
    assert resolve_target("vnni").pair_limit is None
    with pytest.raises(OptionError, match="auto, avx2, avx512, vnni, arm64, portable"):
        resolve_target("pentium")
