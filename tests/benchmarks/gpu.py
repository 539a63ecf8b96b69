"""TorchEngine against sentence-transformers, text to vector, on the same card in one run."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_build.fp16 import export_fp16
from model_build.source import inspect_source
from shared.contracts import EmbedRequest, FloatMatrix
from shared.engines.base import Capacity
from shared.engines.torch import TorchEngine, capacity, gpu_memory
from shared.inference.model import Model, load_model
from shared.inference.schedule import plan_batches
from shared.inference.steps import completed
from shared.vectors import finish
from tests.benchmarks.corpus import load_texts
from tests.benchmarks.engines import Embed, compare
from tests.tiny_torch import manifest_of_folder

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_CACHE_BYTES = 2_000_000_000  # what BLITZ_CACHE_MEMORY_BYTES keeps for models by default


def card() -> str | None:
    """The GPU's name; None without CUDA."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def run(minilm: Path, work: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Figures on the GPU of a small model and of one of BERT-base's size (random weights)."""
    _, texts = load_texts(2_000)
    limits = capacity(gpu_memory()["free"] - _CACHE_BYTES)
    base = bert_base(minilm, work / "base")
    return {
        "all-MiniLM-L6-v2": measure(minilm, texts, work / "minilm", "cuda", torch.float16, limits),
        "BERT base, random": measure(base, texts, work / "half", "cuda", torch.float16, limits),
    }


def measure(
    source: Path, texts: list[str], work: Path, device: str, dtype: torch.dtype, limits: Capacity
) -> dict[str, dict[str, float]]:
    """Per contender texts/s, tokens/s and cosines with sentence-transformers, batch 32, in `dtype`."""
    model = _load(source, work, device, dtype)
    counts = [len(ids) for ids in completed(model.tokenize(EmbedRequest("m", tuple(texts))))]
    longest = model.manifest.max_tokens
    contenders: dict[str, Embed] = {
        f"sentence-transformers {dtype}, batch {size}": _theirs(source, device, dtype, longest, size)
        for size in (32, 256)
    }
    ours = f"BlitzEmbedding {dtype}"
    contenders[ours] = functools.partial(_embed, model, limits)
    turns, figures = compare(contenders, texts)
    for name, row in figures.items():
        row["tokens/s"] = row["texts/s"] * sum(counts) / len(counts)
        row |= turns.ratio(ours, name).figures("ours is x")
    return figures


def bert_base(minilm: Path, folder: Path) -> Path:
    """A sentence-transformers folder of BERT-base's shape with MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    folder.mkdir()
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (minilm / name).is_file():
            shutil.copy(minilm / name, folder)
    return folder


def _load(source: Path, work: Path, device: str, dtype: torch.dtype) -> Model:
    work.mkdir()
    described = inspect_source(source)
    export_fp16(described, work)
    (work / "tokenizer.json").write_text(described.tokenizer_json, "utf-8")
    open_engine = functools.partial(TorchEngine, device=device, dtype=dtype)
    return load_model(work, manifest_of_folder(source), open_engine)


def _embed(model: Model, limits: Capacity, texts: list[str]) -> FloatMatrix:
    """As the GPU app does it: tokenise, plan, run one micro-batch after the other, normalise."""
    sequences = completed(model.tokenize(EmbedRequest("m", tuple(texts))))
    plan = plan_batches(
        [len(ids) for ids in sequences],
        budget_tokens=limits.batch_tokens,
        max_texts=limits.batch_texts,
    )
    rows = np.empty((len(texts), model.manifest.dimensions), np.float32)
    for batch in plan:
        rows[batch] = model.run([sequences[index] for index in batch])
    return finish(rows, None, True)


def _theirs(source: Path, device: str, dtype: torch.dtype, longest: int, size: int) -> Embed:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(source), device=device, model_kwargs={"dtype": dtype})
    model.max_seq_length = longest

    def embed(texts: list[str]) -> FloatMatrix:
        vectors = model.encode(
            texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)

    return embed
