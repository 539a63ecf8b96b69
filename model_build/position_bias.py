"""Lets MPNet export with ONNX Runtime's own attention, which adds its bias of positions to scores.

It does not know folders, quantisation or how graphs run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.onnx.symbolic_helper import parse_args
from torch.onnx.utils import register_custom_op_symbolic
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention


@torch.library.custom_op("blitz::biased_attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, real: Tensor, bias: Tensor, heads: int) -> Tensor:
    """(B, T, heads * D) thrice, (B, T) 1 for real tokens, (1, heads, T, T) -> (B, T, heads * D)"""
    q, k, v = (each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (query, key, value))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
    scores = scores.masked_fill(real[:, None, None] == 0, float("-inf"))
    attended: Tensor = scores.softmax(-1) @ v
    return attended.transpose(1, 2).flatten(2)


@parse_args("v", "v", "v", "v", "v", "i")
def _symbolic(g: Any, query: Any, key: Any, value: Any, real: Any, bias: Any, heads: int) -> Any:
    none = g.op("prim::Constant")
    none.setType(torch._C.OptionalType.ofTensor())
    inputs = query, key, value, none, real, bias
    return g.op("com.microsoft::MultiHeadAttention", *inputs, num_heads_i=heads)


def _forward(
    self: MPNetSelfAttention,
    hidden_states: Tensor,
    attention_mask: Tensor,
    position_bias: Tensor,
    output_attentions: bool = False,
    **_: Any,
) -> tuple[Tensor]:
    """attention_mask: (B, 1, 1, T), 0 for real tokens. position_bias: (1, heads, T, T)"""
    assert not output_attentions
    real = (attention_mask[:, 0, 0] == 0).to(torch.int32)
    products = self.q(hidden_states), self.k(hidden_states), self.v(hidden_states)
    attended = _attend(*products, real, position_bias, self.num_attention_heads)
    return (self.o(attended),)


def _of_one_text(self: MPNetEncoder, x: Tensor, **arguments: Any) -> Tensor:
    """(1, heads, T, T): all texts of a batch have the same."""
    bias: Tensor = _position_bias(self, x[:1], **arguments)
    return bias


_eager_forward, _position_bias = MPNetSelfAttention.forward, MPNetEncoder.compute_position_bias


@contextmanager
def fused_mpnet() -> Iterator[None]:
    """Trace MPNet with one operator for each layer's attention."""
    MPNetSelfAttention.forward, MPNetEncoder.compute_position_bias = _forward, _of_one_text
    try:
        yield
    finally:
        MPNetSelfAttention.forward, MPNetEncoder.compute_position_bias = _eager_forward, _position_bias


register_custom_op_symbolic("blitz::biased_attention", _symbolic, 17)
