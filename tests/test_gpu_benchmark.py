"""The GPU's benchmark, which runs where a GPU is, tried with a tiny model on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from model_build.samples import sample_texts
from tests.benchmarks.gpu import Shape, measure, save, shapes


def test_contenders_agree_and_have_figures(tmp_path: Path) -> None:
    """Ours gives the vectors of sentence-transformers over the same folder."""
    small = BertConfig(
        vocab_size=20_000,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    texts = sample_texts(12)
    folder = save(Shape(BertModel, small, "mean"), texts, tmp_path / "source")
    figures = measure(folder, texts, tmp_path / "ours", "cpu", torch.float32, rounds=1)
    assert list(figures) == [*(f"sentence-transformers, batch {n}" for n in (32, 256)), "BlitzEmbedding"]
    for row in figures.values():
        assert row["cos min"] == pytest.approx(1, abs=1e-5)
        assert row["texts/s"] > 0
        assert row["tokens/s"] > row["texts/s"]


@pytest.mark.parametrize(
    ("name", "millions"),
    [("MiniLM-L6", 23), ("BERT base", 109), ("XLM-R large", 560), ("Qwen3 0.6B", 596)],
)
def test_shapes_are_those_of_the_real_models(name: str, millions: int) -> None:
    """By the parameters that their publishers count, without allocating them."""
    shape = shapes()[name]
    with torch.device("meta"):
        parameters = sum(each.numel() for each in shape.kind(shape.config).parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.02)
