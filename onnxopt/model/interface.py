"""What the world sees of a model, and what no pass may change."""

from __future__ import annotations

import dataclasses

import onnx
import onnx_ir as ir

__all__ = ["Interface", "restore_interface"]


@dataclasses.dataclass(frozen=True)
class Interface:
    """What the world sees of a model, and what no pass may change.

    Attributes:
        inputs: Name and serialized type (element type, symbolic shape) of each graph input.
        outputs: The same of each graph output.
        opset_imports: Opset version by domain.
        metadata: The model's metadata properties.
    """

    inputs: tuple[tuple[str, bytes], ...]
    outputs: tuple[tuple[str, bytes], ...]
    opset_imports: tuple[tuple[str, int], ...]
    metadata: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        """The interface of a model as it is now."""
        return cls(
            tuple(_signature(value) for value in model.graph.inputs),
            tuple(_signature(value) for value in model.graph.outputs),
            tuple(sorted(model.opset_imports.items())),
            tuple(sorted(model.metadata_props.items())),
        )

    def difference(self, other: Interface) -> str | None:
        """One sentence on the first thing that differs, or None when nothing does."""
        for what in ("inputs", "outputs", "opset_imports", "metadata"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                names = [item[0] for item in mine], [item[0] for item in theirs]
                detail = f"{names[0]} became {names[1]}" if names[0] != names[1] else "their types"
                return f"the model's {what.replace('_', ' ')} changed: {detail}"
        return None


def restore_interface(model: ir.Model, reference: ir.Model | Interface) -> None:
    """Give graph inputs and outputs the types and shapes of the reference, where names agree.

    Shape inference refines the types of graph outputs while passes work; the model that is given
    back must say what the original said.
    """
    interface = reference if isinstance(reference, Interface) else Interface.of(reference)
    for values, signatures in (
        (model.graph.inputs, interface.inputs),
        (model.graph.outputs, interface.outputs),
    ):
        wanted = dict(signatures)
        for value in values:
            if value.name in wanted:
                info = onnx.ValueInfoProto.FromString(wanted[value.name])
                ir.serde.deserialize_value_info_proto(info, value)


def _signature(value: ir.Value) -> tuple[str, bytes]:
    return value.name or "", ir.serde.serialize_value(value).SerializeToString(deterministic=True)
