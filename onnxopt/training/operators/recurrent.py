"""Recurrent layers: LSTM, GRU, RNN.

The usual ones run in PyTorch's own kernels, after their gates are put in its order. Those with
other activations, peepholes, clipping, or lengths by sequence run step by step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxopt.training.node_view import Builder, Call, NodeView

__all__ = ["BUILDERS"]

#: Gives the new state from the state, the inputs' share of the gates, recurrent weights, the
#: activations, and what only some layers have: peepholes, or the bias of the last gate.
_Cell = Callable[["_Layer", tuple[Tensor, ...], Tensor, Tensor, Any, Any], tuple[Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Settings of a recurrent node.

    Attributes:
        hidden: Size of the state.
        directions: For each direction, whether it runs backward.
        activations: For each direction its functions.
        clip: Bound of what goes into activations, or None.
        batch_first: Whether the batch is the first axis of inputs and outputs.
        reset_after: GRU: whether the reset gate works on the product (``linear_before_reset``).
        coupled: LSTM: whether the forget gate is what the input gate leaves (``input_forget``).
    """

    hidden: int
    directions: tuple[bool, ...]
    activations: tuple[tuple[Callable[[Tensor], Tensor], ...], ...]
    clip: float | None
    batch_first: bool
    reset_after: bool
    coupled: bool

    def clipped(self, x: Tensor) -> Tensor:
        """What goes into an activation."""
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)


def _activation(name: str, alpha: float | None, beta: float | None) -> Any:
    def given(number: float | None, default: float) -> float:
        return default if number is None else number

    match name.lower():
        case "tanh":
            return torch.tanh
        case "sigmoid":
            return torch.sigmoid
        case "relu":
            return torch.relu
        case "softsign":
            return functional.softsign
        case "softplus":
            return functional.softplus
        case "leakyrelu":
            slope = given(alpha, 0.01)
            return lambda x: functional.leaky_relu(x, slope)
        case "thresholdedrelu":
            threshold = given(alpha, 1.0)
            return lambda x: functional.threshold(x, threshold, 0.0)
        case "elu":
            factor = given(alpha, 1.0)
            return lambda x: functional.elu(x, factor)
        case "affine":
            a, b = given(alpha, 1.0), given(beta, 0.0)
            return lambda x: a * x + b
        case "scaledtanh":
            a, b = given(alpha, 1.0), given(beta, 1.0)
            return lambda x: a * torch.tanh(b * x)
        case "hardsigmoid":
            a, b = given(alpha, 0.2), given(beta, 0.5)
            return lambda x: torch.clamp(a * x + b, 0.0, 1.0)
    raise AssertionError(name)


_ACTIVATIONS = frozenset(
    (
        "tanh",
        "sigmoid",
        "relu",
        "softsign",
        "softplus",
        "leakyrelu",
        "thresholdedrelu",
        "elu",
        "affine",
        "scaledtanh",
        "hardsigmoid",
    )
)
#: Activations with alpha, and those with beta as well.
_WITH_ALPHA = ("leakyrelu", "thresholdedrelu", "elu", "affine", "scaledtanh", "hardsigmoid")
_WITH_BETA = ("affine", "scaledtanh", "hardsigmoid")


