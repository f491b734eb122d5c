"""Which numbers of an imported model train, and what else is asked of them, as settings say."""

from __future__ import annotations

import fnmatch
import pathlib
from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.model import load
from onnxopt.training.distill_settings import DistillSettings
from onnxopt.training.low_bit import LowBit
from onnxopt.training.module import OnnxModule
from onnxopt.training.penalties import Penalty, channel_slices, group_lasso, norm_penalty

__all__ = ["chosen_weights", "low_bit_weights", "penalty", "quantizer_scales", "trained_scales"]

#: The distiller knows the model by this name.
_INSIDE = "module."


def chosen_weights(module: OnnxModule, patterns: Sequence[str] | None) -> list[str] | None:
    """Weights that patterns name, by their names in the distiller; None without patterns.

    Raises:
        OptionError: When there are none.
    """
    if patterns is None:
        return None
    chosen = [
        name
        for name, tensor in module.weights.items()
        if tensor.ndim >= 2
        and tensor.requires_grad
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if not chosen:
        raise OptionError(f"no weight is called {', '.join(patterns)}")
    return [f"{_INSIDE}{module.module_name(name)}" for name in chosen]


def low_bit_weights(module: OnnxModule, settings: DistillSettings) -> LowBit | None:
    """The weights that are to have few values: those named, or all but the first and the last.

    Raises:
        OptionError: When there are none.
    """
    if settings.low_bit is None:
        return None
    chosen = chosen_weights(module, settings.low_bit_weights)
    parameters = dict(module.named_parameters())
    if chosen is None:
        wide = [name for name, each in parameters.items() if each.ndim >= 2]
        chosen = [f"{_INSIDE}{name}" for name in wide[1:-1]]
    if not chosen:
        raise OptionError("the student has no weights between its first and last layer")
    names = [name.removeprefix(_INSIDE) for name in chosen]
    return LowBit({name: parameters[name] for name in names}, settings.low_bit)


def penalty(module: OnnxModule, student: pathlib.Path, settings: DistillSettings) -> Penalty | None:
    """What large weights, or groups of them, are made to cost."""
    if settings.penalty is None:
        return None
    wide = {
        name: tensor
        for name, tensor in module.weights.items()
        if tensor.ndim >= 2 and tensor.requires_grad
    }
    if settings.penalty == "group-lasso":
        return group_lasso(wide, channel_slices(load(student)), settings.penalty_strength)
    return norm_penalty(wide, settings.penalty_strength, settings.penalty)


def quantizer_scales(model: ir.Model) -> list[str]:
    """Names of the constant scales of the model's quantizers.

    Raises:
        OptionError: When there are none.
    """
    names = [
        value.name
        for node in model.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and (value := node.inputs[1]) is not None
        and value.is_initializer()
        and value.name is not None
    ]
    if not names:
        raise OptionError("the student has no quantizers whose scales could be trained")
    return list(dict.fromkeys(names))


def trained_scales(module: OnnxModule, scales: Sequence[str]) -> list[str]:
    """The scales that are parameters, by their names in the distiller."""
    weights = module.weights
    return [
        f"{_INSIDE}{module.module_name(name)}"
        for name in scales
        if name in weights and weights[name].requires_grad
    ]
