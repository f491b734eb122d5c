"""Attention and rotary embeddings as operators of their own (opset 23)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxopt.training.node_view import Builder, Call, NodeView

__all__ = ["BUILDERS"]


def _attention(node: NodeView) -> Call:
    """softmax(scale Q K' + mask) V by heads, with caches of keys and values put in front."""
    query_heads, key_heads = (node.int_attribute(f"{each}_num_heads", 0) for each in ("q", "kv"))
    causal = bool(node.int_attribute("is_causal", 0))
    scale = node.float_attribute("scale", 1.0) if node.has_attribute("scale") else None
    node.ignore_attributes("softmax_precision")
    cap = node.float_attribute("softcap", 0.0)
    wanted = node.int_attribute("qk_matmul_output_mode", 0)
    node.require(node.input(6) is None, "lengths of padded keys")
    outputs = node.outputs

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        past_key: Tensor | None,
        past_value: Tensor | None,
    ) -> Any:
        flat = q.ndim == 3
        if flat:
            q, k, v = (
                each.unflatten(-1, (heads, -1)).transpose(1, 2)
                for each, heads in ((q, query_heads), (k, key_heads), (v, key_heads))
            )
        if past_key is not None and past_value is not None:
            k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        present = (k, v)
        if k.shape[1] != q.shape[1]:
            repeats = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        stages = [torch.matmul(q * factor**0.5, (k * factor**0.5).transpose(-1, -2))]
        bias = _bias(q, k, mask, causal, past_key)
        stages.append(cap * torch.tanh(stages[0] / cap) if cap else stages[0])
        stages.append(stages[1] if bias is None else stages[1] + bias)
        scores = stages[2]
        if bias is None:
            stages.append(torch.softmax(scores, -1))
        else:  # a query that may look at nothing gets nothing
            blind = (bias == float("-inf")).all(-1, keepdim=True)
            stages.append(torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0))
        y = torch.matmul(stages[3], v)
        y = y.transpose(1, 2).flatten(2) if flat else y
        return y if outputs == 1 else (y, *present, stages[wanted])[:outputs]

    return Call(attention, tuple(node.tensor(index) for index in range(6)))


def _bias(
    q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, past: Tensor | None
) -> Tensor | None:
    """What is added to the scores."""
    bias = mask
    if mask is not None and mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    if bias is not None and bias.shape[-1] < k.shape[2]:
        missing = k.shape[2] - bias.shape[-1]
        bias = torch.nn.functional.pad(bias, (0, missing), value=float("-inf"))
    if causal:
        before = 0 if past is None else past.shape[2]
        rows = torch.arange(q.shape[2], device=q.device).reshape(-1, 1) + before
        later = torch.arange(k.shape[2], device=q.device) > rows
        hidden = torch.zeros(later.shape, dtype=q.dtype, device=q.device)
        hidden = hidden.masked_fill(later, float("-inf"))
        bias = hidden if bias is None else bias + hidden
    return bias


def _rotary_embedding(node: NodeView) -> Call:
    """Turn pairs of elements by angles that grow with the position (Su et al. 2021)."""
    interleaved = bool(node.int_attribute("interleaved", 0))
    heads, size = node.int_attribute("num_heads", 0), node.int_attribute("rotary_embedding_dim", 0)

    def rotary(x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None) -> Tensor:
        shape = x.shape
        if x.ndim == 3:
            x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        turned, rest = (x, None) if not size else (x[..., :size], x[..., size:])
        if positions is not None:
            cosines, sines = cosines[positions], sines[positions]
        cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
        if interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = turned.chunk(2, -1)
        one = cosines * first - sines * second
        other = sines * first + cosines * second
        if interleaved:
            turned = torch.stack([one, other], -1).flatten(-2)
        else:
            turned = torch.cat([one, other], -1)
        y = turned if rest is None else torch.cat([turned, rest], -1)
        return y.transpose(1, 2).reshape(shape) if len(shape) == 3 else y

    return Call(rotary, tuple(node.tensor(index) for index in range(4)))


BUILDERS: dict[str, Builder] = {"Attention": _attention, "RotaryEmbedding": _rotary_embedding}
