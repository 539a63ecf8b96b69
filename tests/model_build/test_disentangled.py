"""DeBERTa's attention in one operator against that of transformers, blind to batch-mates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Model

from model_build.describe import describe
from model_build.export import export_onnx, optimize_offline
from model_build.int8 import quantize_per_row
from model_build.originals import scorer
from model_build.serving import Served
from model_build.source import inspect_source
from shared.engines.base import pad
from shared.engines.onnx import OnnxEngine
from shared.models.manifest import Source
from tests.tiny_torch import SMALL, edit_json, save_random, save_tiny, state_pooling

BOTH = ["p2c", "c2p"]
V3 = {
    **SMALL,
    "max_position_embeddings": 150,
    "relative_attention": True,
    "pos_att_type": BOTH,
    "position_buckets": 16,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
V2 = {**V3, "position_buckets": -1, "share_att_key": False, "norm_rel_ebd": "none", "type_vocab_size": 2}
CONV = {"conv_kernel_size": 3, "conv_act": "gelu"}
ALONE = {"num_hidden_layers": 1}
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "v3": (V3, 2),
    "v2": (V2, 2),
    "v2-xlarge": ({**V3, **CONV, "share_att_key": False}, 2),
    "content to position": ({**V3, **ALONE, "pos_att_type": ["c2p"]}, 1),
    "position to content": (
        {**V2, **ALONE, "pos_att_type": ["p2c"], "max_relative_positions": 24},
        1,
    ),
    "neither": ({**V3, **ALONE, "pos_att_type": []}, 0),
    "no relative positions": ({**V2, **ALONE, "relative_attention": False}, 0),
}
"""A configuration, and how many layers have an operator of their own."""
TEXTS = [
    [0, *(4 + i * (7 + length) % 26 for i in range(length - 2)), 2]
    for length in (2, 7, 64, 65, 97, 127, 150)
]
"""Some of one block, of blocks that are all whole, and of ones whose last is not."""


@pytest.mark.parametrize("name", VARIANTS)
def test_token_embeddings_are_torchs_and_blind_to_batch_mates(name: str, tmp_path: Path) -> None:
    """To the last bit, beside a longer text as alone."""
    config, own = VARIANTS[name]
    folder = save_random(tmp_path / "model", DebertaV2Model, DebertaV2Config(**config), 0)
    source = inspect_source(state_pooling(folder))
    export_onnx(source, tmp_path / "traced.onnx")
    optimize_offline(tmp_path / "traced.onnx", tmp_path / "model.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert (operators.count("If"), operators.count("GatherElements")) == (own, 0)
    model = DebertaV2Model.from_pretrained(folder).eval()
    batch = pad(TEXTS, source.pad_token_id)
    with torch.no_grad():
        masked = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        expected = model(*masked).last_hidden_state.numpy()
    engine = OnnxEngine(tmp_path, describe(tmp_path, source, Source("here", "1"), "m", "cpu-fp32"))
    together = engine.output(TEXTS)
    for row, tokens in enumerate(TEXTS):
        ours = together[row, : len(tokens)]
        np.testing.assert_allclose(ours, expected[row, : len(tokens)], atol=2e-5)
        np.testing.assert_array_equal(engine.output([tokens])[0, : len(tokens)], ours)
    engine.close()


def test_scores_are_sentence_transformers_own_and_in_int8_blind_to_batch_mates(tmp_path: Path) -> None:
    """Tables of positions stay in FP32, and in the file although inner graphs alone read them."""
    config = DebertaV2Config(**V3, num_labels=1)
    folder = save_tiny(tmp_path / "model", DebertaV2ForSequenceClassification, config)
    edit_json(folder / "tokenizer_config.json", model_max_length=150)
    source = inspect_source(folder)
    raw, int8, model = (tmp_path / f"{name}.onnx" for name in ("raw", "int8", "model"))
    export_onnx(source, raw)
    optimize_offline(raw, model)
    here = Source("here", "1")
    pairs = [("a b c " * (1 + n % 3), "d o c s " * 5 * n) for n in range(1, 8)]
    served = Served(tmp_path, describe(tmp_path, source, here, "m", "cpu-fp32"))
    scores = served.score(pairs)
    np.testing.assert_allclose(scores, scorer(folder, source)(pairs), atol=2e-5)
    served.close()
    quantize_per_row(raw, int8)
    optimize_offline(int8, model)
    tables = [each for each in onnx.load(model).graph.initializer if len(each.dims) == 3]
    assert [tuple(each.dims) for each in tables] == [(4, 32, 8)] * 4
    served = Served(tmp_path, describe(tmp_path, source, here, "m", "cpu-int8"))
    assert served.score_difference(pairs) == 0
    assert np.corrcoef(served.score(pairs).T, scores.T)[0, 1] > 0.9
    served.close()
