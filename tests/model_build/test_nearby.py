"""Attention to near or earlier tokens against that of transformers, blind to batch-mates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import ModernBertConfig, ModernBertModel, Qwen3Config, Qwen3Model
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from model_build.describe import describe
from model_build.export import export_onnx, optimize_offline
from model_build.nearby import ALL
from model_build.source import inspect_source
from model_build.torch_attention import reach_of
from shared.engines.base import pad
from shared.engines.onnx import SHORT_TOKENS, OnnxEngine
from shared.models.manifest import Source
from tests.tiny_torch import SMALL, save_random, state_pooling

LONG = {**SMALL, "max_position_embeddings": 600, "bos_token_id": 0, "eos_token_id": 2}
MODELS: dict[str, tuple[Any, Any]] = {
    "modernbert": (
        ModernBertModel,
        ModernBertConfig(
            **LONG, cls_token_id=0, sep_token_id=2, local_attention=16, global_attn_every_n_layers=2
        ),
    ),
    "qwen3": (
        Qwen3Model,
        Qwen3Config(
            **LONG,
            num_key_value_heads=2,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=33,
            layer_types=["full_attention", "sliding_attention"],
        ),
    ),
}
TEXTS = [
    [0, *(4 + i * (7 + length) % 26 for i in range(length - 2)), 2]
    for length in (3, 70, 384, 385, 513, 590)
]
"""Short ones, one of a block's length and a token, and one whose last block is not whole."""


@pytest.mark.parametrize("name", MODELS)
def test_token_embeddings_are_torchs_and_blind_to_batch_mates(name: str, tmp_path: Path) -> None:
    """No layer holds all scores of a long text. A short one has its bits beside a long one too."""
    kind, config = MODELS[name]
    folder = state_pooling(save_random(tmp_path / "model", kind, config, 0))
    source = inspect_source(folder)
    export_onnx(source, tmp_path / "traced.onnx")
    optimize_offline(tmp_path / "traced.onnx", tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    assert {each.key: each.value for each in graph.metadata_props}[SHORT_TOKENS] == "384"
    assert "Softmax" not in {node.op_type for node in graph.graph.node}
    engine = OnnxEngine(tmp_path, describe(tmp_path, source, Source("here", "1"), "m", "cpu-fp32"))
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    batch = pad(TEXTS, source.pad_token_id)
    with torch.no_grad():
        masked = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        expected = model(*masked).last_hidden_state.numpy()
    together = engine.output(TEXTS)
    for row, tokens in enumerate(TEXTS):
        ours = together[row, : len(tokens)]
        np.testing.assert_allclose(ours, expected[row, : len(tokens)], atol=1e-4)
        np.testing.assert_array_equal(engine.output([tokens])[0, : len(tokens)], ours)
    engine.close()


@pytest.mark.parametrize(
    ("sees", "reach"),
    [
        (bidirectional_mask_function, (ALL, ALL)),
        (causal_mask_function, (ALL, 0)),
        (sliding_window_causal_mask_function(5), (4, 0)),
        (sliding_window_bidirectional_mask_function(5), (5, 5)),
    ],
    ids=["all", "earlier", "near and earlier", "near"],
)
def test_how_far_tokens_see_is_what_transformers_says(sees: Any, reach: tuple[int, int]) -> None:
    """A window of 5 has the token itself among the 5 to one side, and 5 to both."""
    assert reach_of(sees) == reach


def test_tokens_that_do_not_see_all_between_two_distances_are_refused() -> None:
    """Every second token, for example."""
    with pytest.raises(ValueError, match="between two distances"):
        reach_of(lambda batch, head, query, key: (key - query) % 2 == 0)