def _layer(node: NodeView, defaults: Sequence[str]) -> tuple[_Layer, bool]:
    """Settings, and whether the activations are the usual ones."""
    direction = node.string_attribute("direction", "forward")
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    node.require(direction in directions, f"direction {direction}")
    backward = directions[direction]
    names = node.strings_attribute("activations") or tuple(defaults) * len(backward)
    lower = [name.lower() for name in names]
    for name in lower:
        node.require(name in _ACTIVATIONS, f"activation {name}")
    alphas = list(node.floats_attribute("activation_alpha") or ())
    betas = list(node.floats_attribute("activation_beta") or ())
    functions = []
    for name in lower:
        alpha = alphas.pop(0) if name in _WITH_ALPHA and alphas else None
        beta = betas.pop(0) if name in _WITH_BETA and betas else None
        functions.append(_activation(name, alpha, beta))
    each = len(defaults)
    node.require(node.has_attribute("hidden_size"), "a hidden size that is not given")
    node.ignore_attributes("output_sequence")
    layer = _Layer(
        node.int_attribute("hidden_size", 0),
        backward,
        tuple(tuple(functions[at : at + each]) for at in range(0, len(functions), each)),
        node.float_attribute("clip", 0.0) if node.has_attribute("clip") else None,
        bool(node.int_attribute("layout", 0)),
        bool(node.int_attribute("linear_before_reset", 0)),
        bool(node.int_attribute("input_forget", 0)),
    )
    usual = lower == [name.lower() for name in defaults] * len(backward)
    return layer, usual and layer.clip is None and not layer.coupled


def _lstm_cell(
    layer: _Layer,
    state: tuple[Tensor, ...],
    gates: Tensor,
    r: Tensor,
    functions: Any,
    peephole: Any,
) -> tuple[Tensor, ...]:
    """Gates in the order input, output, forget, cell (ONNX, LSTM)."""
    h, c = state
    f, g, o = functions
    i_, o_, f_, c_ = (gates + h @ r.t()).chunk(4, -1)
    p_i, p_o, p_f = (None, None, None) if peephole is None else peephole.chunk(3, -1)
    enter = f(layer.clipped(i_ if p_i is None else i_ + p_i * c))
    keep = 1 - enter if layer.coupled else f(layer.clipped(f_ if p_f is None else f_ + p_f * c))
    cell = keep * c + enter * g(layer.clipped(c_))
    leave = f(layer.clipped(o_ if p_o is None else o_ + p_o * cell))
    return leave * o(cell), cell


def _gru_cell(
    layer: _Layer,
    state: tuple[Tensor, ...],
    gates: Tensor,
    r: Tensor,
    functions: Any,
    recurrent: Any,
) -> tuple[Tensor, ...]:
    """Gates in the order update, reset, hidden (ONNX, GRU)."""
    (h,) = state
    f, g = functions
    size = layer.hidden
    z_, r_, h_ = gates.chunk(3, -1)
    products = h @ r[: 2 * size].t()
    update = f(layer.clipped(z_ + products[..., :size]))
    reset = f(layer.clipped(r_ + products[..., size:]))
    if layer.reset_after:
        inner = h @ r[2 * size :].t()
        inner = inner if recurrent is None else inner + recurrent
        new = g(layer.clipped(h_ + reset * inner))
    else:
        inner = (reset * h) @ r[2 * size :].t()
        inner = inner if recurrent is None else inner + recurrent
        new = g(layer.clipped(h_ + inner))
    return ((1 - update) * new + update * h,)


def _rnn_cell(
    layer: _Layer, state: tuple[Tensor, ...], gates: Tensor, r: Tensor, functions: Any, unused: Any
) -> tuple[Tensor, ...]:
    (h,) = state
    (f,) = functions
    return (f(layer.clipped(gates + h @ r.t())),)


def _stepwise(
    layer: _Layer,
    cell: _Cell,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    states: Sequence[Tensor | None],
    peepholes: Tensor | None,
    separate: bool,
) -> tuple[Tensor, ...]:
    """Run a layer step by step: outputs [steps, directions, batch, hidden] and the last states.

    Past the end of a sequence the output is 0 and the state stays. ``separate`` keeps the recurrent
    bias of the last gate out of the sum: a GRU may multiply it.
    """
    steps, batch = x.shape[0], x.shape[1]
    outputs, lasts = [], []
    for at, backward in enumerate(layer.directions):
        state = tuple(
            x.new_zeros(batch, layer.hidden) if given is None else given[at] for given in states
        )
        gates, recurrent = x @ w[at].t(), None
        if b is not None:
            own, back = b[at].chunk(2)
            if separate:
                split = 2 * layer.hidden
                recurrent = back[split:]
                back = torch.cat([back[:split], torch.zeros_like(recurrent)])
            gates = gates + own + back
        extra = recurrent if separate else (None if peepholes is None else peepholes[at])
        rows: list[Any] = [None] * steps
        for step in range(steps - 1, -1, -1) if backward else range(steps):
            new = cell(layer, state, gates[step], r[at], layer.activations[at], extra)
            if lengths is None:
                state, rows[step] = new, new[0]
            else:
                alive = (lengths > step).reshape(-1, 1)
                state = tuple(
                    torch.where(alive, one, old) for one, old in zip(new, state, strict=True)
                )
                rows[step] = torch.where(alive, new[0], torch.zeros_like(new[0]))
        outputs.append(torch.stack(rows))
        lasts.append(state)
    return (
        torch.stack(outputs, 1),
        *(torch.stack([state[which] for state in lasts]) for which in range(len(states))),
    )


