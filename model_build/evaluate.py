"""Measures a built model through the serving code against its FP32 original, and judges the result.

It does not know how the model was made or where it will be published.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from model_build.export import SourceModel
from model_build.tasks import CUT, Embed, Pairs, Retrieval, ndcg, sts_spearman
from shared.batching import plan_batches
from shared.contracts import EmbedRequest, FloatMatrix
from shared.cpus import usable_cpus
from shared.engines.onnx import OnnxEngine
from shared.manifest import Manifest, Quality
from shared.model import Model, load_model
from shared.settings import Settings
from shared.vectors import finish

MAX_BATCH_DIFFERENCE = 1e-6
TEXTS = 200
_COMPARED = 96
_BATCH = 32


def evaluate(
    folder: Path,
    manifest: Manifest,
    root: Path,
    source: SourceModel,
    evaluations: Sequence[Pairs | Retrieval] = (),
) -> Quality:
    """Measure the model in `folder`. root: the folder of the original, read as `source`."""
    started = time.perf_counter()
    model = load_model(folder, manifest, OnnxEngine)
    load_s = time.perf_counter() - started
    try:
        original = _original(root, source)
        texts = sample_texts()
        vectors = _serve(model, texts)
        started = time.perf_counter()
        _serve(model, texts)
        texts_per_s = len(texts) / (time.perf_counter() - started)
        cosines = (vectors * original(texts, None)).sum(axis=1)
        return Quality(
            cosine_mean=float(cosines.mean()),
            cosine_p01=float(np.percentile(cosines, 1)),
            cosine_min=float(cosines.min()),
            batch_max_abs_diff=_batch_difference(model, texts),
            load_s=round(load_s, 3),
            texts_per_s=round(texts_per_s, 1),
            evaluations=_run_all(evaluations, lambda t, p: _serve(model, t, p), original, manifest),
        )
    finally:
        model.close()


def shortfalls(quality: Quality, min_cosine: float) -> list[str]:
    """What fell short, in words; empty if the model may be published. NaN falls short."""
    found = []
    if not quality.cosine_mean >= min_cosine:
        found.append(f"mean cosine {quality.cosine_mean:.6f} is below --min-cosine {min_cosine:g}")
    if not quality.batch_max_abs_diff < MAX_BATCH_DIFFERENCE:
        found.append(
            f"a text's vector depends on its batch: it moves by {quality.batch_max_abs_diff:.2e}, "
            f"{MAX_BATCH_DIFFERENCE:g} is the limit"
        )
    return found


def sample_texts(count: int = TEXTS) -> list[str]:
    """`count` English texts of 3 to 200 words, always the same ones."""
    rng = random.Random(20240229)  # noqa: S311 - no secret
    # Short texts are what is mostly embedded, so lengths grow geometrically.
    lengths = [round(3 * (200 / 3) ** (i / max(1, count - 1))) for i in range(count)]
    rng.shuffle(lengths)
    columns = [block.splitlines() for block in _PHRASES.read_text("utf-8").split("\n\n")]
    return [_text(rng, columns, length) for length in lengths]


# Blocks of subjects, verbs, objects and endings, a phrase a line.
_PHRASES = Path(__file__).with_name("texts.txt")
_MARKS = (".", ".", ".", "?", "!", ";")


def _text(rng: random.Random, columns: list[list[str]], words: int) -> str:
    parts: list[str] = []
    while len(parts) < words:
        clause = " ".join(rng.choice(column) for column in columns)
        parts += (clause[0].upper() + clause[1:] + rng.choice(_MARKS)).split()
    return " ".join(parts[:words])


def _serve(model: Model, texts: Sequence[str], prompt: str | None = None) -> FloatMatrix:
    """As a server with this machine's cores does: tokenise, plan, run, finish."""
    settings = Settings()
    sequences = model.tokenize(EmbedRequest(model.manifest.name, tuple(texts), prompt_name=prompt))
    plan = plan_batches(
        [len(ids) for ids in sequences],
        budget_tokens=settings.batch_tokens,
        max_texts=settings.batch_texts,
    )
    vectors = np.empty((len(texts), model.manifest.dimensions), np.float32)

    def run(rows: list[int]) -> None:
        vectors[rows] = model.embed([sequences[row] for row in rows])

    with ThreadPoolExecutor(usable_cpus()) as pool:
        list(pool.map(run, plan))
    return finish(vectors, None, normalize=True)


def _original(root: Path, source: SourceModel) -> Embed:
    """The FP32 model in torch, run by sentence-transformers."""
    safe: dict[str, Any] = {"use_safetensors": True, "dtype": "float32"}
    if (root / "modules.json").is_file():
        model = SentenceTransformer(
            str(root), device="cpu", trust_remote_code=False, local_files_only=True, model_kwargs=safe
        )
    else:
        mode: Any = {"last": "lasttoken", "weighted_mean": "weightedmean"}.get(
            source.pooling, source.pooling
        )
        modules = [Transformer(str(root), model_kwargs=safe), Pooling(source.hidden_size, mode)]
        model = SentenceTransformer(modules=modules, device="cpu")
    model.max_seq_length = source.max_tokens
    tokenizer: Any = model.tokenizer
    if tokenizer.pad_token is None:  # a bare tokenizer.json does not say which token pads
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(source.pad_token_id)

    def embed(texts: Sequence[str], prompt: str | None) -> FloatMatrix:
        vectors: FloatMatrix = model.encode(
            list(texts), prompt_name=prompt, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    return embed


def _batch_difference(model: Model, texts: Sequence[str]) -> float:
    """Largest change of any vector's element between a text alone and among 31 others."""
    sequences = model.tokenize(EmbedRequest(model.manifest.name, tuple(texts)))
    largest = 0.0
    for start in range(0, _COMPARED, _BATCH):
        batch = sequences[start : start + _BATCH]
        among = finish(model.embed(batch), None, normalize=True)
        alone = finish(np.concatenate([model.embed([ids]) for ids in batch]), None, normalize=True)
        # np.maximum keeps a NaN; max() would drop it.
        largest = float(np.maximum(largest, np.abs(alone - among).max()))
    return largest


def _run_all(
    evaluations: Sequence[Pairs | Retrieval], served: Embed, original: Embed, manifest: Manifest
) -> dict[str, float]:
    """Two figures each: NAME and NAME of the original."""
    figures = {}
    for each in evaluations:
        kind = "spearman" if isinstance(each, Pairs) else f"ndcg@{CUT}"
        for whose, embed in (("", served), (" (original)", original)):
            score = (
                sts_spearman(each, embed)
                if isinstance(each, Pairs)
                else ndcg(each, embed, set(manifest.prompts))
            )
            figures[f"{each.name} {kind}{whose}"] = round(score, 6)
    return figures
