"""Numbers in their two forms: tensors, and small numpy arrays for shapes and what is made of them.

Shapes are computed in Python, as ``numpy`` arrays: that keeps them off the autograd tape and lets
`torch.export` trace them. While it traces, sizes are symbols, and the arrays hold objects.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxopt.rewriting import Refuse

__all__ = [
    "Host",
    "array_of",
    "as_host",
    "host_to_tensor",
    "integers",
    "tensor_of",
    "tensor_to_host",
    "torch_type",
]

#: A small array on the host: int64, bool or float32; objects while `torch.export` traces.
Host = NDArray[Any]

_TYPES: dict[ir.DataType, Any] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    # PyTorch computes nothing in four bits; a byte holds the same numbers.
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
}


def torch_type(dtype: ir.DataType) -> Any:
    """The PyTorch type that holds the numbers of an ONNX type.

    Raises:
        Refuse: There is none.
    """
    if dtype not in _TYPES:
        raise Refuse(f"element type {dtype.name}")
    return _TYPES[dtype]


def as_host(items: Any) -> Host:
    """Make an array of what a computation on arrays gave."""
    if isinstance(items, np.ndarray) and items.dtype != object:
        return items
    array = np.array(items, dtype=object)
    flat = array.reshape(-1).tolist()
    if any(isinstance(each, torch.SymInt | torch.SymFloat | torch.SymBool) for each in flat):
        return array
    if not flat:
        return array.astype(np.int64)
    plain: Host = np.array(flat).reshape(array.shape)
    return plain.astype(np.float32) if plain.dtype.kind == "f" else plain


def integers(array: Host) -> list[Any]:
    """The numbers of an array, flat, as Python integers (or symbols)."""
    flat: list[Any] = array.reshape(-1).tolist()
    return flat


def host_to_tensor(array: Host, device: Any) -> Tensor:
    """The tensor of an array."""
    if array.dtype != object:
        return tensor_of(array).to(device)
    numbers = [_symbol_to_tensor(each, device) for each in array.reshape(-1).tolist()]
    return torch.stack(numbers).reshape(array.shape)


def _symbol_to_tensor(number: Any, device: Any) -> Tensor:
    is_real = isinstance(number, float | torch.SymFloat)
    return torch.full((), number, dtype=torch.float32 if is_real else torch.int64, device=device)


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A tensor of its own with the numbers of an array.

    Raises:
        Refuse: PyTorch has no type for them.
    """
    torch_type(ir.DataType.from_numpy(array.dtype))
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype == ml_dtypes.int4:
        array = array.astype(np.int8)
    elif array.dtype == ml_dtypes.uint4:
        array = array.astype(np.uint8)
    return torch.from_numpy(np.array(array, order="C"))


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor, as an array of the same type."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        bits: NDArray[Any] = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: NDArray[Any] = tensor.numpy()
    return array


def tensor_to_host(tensor: Tensor) -> Host:
    """The array of a small tensor."""
    if torch.compiler.is_exporting():
        return as_host(tensor.tolist())
    return array_of(tensor)
