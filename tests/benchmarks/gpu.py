"""TorchEngine against sentence-transformers, text to vector, on the same card in one run.

Nothing is downloaded: weights are random, in the shapes of real models, and the tokenizer is made of the
texts' own words. Speed and memory do not depend on what weights say.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from model_build.fp16 import export_fp16
from model_build.source import inspect_source
from shared.contracts import EmbedRequest, FloatMatrix
from shared.engines.base import Capacity
from shared.engines.torch import TorchEngine, capacity, gpu_memory
from shared.inference.model import Model, load_model
from shared.inference.schedule import plan_batches
from shared.inference.steps import completed
from shared.vectors import Pooling, finish
from tests.benchmarks.corpus import load_texts
from tests.benchmarks.engines import fidelity, rate_of
from tests.benchmarks.peers import Embed
from tests.benchmarks.turns import ROUNDS, Turns, take_turns
from tests.tiny_torch import POOLINGS, manifest_of_folder, state_pooling

TEXTS = 1_000
MAX_TOKENS = 256
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_CACHE_BYTES = 2_000_000_000  # what BLITZ_CACHE_MEMORY_BYTES keeps for models by default


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's class and configuration, as it is published, and its pooling."""

    kind: Any
    config: Any
    pooling: Pooling


def shapes() -> dict[str, Shape]:
    """Of real models, by name."""
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    minilm = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, **ids
    )
    large = XLMRobertaConfig(
        vocab_size=250_002,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
        **ids,
    )
    qwen = Qwen3Config(
        vocab_size=151_669,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        **ids,
    )
    return {
        "MiniLM-L6": Shape(BertModel, minilm, "mean"),
        "BERT base": Shape(BertModel, BertConfig(**ids), "mean"),
        "XLM-R large": Shape(XLMRobertaModel, large, "cls"),
        "Qwen3 0.6B": Shape(Qwen3Model, qwen, "last"),
    }


def card() -> str | None:
    """The GPU's name; None without CUDA."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def run(work: Path) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """(shape, figures by contender) on the GPU, one after the other."""
    _, texts = load_texts(TEXTS)
    for name, shape in shapes().items():
        folder = save(shape, texts, work / name)
        yield name, measure(folder, texts, work / f"{name} ours", "cuda", torch.float16)


def save(shape: Shape, texts: Sequence[str], folder: Path) -> Path:
    """A sentence-transformers folder of this shape."""
    torch.manual_seed(0)
    shape.kind(shape.config).half().save_pretrained(folder)
    _tokenizer(texts).save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": MAX_TOKENS}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pooling = {"pooling_mode": POOLINGS[shape.pooling]}
    return state_pooling(folder, word_embedding_dimension=shape.config.hidden_size, **pooling)


def measure(
    folder: Path, texts: Sequence[str], work: Path, device: str, dtype: torch.dtype, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """By contender: speed, cosines with sentence-transformers in `dtype`, and memory in MiB."""
    work.mkdir()
    open_ours = functools.partial(_open, _published(folder, work), folder, device, dtype)
    contenders: dict[str, Callable[[], Embed]] = {
        f"sentence-transformers, batch {size}": functools.partial(_theirs, folder, device, dtype, size)
        for size in (32, 256)
    }
    contenders["BlitzEmbedding"] = open_ours
    if device == "cuda":
        contenders["BlitzEmbedding, torch.compile"] = functools.partial(open_ours, compile=True)
        contenders["BlitzEmbedding, CUDA graphs"] = functools.partial(open_ours, graphs=True)
    opened, memory = {}, {}
    for name, open_ in contenders.items():
        with _peak_mib(device) as peak:
            opened[name] = open_()
            opened[name](texts)
        memory[name] = peak()
    turns = take_turns({name: rate_of(embed, texts) for name, embed in opened.items()}, rounds)
    figures = _figures(turns, fidelity(opened, texts), _mean_tokens(folder, texts))
    for name, row in figures.items():
        row["peak memory, MiB"] = memory[name]
    if device == "cuda":
        figures["BlitzEmbedding, out of memory"] = out_of_memory(
            opened["BlitzEmbedding"], open_ours, texts
        )
    return figures


def out_of_memory(
    usual: Embed, open_ours: Callable[..., Embed], texts: Sequence[str]
) -> dict[str, float]:
    """All texts as one micro-batch, on a card that is made too small for it: halved until it fits.

    cos min: with the vectors of the usual micro-batches.
    """
    everything = open_ours(tokens_at_once=10**9)
    spare = 200 * 1024**2
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_allocated() + spare
    before = torch.cuda.memory_stats().get("num_ooms", 0)
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    try:
        vectors = everything(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "times out of memory": float(torch.cuda.memory_stats()["num_ooms"] - before),
        "cos min": float((vectors * usual(texts)).sum(axis=1).min()),
    }


def _figures(
    turns: Turns, table: dict[str, dict[str, float]], mean_tokens: float
) -> dict[str, dict[str, float]]:
    for name, row in table.items():
        row["texts/s"] = turns.of(name).median
        row["tokens/s"] = row["texts/s"] * mean_tokens
        row |= turns.ratio("BlitzEmbedding", name).figures("ours is x")
    return table


def _mean_tokens(folder: Path, texts: Sequence[str]) -> float:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    return float(np.mean([len(each.ids) for each in tokenizer.encode_batch_fast(list(texts))]))


def _tokenizer(texts: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=20_000, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _published(folder: Path, work: Path) -> Path:
    described = inspect_source(folder)
    export_fp16(described, work)
    (work / "tokenizer.json").write_text(described.tokenizer_json, "utf-8")
    return work


def _open(
    work: Path,
    folder: Path,
    device: str,
    dtype: torch.dtype,
    *,
    compile: bool = False,
    graphs: bool = False,
    tokens_at_once: int | None = None,
) -> Embed:
    """Ours, as the GPU app has it. graphs: compiled for CUDA graphs, which the app does not offer."""

    def open_engine(*arguments: Any) -> TorchEngine:
        engine = TorchEngine(*arguments, device=device, dtype=dtype, compile=compile)
        if graphs:
            engine._model = torch.compile(engine._model, mode="reduce-overhead", dynamic=False)
        return engine

    free = gpu_memory()["free"] - _CACHE_BYTES if device == "cuda" else None
    limits = capacity(free)
    if tokens_at_once is not None:
        limits = Capacity(threads=1, batch_tokens=tokens_at_once, batch_texts=tokens_at_once)
    model = load_model(work, manifest_of_folder(folder), open_engine)
    return functools.partial(_embed, model, limits)


def _embed(model: Model, limits: Capacity, texts: Sequence[str]) -> FloatMatrix:
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


def _theirs(folder: Path, device: str, dtype: torch.dtype, size: int) -> Embed:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": dtype})
    model.max_seq_length = MAX_TOKENS

    def embed(texts: Sequence[str]) -> FloatMatrix:
        vectors = model.encode(
            list(texts), batch_size=size, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)

    return embed


@contextmanager
def _peak_mib(device: str) -> Iterator[Callable[[], float]]:
    """Yields what tells how much more tensors took, at most, than before the block; NaN on a CPU."""
    if device != "cuda":
        yield lambda: float("nan")
        return
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield lambda: (torch.cuda.max_memory_allocated() - before) / 1024**2