def _reordered(weight: Tensor, order: Sequence[int]) -> Tensor:
    """The gates of a weight in another order."""
    parts = weight.chunk(len(order))
    return torch.cat([parts[place] for place in order])


def _native(
    layer: _Layer,
    kernel: Callable[..., Any],
    order: Sequence[int],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    states: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """Run a layer in PyTorch's kernel; a single backward direction on the sequence reversed."""
    count = len(layer.directions)
    turned = layer.directions == (True,)
    flat = []
    for at in range(count):
        flat += [_reordered(w[at], order), _reordered(r[at], order)]
        if b is not None:
            flat += [_reordered(half, order) for half in b[at].chunk(2)]
    given = [
        x.new_zeros(count, x.shape[1], layer.hidden) if state is None else state for state in states
    ]
    x = x.flip(0) if turned else x
    hidden = given if len(given) > 1 else given[0]
    result = kernel(
        x, hidden, flat, b is not None, 1, 0.0, torch.is_grad_enabled(), count == 2, False
    )
    y = result[0].flip(0) if turned else result[0]
    y = y.reshape(*y.shape[:2], count, layer.hidden).transpose(1, 2)
    return (y, *result[1:])


def _recurrent(
    node: NodeView,
    cell: _Cell,
    kernel: Callable[..., Any] | None,
    order: Sequence[int],
    defaults: Sequence[str],
    states: int,
    usual_only: bool = True,
) -> Call:
    layer, usual = _layer(node, defaults)
    separate = cell is _gru_cell
    outputs = node.outputs
    fast = usual and usual_only and kernel is not None

    def recurrent(
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None,
        lengths: Tensor | None,
        first: Tensor | None,
        second: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> Any:
        given = [first, second][:states]
        if layer.batch_first:
            x = x.transpose(0, 1)
            given = [None if state is None else state.transpose(0, 1) for state in given]
        if fast and kernel is not None and lengths is None and peepholes is None:
            results = _native(layer, kernel, order, x, w, r, b, given)
        else:
            results = _stepwise(layer, cell, x, w, r, b, lengths, given, peepholes, separate)
        if layer.batch_first:
            y, *lasts = results
            results = (y.permute(2, 0, 1, 3), *(last.transpose(0, 1) for last in lasts))
        return results[0] if outputs == 1 else results[:outputs]

    count = 8 if states == 2 else 6
    return Call(recurrent, tuple(node.tensor(index) for index in range(count)))


def _lstm(node: NodeView) -> Call:
    defaults = ("Sigmoid", "Tanh", "Tanh")
    return _recurrent(node, _lstm_cell, torch.lstm, (0, 2, 3, 1), defaults, 2)


def _gru(node: NodeView) -> Call:
    after = bool(node.int_attribute("linear_before_reset", 0))
    defaults = ("Sigmoid", "Tanh")
    return _recurrent(node, _gru_cell, torch.gru, (1, 0, 2), defaults, 1, usual_only=after)


def _rnn(node: NodeView) -> Call:
    return _recurrent(node, _rnn_cell, torch.rnn_tanh, (0,), ("Tanh",), 1)


BUILDERS: dict[str, Builder] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
