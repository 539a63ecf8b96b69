"""Lets DeBERTa-v2 and v3 export with one operator of ours for each layer's attention.

disentangled.py writes that. It does not know folders, quantisation or how graphs run.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.onnx.symbolic_helper import parse_args
from torch.onnx.utils import register_custom_op_symbolic
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
    make_log_bucket_position,
)

from model_build.disentangled import DISENTANGLED
from model_build.own_operators import DOMAIN


@torch.library.custom_op("blitz::disentangled", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor,
    rows_of: Tensor,
    of_queries: Tensor | None,
    of_keys: Tensor | None,
    heads: int,
    scale: float,
) -> Tensor:
    """As DISENTANGLED, without what it computes: the trace needs no more than shapes."""
    return torch.zeros_like(value)


@parse_args("v", "v", "v", "v", "v", "v", "v", "i", "f")
def _symbolic(
    g: Any,
    query: Any,
    key: Any,
    value: Any,
    real: Any,
    rows_of: Any,
    of_queries: Any,
    of_keys: Any,
    heads: int,
    scale: float,
) -> Any:
    farthest = rows_of.type().sizes()[0] // 2
    attributes = {"num_heads_i": heads, "scale_f": scale, "farthest_i": farthest}
    inputs = query, key, value, real, rows_of, of_queries, of_keys
    return g.op(f"{DOMAIN}::{DISENTANGLED}", *inputs, **attributes)


def fuse_deberta(model: torch.nn.Module) -> bool:
    """Prepare a model for its trace; it gives no vectors afterwards. Whether it has such attention.

    A DeBERTa whose attention knows no positions stays as it is.
    """
    encoders = [each for each in model.modules() if isinstance(each, DebertaV2Encoder)]
    layers = [each for each in model.modules() if isinstance(each, DisentangledSelfAttention)]
    if not layers or not all(each.relative_attention and _sides(each) for each in layers):
        return False
    for encoder in encoders:
        encoder.get_attention_mask = lambda attention_mask: attention_mask
        encoder.get_rel_pos = lambda *_: None
        embeddings = encoder.get_rel_embedding().detach()
        encoder.get_rel_embedding = lambda: None
        for layer in encoder.layer:
            _fuse(layer.attention.self, embeddings)
    return True


def _sides(layer: DisentangledSelfAttention) -> set[str]:
    return {"c2p", "p2c"}.intersection(layer.pos_att_type)


@torch.no_grad()
def _fuse(layer: DisentangledSelfAttention, embeddings: Tensor) -> None:
    sides = _sides(layer)
    scale = (layer.attention_head_size * (1 + len(sides))) ** -0.5
    shared = layer.share_att_key
    tables: dict[str, Tensor | None] = {"of_queries": None, "of_keys": None}
    embeddings = embeddings[: 2 * layer.pos_ebd_size]
    if "c2p" in sides:
        products = (layer.key_proj if shared else layer.pos_key_proj)(embeddings)
        tables["of_queries"] = _by_head(products * scale, layer.num_attention_heads)
    if "p2c" in sides:
        products = (layer.query_proj if shared else layer.pos_query_proj)(embeddings)
        tables["of_keys"] = _by_head(products * scale, layer.num_attention_heads)
    for name, table in {**tables, "rows_of": rows_of(layer)}.items():
        layer.register_buffer(name, table)
    layer.content_scale = scale
    layer.forward = MethodType(_forward, layer)


def _by_head(products: Tensor, heads: int) -> Tensor:
    """(rows, heads * D) -> (heads, rows, D)"""
    by_head: Tensor = products.view(len(products), heads, -1).transpose(0, 1).contiguous()
    return by_head


def rows_of(layer: DisentangledSelfAttention) -> Tensor:
    """(2 * farthest + 1,) int64: a distance's row among the embeddings, from -farthest to farthest.

    Further ones have the first and the last row, as these have.
    """
    span, farthest = layer.pos_ebd_size, 2 * layer.max_relative_positions
    distances = torch.arange(-farthest, farthest + 1)
    if layer.position_buckets > 0:
        distances = make_log_bucket_position(distances, span, layer.max_relative_positions)
    rows: Tensor = (distances.to(torch.int64) + span).clamp(0, 2 * span - 1)
    return rows


def _forward(
    self: Any, hidden_states: Tensor, attention_mask: Tensor, output_attentions: bool = False, **_: Any
) -> tuple[Tensor, None]:
    """attention_mask: (B, T), 1 for real tokens."""
    assert not output_attentions
    products = (
        self.query_proj(hidden_states),
        self.key_proj(hidden_states),
        self.value_proj(hidden_states),
    )
    tables = self.rows_of, self.of_queries, self.of_keys
    heads = self.num_attention_heads
    return _attend(*products, attention_mask, *tables, heads, self.content_scale), None


register_custom_op_symbolic("blitz::disentangled", _symbolic, 17)
