"""The pass itself: which tensors are coded, and how that is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.op_traits import Trait, has_trait
from onnxopt.pass_contract import Kind, Outcome, Pass, Refusal
from onnxopt.traversal import all_graphs

from .builder import Decoder
from .checking import Optimized, optimized
from .choice import ALL_CODES, CODES, Code, Offer, offers, ranked
from .coded import CodedTensors, SharedConstants, next_number
from .evaluation import decode, temporary_bytes
from .joining import groups, joint_decoders
from .loading import LoadLimit
from .numbers import as_bits
from .sparse_form import SparseForm, sparse_bytes
from .structures import META_DECODED, find_decoders

__all__ = ["CompactWeights"]

_Coded = CodedTensors | SparseForm

#: Packed types are small already, and operators that take them are few.
_SMALLEST_BITS = 8


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `CompactWeights`.

    Attributes:
        min_bytes: Smaller tensors are left as they are.
        codes: The codes that may be used. ``sparse-initializer``, ONNX's own sparse form, is not
            among them unless named: it is light to load, but far larger, and many tools fail on it.
        slack: How much longer than the shortest a code may be, as a part of its length, if the
            runtime needs less memory for it while it loads the model.
        max_memory: How many times the bytes of the tensor its decoder may make, all steps together,
            while the runtime loads the model; 0 for no limit.
        max_load: How many times as long as before the runtime may take to load the model; 0 for no
            limit. It is measured, where decoders make so much that it can be.
        joined_bytes: So many bytes of the smallest tensors, as they are when decoded, may be stored
            together, to save decoders; 0 to store each tensor for itself.
        only_again: Do nothing unless `decode-weights` made this model dense before.
    """

    min_bytes: int = 1024
    codes: tuple[Code, ...] = CODES
    slack: float = 0.03
    max_memory: float = 0.0
    max_load: float = 2.5
    joined_bytes: int = 1 << 20
    only_again: bool = False

    def __post_init__(self) -> None:
        if self.min_bytes < 0 or self.joined_bytes < 0:
            raise ValueError("min-bytes and joined-bytes must not be negative")
        if self.max_load != 0 and not self.max_load > 1:
            raise ValueError("max-load must be more than 1, since decoding takes time, or 0")
        if not (self.slack >= 0 and self.max_memory >= 0):
            raise ValueError("slack and max-memory must not be negative")
        if unknown := set(self.codes) - set(ALL_CODES):
            raise ValueError(f"there is no code '{min(unknown)}'; there are {', '.join(ALL_CODES)}")


