"""Lets torch's TorchScript exporter trace architectures that build their attention masks with vmap.

It does not know folders, graphs or what is exported. See docs/decisions/056-masks-without-vmap.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

_EAGER = "eager"


@contextmanager
def masks_without_vmap() -> Iterator[None]:
    """Build the masks of eager attention from broadcast indices, also where an architecture has added a
    condition of its own, as EmbeddingGemma's windows to both sides.

    transformers evaluates such a condition under vmap, because it may be any Python function of four
    integers; TorchScript cannot trace vmap. Those of its own architectures compare indices, so that a
    whole tensor of indices gives the same mask. That is the case if the build's comparison with
    sentence-transformers says so.
    """
    ALL_MASK_ATTENTION_FUNCTIONS[_EAGER] = _index_mask
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS[_EAGER]


def _index_mask(**arguments: Any) -> torch.Tensor | None:
    mask: torch.Tensor | None = eager_mask(**arguments | {"use_vmap": False})
    return mask
