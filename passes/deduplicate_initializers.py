"""Store once what is stored twice.

Initializers of the same element type, shape and bytes become one; bytes decide, so -0.0 and 0.0 are
two, and NaN equals itself. An initializer in a body of control flow may give way to one of the
graphs around it.

The cost is small where nothing is equal: tensors are grouped by type and shape, then by a sample of
their bytes, and only those that still look alike are read, one at a time and in chunks where they
lie in another file. Their digests are remembered for the next round.

Exact. Left alone: initializers that can be overridden (also graph inputs), that are graph outputs,
or whose name is hidden where it would be read.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.scopes import Scopes
from onnxopt.model import let_go_of_pages
from onnxopt.pass_contract import Outcome, Pass, Refusal
from onnxopt.rewriting import drop_unused_initializer

__all__ = ["DeduplicateInitializers"]

#: Up to so many bytes a tensor is its own sample; of a larger one, blocks all over it are.
_SAMPLE_BYTES, _SAMPLE_BLOCKS = 1024, 16
_CHUNK_BYTES = 1 << 24
_META_DIGEST = "onnxopt.digest"


class DeduplicateInitializers(Pass):
    """Store once what is stored twice."""

    name = "deduplicate-initializers"
    _rule = "merge-equal-initializers"

    def run(self, model: ir.Model) -> Outcome:
        """Merge equal initializers in all graphs, and in the bodies inside functions."""
        outcome = Outcome(model, False)
        for root in (model.graph, *(function.graph for function in model.functions.values())):
            scopes = Scopes(root)
            candidates = [
                value
                for graph in scopes.graphs  # outer graphs first
                for value in graph.initializers.values()
                if value.const_value is not None
                and not value.is_graph_input()
                and not value.is_graph_output()
            ]
            for group in _equal(candidates):
                self._merge(group, scopes, outcome)
        outcome.modified = bool(outcome.rewritten)
        return outcome

    def _merge(self, group: list[ir.Value], scopes: Scopes, outcome: Outcome) -> None:
        kept: list[ir.Value] = []
        for value in group:
            if self.max_rewrites is not None and outcome.rewritten.total() >= self.max_rewrites:
                return
            outcome.matched[self._rule] += bool(kept)
            twin = next((each for each in kept if scopes.can_stand_for(each, value)), None)
            if twin is not None and _same_bytes(_tensor(twin), _tensor(value)):
                value.replace_all_uses_with(twin)
                drop_unused_initializer(value)
                outcome.rewritten[self._rule] += 1
                continue
            if kept:
                reason = "the other is not visible where this one is read"
                outcome.refusals.append(Refusal(self._rule, reason, value.name or ""))
            kept.append(value)


def _equal(values: Iterable[ir.Value]) -> list[list[ir.Value]]:
    """Groups of two or more initializers with equal tensors, each in the given order."""
    groups = _split([list(values)], _kind)
    groups = _split(groups, _sample)
    return _split(groups, _digest)


def _split(
    groups: list[list[ir.Value]], key: Callable[[ir.TensorProtocol], Hashable]
) -> list[list[ir.Value]]:
    """Split groups by a key of the tensors, and leave out who is alone then."""
    found: list[list[ir.Value]] = []
    for group in groups:
        parts: dict[Hashable, list[ir.Value]] = defaultdict(list)
        for value in group:
            parts[key(_tensor(value))].append(value)
        found.extend(part for part in parts.values() if len(part) > 1)
    return found


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _kind(tensor: ir.TensorProtocol) -> Hashable:
    return tensor.dtype, tuple(tensor.shape.numpy())


def _sample(tensor: ir.TensorProtocol) -> Hashable:
    """Some of the bytes, without reading the others where the tensor is mapped from a file."""
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return None  # packed; its bytes are not to be had in part
    data = _as_bytes(tensor)
    if data.size <= _SAMPLE_BYTES:
        return data.tobytes()
    length = _SAMPLE_BYTES // _SAMPLE_BLOCKS
    starts = np.linspace(0, data.size - length, _SAMPLE_BLOCKS, dtype=np.int64)
    sample = b"".join(data[start : start + length].tobytes() for start in starts)
    let_go_of_pages(tensor)
    return sample


def _digest(tensor: ir.TensorProtocol) -> Hashable:
    """A digest of all bytes; a tensor never changes, so it is worked out once."""
    if _META_DIGEST not in tensor.meta:
        sink = _Sink()
        if tensor.dtype == ir.DataType.STRING:
            for text in _strings(tensor):
                sink.write(len(text).to_bytes(8, "little") + text)
        elif isinstance(tensor, ir.ExternalTensor):
            tensor.tofile(sink)  # in chunks, without mapping the file
        else:
            sink.write(tensor.tobytes())
        tensor.meta[_META_DIGEST] = sink.hash.digest()
    return bytes(tensor.meta[_META_DIGEST])


class _Sink:
    """A file that keeps nothing of what is written to it but the digest."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=32)

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return len(data)


def _same_bytes(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    """Whether two tensors of one type and shape are the same, byte by byte."""
    if one.dtype == ir.DataType.STRING:
        return list(_strings(one)) == list(_strings(other))
    if one.dtype.bitwidth < 8:
        return one.tobytes() == other.tobytes()
    left, right = _as_bytes(one), _as_bytes(other)
    return all(
        np.array_equal(left[start : start + _CHUNK_BYTES], right[start : start + _CHUNK_BYTES])
        for start in range(0, left.size, _CHUNK_BYTES)
    )


def _as_bytes(tensor: ir.TensorProtocol) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def _strings(tensor: ir.TensorProtocol) -> Iterable[bytes]:
    assert isinstance(tensor, ir.StringTensor)
    return tensor.string_data()