class CompactWeights(Pass):
    """Store weights in fewer bytes, in a form that ONNX Runtime loads as it is.

    A tensor that has many equal elements, few different ones, or numbers that a narrower type
    holds is replaced by a small graph of standard operators that makes it. ONNX Runtime computes
    such a graph once, when it loads the model, and runs the same graph as before. So the file gets
    smaller; the loaded model does not, nor does it run faster, and loading takes longer.

    For each tensor the shortest code is taken, or one that is hardly longer and takes less memory
    to decode: a constant; a narrower type; a palette with indices of 1 to 8 bits; or the positions
    of the elements that differ from the most frequent one (a bit for each element, distances, or an
    Elias-Fano code) and these elements, which can again have a palette or a narrower type.

    The same bytes: each decoder is run and compared bit by bit, so -0.0 and NaN stay what they are.
    Then the runtime loads the whole model; where it does not fold a decoder, or runs other
    operators than before, tensors stay dense.

    Left alone: tensors that no code makes smaller, graph inputs and outputs, scales and zero
    points, strings and types of less than 8 bits, local functions, opsets below 9 (and below 11
    everything but palettes and narrower types).
    """

    name = "compact-weights"
    kind = Kind.STORAGE
    Options: ClassVar[type] = _Options

    def run(self, model: ir.Model) -> Outcome:
        """Code the initializers of the main graph and of the bodies of control flow."""
        if self.options.only_again and not model.meta.get(META_DECODED, False):
            return Outcome(model, False)
        limit = LoadLimit(self.options.max_load)
        slack: float = self.options.slack
        heavy: set[ir.Value] = set()
        while True:
            outcome = Outcome(model, False)
            shared = SharedConstants(model)
            choices: dict[ir.Value, list[Offer]] = {}
            coded = self._coded(model, heavy, shared.keys, choices, outcome)
            kept = self._apply(model, coded, shared, outcome) if coded else []
            more = limit.too_heavy(model, kept, shared, choices, slack)
            if not more:
                break
            heavy |= more
            for each in kept:
                each.remove()
                each.give_up()
            shared.drop_unused()
        outcome.modified = bool(outcome.rewritten)
        return outcome

    def _coded(
        self,
        model: ir.Model,
        heavy: set[ir.Value],
        present: set[Hashable],
        choices: dict[ir.Value, list[Offer]],
        outcome: Outcome,
    ) -> list[_Coded]:
        """What the initializers may be replaced by, checked one by one."""
        coded: dict[ir.Value, _Coded] = {}
        alone: dict[ir.Value, CodedTensors] = {}
        first = next_number(model)
        number = first + 1  # what is stored together has most names, so it gets the short ones
        for value in list(self._candidates(model)):
            if self.max_rewrites is not None and len(coded) >= self.max_rewrites:
                break
            if value in heavy:
                outcome.matched["tensor"] += 1
                reason = "what it saves is not worth what it takes to decode"
                outcome.refusals.append(Refusal("tensor", reason, value.name or ""))
                continue
            decoder = self._decoder(model, value, number, present, choices, outcome)
            if isinstance(decoder, Decoder):
                coded[value] = alone[value] = CodedTensors((value,), decoder)
                number += 1
            elif decoder is not None:
                coded[value] = decoder
        if self.max_rewrites is not None or not self.options.joined_bytes:
            return list(coded.values())
        joined = first
        for group in groups(list(alone), self.options.joined_bytes):
            single = [alone[value] for value in group]
            decoder = self._joint_decoder(model, single, joined, present)
            if decoder is not None:
                for value in group:
                    del coded[value]
                coded[group[0]] = CodedTensors(group, decoder, tuple(single))
                joined = number
                number += 1
        return list(coded.values())

    def _candidates(self, model: ir.Model) -> Iterator[ir.Value]:
        for graph in all_graphs(model.graph):
            parts = {part for found in find_decoders(graph) for part in found.parts}
            for value in list(graph.initializers.values()):
                tensor = value.const_value
                if (
                    tensor is not None
                    and value not in parts
                    and not value.is_graph_input()
                    and not value.is_graph_output()
                    and value.uses()
                    and tensor.dtype != ir.DataType.STRING
                    and tensor.dtype.bitwidth >= _SMALLEST_BITS
                    and tensor.nbytes >= self.options.min_bytes
                    and not _is_grid(value)
                ):
                    yield value

    def _decoder(
        self,
        model: ir.Model,
        value: ir.Value,
        number: int,
        present: set[Hashable],
        choices: dict[ir.Value, list[Offer]],
        outcome: Outcome,
    ) -> Decoder | SparseForm | None:
        """The shortest form that the runtime takes and that gives the tensor back exactly."""
        opset = model.opset_imports.get("", 0)
        tensor = value.const_value
        assert tensor is not None
        outcome.matched["tensor"] += 1
        reason = "no code makes it smaller"
        sparse = sparse_bytes(value) if SparseForm.code in self.options.codes else None
        found = offers(
            value,
            number,
            opset,
            model.ir_version,
            self.options.codes,
            self.options.max_memory,
            present,
        )
        if len(found) > 1:
            reason = "what it saves is not worth what it takes to decode"
        choices[value] = [dataclasses.replace(each, decoder=None) for each in found]
        limit = found[0].nbytes
        for offer in ranked(found, self.options.slack):
            decoder = offer.decoder
            if decoder is None or (sparse is not None and sparse < min(limit, offer.nbytes)):
                break
            try:
                (result,) = decode(
                    decoder.nodes, decoder.tensors, decoder.outputs, opset, model.ir_version
                )
            except (RuntimeRefusalError, RuntimeCrashError):
                reason = "the runtime cannot run the decoder"
                continue
            if _same(result, tensor.numpy()):
                return decoder
            reason = "the decoder does not give it back bit by bit"
        if sparse is not None and sparse < limit:
            return SparseForm(value)
        outcome.refusals.append(Refusal("tensor", reason, value.name or ""))
        return None

    def _joint_decoder(
        self,
        model: ir.Model,
        alone: Sequence[CodedTensors],
        number: int,
        present: set[Hashable],
    ) -> Decoder | None:
        """A decoder for several tensors that is shorter than one for each, if there is one."""
        if len(alone) < 2:
            return None
        opset, ir_version = model.opset_imports.get("", 0), model.ir_version
        values = [each.dense[0] for each in alone]
        arrays = [value.const_value.numpy() for value in values if value.const_value is not None]
        limit = sum(each.decoder.nbytes(present) for each in alone)
        most = self.options.max_memory * sum(array.nbytes for array in arrays)
        for decoder in joint_decoders(values, number, opset, self.options.codes, present):
            if decoder.nbytes(present) >= limit:
                break
            if most and temporary_bytes(decoder, opset, ir_version) > most:
                continue
            try:
                results = decode(decoder.nodes, decoder.tensors, decoder.outputs, opset, ir_version)
            except (RuntimeRefusalError, RuntimeCrashError):
                continue
            if all(map(_same, results, arrays)):
                return decoder
        return None

    def _apply(
        self,
        model: ir.Model,
        coded: Sequence[_Coded],
        shared: SharedConstants,
        outcome: Outcome,
    ) -> list[_Coded]:
        """Put the decoders in with which the runtime runs the same graph as before.

        Returns:
            Those that are in the model now.
        """
        try:
            dense = optimized(model)
        except (RuntimeRefusalError, RuntimeCrashError):
            reason = "the runtime does not load the model, so nothing can be checked"
            _refuse(coded, reason, outcome)
            kept = []
        else:
            kept = _put_in(model, coded, shared, dense, outcome)
        for each in kept:
            outcome.rewritten[each.code] += len(each.names)
        single = [each for joint in coded for each in joint.alone]
        for each in (*coded, *single):
            if each not in kept:
                each.give_up()
        shared.drop_unused()
        return kept


