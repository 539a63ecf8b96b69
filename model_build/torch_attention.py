"""An attention for transformers that exports as ONNX Runtime's own operator, without a mask.

Where tokens see near or earlier ones alone, it exports as NEARBY, which nearby.py writes. It does not
know which models use it, quantisation or how graphs run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.onnx.symbolic_helper import parse_args
from torch.onnx.utils import register_custom_op_symbolic
from transformers import AttentionInterface, AttentionMaskInterface

from model_build.nearby import ALL, NEARBY
from model_build.own_operators import DOMAIN

NAME = "keys-tell-padding"
"""As transformers' `attn_implementation`, once this module is imported."""

_PADDED = -1e30
"""As in masked_keys.py, for queries and keys that are not products with a constant."""


_FARTHEST = 1 << 17
"""Tokens; more than any text has. Who sees so far sees all."""


@torch.library.custom_op("blitz::attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> Tensor:
    """Softmax attention: (B, T, heads * D), (B, S, heads * D), (B, S, heads * E) -> (B, T, heads * E)"""
    q, k, v = (each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (query, key, value))
    shares: Tensor = (q @ k.transpose(-1, -2) * scale).softmax(-1)
    return (shares @ v).transpose(1, 2).flatten(2)


@parse_args("v", "v", "v", "i", "f")
def _symbolic(g: Any, query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
    return g.op("com.microsoft::MultiHeadAttention", query, key, value, num_heads_i=heads, scale_f=scale)


@torch.library.custom_op("blitz::nearby", mutates_args=())
def _attend_nearby(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor,
    heads: int,
    scale: float,
    before: int,
    after: int,
) -> Tensor:
    """As NEARBY, without padding: the trace needs no more than shapes."""
    positions = torch.arange(query.shape[2])
    distance = positions - positions[:, None]
    unseen = (distance > after) | (distance < -before)
    scores = query @ key.transpose(-1, -2) * scale
    shares: Tensor = scores.masked_fill(unseen, float("-inf")).softmax(-1)
    return (shares @ value).transpose(1, 2).flatten(2)


@parse_args("v", "v", "v", "v", "i", "f", "i", "i")
def _nearby_symbolic(
    g: Any,
    query: Any,
    key: Any,
    value: Any,
    real: Any,
    heads: int,
    scale: float,
    before: int,
    after: int,
) -> Any:
    attributes = {"num_heads_i": heads, "scale_f": scale, "before_i": before, "after_i": after}
    return g.op(f"{DOMAIN}::{NEARBY}", query, key, value, real, **attributes)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a layer is told instead of a mask.

    real: (B, T), true for real tokens. before, after: how many tokens each one sees to either side.
    """

    real: Tensor
    before: int
    after: int


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: _Seen | None,
    *,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query, key, value: (B, heads, T, D)"""
    assert softcap is None, "scores are capped"
    assert attention_mask is not None
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = (_repeated(each, groups) for each in (key, value))
    heads, seen = int(query.shape[1]), attention_mask
    if min(seen.before, seen.after) < ALL:
        near = heads, float(scaling), seen.before, seen.after
        return _attend_nearby(query, key, value, seen.real, *near), None
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))  # (B, T, heads, D)
    padded = (1 - seen.real.to(key.dtype)) * (_PADDED / scaling)
    told = padded[:, :, None, None].expand(-1, -1, key.shape[2], -1)  # (B, T, heads, 1)
    query = torch.cat([query, torch.ones_like(told)], -1)
    key = torch.cat([key, told], -1)
    joined = (each.flatten(2) for each in (query, key, value))
    return _attend(*joined, heads, float(scaling)), None


def _repeated(tensor: Tensor, groups: int) -> Tensor:
    """(B, heads, T, D) -> (B, heads * groups, T, D)"""
    return tensor[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)


def _mask(
    *_: Any,
    batch_size: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    **__: Any,
) -> _Seen:
    """Instead of (B, 1, T, T), what the model was given and how far its tokens see.

    Raises ValueError if they see something else than all tokens between two distances.
    """
    if attention_mask is None:
        attention_mask = torch.ones(batch_size, kv_length, dtype=torch.bool)
    return _Seen(attention_mask, *reach_of(mask_function))


def reach_of(mask_function: Callable[..., Tensor]) -> tuple[int, int]:
    """How far a token sees before and after itself.

    mask_function: transformers' condition of batch, head, query and key, as integer tensors.
    """
    none, middle = torch.zeros((), dtype=torch.int64), torch.tensor(_FARTHEST)
    sees = mask_function(none, none, middle, torch.arange(2 * _FARTHEST + 1))
    seen = sees.expand(2 * _FARTHEST + 1).nonzero().flatten().tolist()
    before, after = _FARTHEST - seen[0], seen[-1] - _FARTHEST
    if len(seen) != before + 1 + after:
        raise ValueError("tokens do not see all between two distances")
    return (ALL if before == _FARTHEST else before), (ALL if after == _FARTHEST else after)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
register_custom_op_symbolic("blitz::attention", _symbolic, 17)
register_custom_op_symbolic("blitz::nearby", _nearby_symbolic, 17)
