"""Weights that are mapped from a file."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.model import let_go_of_pages

_MEGABYTES = 32


def _mapped(folder: pathlib.Path) -> ir.ExternalTensor:
    numbers = np.arange(_MEGABYTES * 2**18, dtype=np.float32)
    numbers.tofile(folder / "weights.bin")
    return ir.ExternalTensor(
        "weights.bin",
        0,
        numbers.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape([numbers.size]),
        name="w",
        base_dir=folder,
    )


def _mapped_megabytes() -> float:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("RssFile:")[2].split()[0]) / 1024


def test_numbers_are_still_there(tmp_path: pathlib.Path) -> None:
    tensor = _mapped(tmp_path)
    array = tensor.numpy()
    before = array[:4].copy()
    let_go_of_pages(tensor)
    np.testing.assert_array_equal(array[:4], before)
    np.testing.assert_array_equal(tensor.numpy()[-3:], array.size - np.array([3, 2, 1]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel of Linux")
def test_memory_goes_back(tmp_path: pathlib.Path) -> None:
    tensor = _mapped(tmp_path)
    before = _mapped_megabytes()
    assert float(tensor.numpy().sum(dtype=np.float64)) > 0
    assert _mapped_megabytes() - before > _MEGABYTES * 0.9
    let_go_of_pages(tensor)
    assert _mapped_megabytes() - before < _MEGABYTES * 0.1


def test_what_is_not_mapped_is_left_alone(tmp_path: pathlib.Path) -> None:
    let_go_of_pages(None)
    let_go_of_pages(ir.tensor(np.ones(3, np.float32)))
    let_go_of_pages(_mapped(tmp_path))  # nobody has read it yet
