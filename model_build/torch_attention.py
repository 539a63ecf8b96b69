"""An attention for transformers that exports as ONNX Runtime's own operator, without a mask.

It does not know which models use it, quantisation or how graphs run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.onnx.symbolic_helper import parse_args
from torch.onnx.utils import register_custom_op_symbolic
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "keys-tell-padding"
"""As transformers' `attn_implementation`, once this module is imported."""

_PADDED = -1e30
"""As in masked_keys.py, for queries and keys that are not products with a constant."""


@torch.library.custom_op("blitz::attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> Tensor:
    """Softmax attention: (B, T, heads * D), (B, S, heads * D), (B, S, heads * E) -> (B, T, heads * E)"""
    q, k, v = (each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (query, key, value))
    shares: Tensor = (q @ k.transpose(-1, -2) * scale).softmax(-1)
    return (shares @ v).transpose(1, 2).flatten(2)


@parse_args("v", "v", "v", "i", "f")
def _symbolic(g: Any, query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
    return g.op("com.microsoft::MultiHeadAttention", query, key, value, num_heads_i=heads, scale_f=scale)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """query, key, value: (B, heads, T, D). attention_mask: (B, T), true for real tokens."""
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = (_repeated(each, groups) for each in (key, value))
    assert attention_mask is not None
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))  # (B, T, heads, D)
    padded = (1 - attention_mask.to(key.dtype)) * (_PADDED / scaling)
    told = padded[:, :, None, None].expand(-1, -1, key.shape[2], -1)  # (B, T, heads, 1)
    query = torch.cat([query, torch.ones_like(told)], -1)
    key = torch.cat([key, told], -1)
    joined = (each.flatten(2) for each in (query, key, value))
    return _attend(*joined, int(query.shape[2]), float(scaling)), None


def _repeated(tensor: Tensor, groups: int) -> Tensor:
    """(B, heads, T, D) -> (B, heads * groups, T, D)"""
    return tensor[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)


def _mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
    """Instead of (B, 1, T, T), what the model was given."""
    return attention_mask


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
register_custom_op_symbolic("blitz::attention", _symbolic, 17)