def _refuse(coded: Sequence[_Coded], reason: str, outcome: Outcome) -> None:
    outcome.refusals.extend(
        Refusal("tensor", reason, name) for each in coded for name in each.names
    )


def _put_in(
    model: ir.Model,
    coded: Sequence[_Coded],
    shared: SharedConstants,
    dense: Optimized,
    outcome: Outcome,
) -> list[_Coded]:
    """Put decoders into the model, but those with which the runtime ends up at another graph.

    Returns:
        Those that are in the model now.
    """
    for each in coded:
        each.insert(shared)
    bad, reason = _to_blame(model, coded, dense)
    if not bad:
        return list(coded)
    for each in coded:
        each.remove()
    if len(coded) == 1:
        if coded[0].alone:
            return _put_in(model, coded[0].alone, shared, dense, outcome)
        _refuse(coded, reason, outcome)
        return []
    if len(bad) < len(coded):
        _refuse([each for each in bad if not each.alone], reason, outcome)
        rest = [each for each in coded if each not in bad]
        single = [each for joint in bad for each in joint.alone]
        return _put_in(model, [*rest, *single], shared, dense, outcome)
    middle = len(coded) // 2
    return [
        *_put_in(model, coded[:middle], shared, dense, outcome),
        *_put_in(model, coded[middle:], shared, dense, outcome),
    ]


def _to_blame(
    model: ir.Model, coded: Sequence[_Coded], dense: Optimized
) -> tuple[Sequence[_Coded], str]:
    """The tensors whose decoders do harm, or all if that cannot be told; and the reason."""
    try:
        now = optimized(model)
    except (RuntimeRefusalError, RuntimeCrashError):
        return coded, "the runtime does not load the model with the decoder"
    left = [each for each in coded if not each.made.isdisjoint(now.names)]
    if left:
        return left, "the runtime does not fold the decoder when it loads the model"
    if now.operators != dense.operators:
        return coded, "the runtime optimizes the model in another way with the decoder"
    return (), ""


def _is_grid(value: ir.Value) -> bool:
    """Whether the value is a scale or a zero point of a quantized tensor."""
    tensor = value.const_value
    assert tensor is not None
    return any(
        (has_trait(node, Trait.QUANTIZATION) and index > 0)
        or (node.op_type.startswith("Q") and len(tensor.shape) < 2)  # QLinearConv and its like
        for node, index in value.uses()
    )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.array_equal(as_bits(one), as_bits(other))
    )
