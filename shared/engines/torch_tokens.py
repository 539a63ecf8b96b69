"""What the torch engine makes of token vectors that are not pooled to one vector per text.

Weights of a vocabulary's words for sparse models, and the tokens' own vectors for multi-vector models.
Does not know models' files, batches or memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from shared.contracts import FloatMatrix, SparseRow
from shared.errors import InvalidArtefact
from shared.models.manifest import SparseHead
from shared.vectors import sparse_row

_BLOCK_NUMBERS = 1 << 26
"""Logits that are computed at a time: 134 MB in FP16."""
WORDS_AT_ONCE = 1 << 26
"""Weights of words that one pass may have, 268 MB: of 2,198 texts for a vocabulary of 30,522."""


def split_decoder(model: Any) -> Any:
    """Take the last layer off a masked language model: its `logits` become that layer's input (B, T, H).

    The layer, a torch Linear (H -> V). Raises InvalidArtefact if the model does not end in one.
    """
    decoder = model.get_output_embeddings()
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if child is decoder
    ]
    if not isinstance(decoder, torch.nn.Linear) or len(places) != 1:
        raise InvalidArtefact("the model does not end in one layer that has a row for each word")
    ids = torch.arange(3)[None].to(decoder.weight.device)
    with torch.inference_mode():
        right = model(input_ids=ids).logits
        parent, name = places[0]
        setattr(parent, name, torch.nn.Identity())
        split = decoder(model(input_ids=ids).logits)
    if split.shape != right.shape or not torch.allclose(split, right, rtol=1e-3, atol=1e-3):
        raise InvalidArtefact("behind the layer that has a row for each word, the model has others")
    return decoder


def pool_words(hidden: torch.Tensor, mask: torch.Tensor, decoder: Any, head: SparseHead) -> torch.Tensor:
    """(B, T, H) -> (B, V) float32 weights, a block of tokens at a time. mask: (B, T), 1 on tokens."""
    words = decoder.out_features
    step = max(1, _BLOCK_NUMBERS // (len(hidden) * words))
    pooled = torch.zeros((len(hidden), words), device=hidden.device)
    for start in range(0, hidden.shape[1], step):
        logits = decoder(hidden[:, start : start + step]).float()
        # Filled, not multiplied by 0: infinity on padding times 0 would be NaN.
        weights = logits.masked_fill(mask[:, start : start + step, None] == 0, 0.0).relu_().log1p_()
        if head.activation == "log1p_relu":
            weights = weights.log1p_()
        if head.pooling == "max":
            pooled = torch.maximum(pooled, weights.amax(dim=1))
        else:
            pooled += weights.sum(dim=1)
    return pooled


def sparse_rows(pooled: torch.Tensor, head: SparseHead) -> list[SparseRow]:
    """(B, V) weights -> those of each text that are not 0, on the host."""
    if not head.most and pooled.is_cuda:  # few are not 0: only they need to leave the device
        rows, words = pooled.nonzero(as_tuple=True)
        values = pooled[rows, words].cpu().numpy()
        ends = torch.bincount(rows, minlength=len(pooled)).cumsum(0)[:-1].cpu().numpy()
        indices = np.split(words.cpu().numpy().astype(np.int32), ends)
        return list(map(SparseRow, indices, np.split(values, ends)))
    return [sparse_row(row, head.most) for row in pooled.cpu().numpy()]


def token_rows(hidden: torch.Tensor, lengths: Sequence[int]) -> list[FloatMatrix]:
    """(B, T, H) -> the (T, H) float32 of each text, on the host."""
    host = hidden.float().cpu().numpy()
    return [row[:length] for row, length in zip(host, lengths, strict=True)]
