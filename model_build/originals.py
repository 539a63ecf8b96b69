"""Runs the original model in FP32 with sentence-transformers, as the reference for a build.

It does not know built models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import (
    CLIPModel,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from tokenizers import Tokenizer

from model_build.folder import refusing
from model_build.source import STATIC, SourceModel
from model_build.static import MODEL2VEC, read_table, unknown_token
from model_build.tasks import Score
from model_build.text_side import clip_of
from shared.contracts import FloatMatrix
from shared.errors import InvalidArtefact
from shared.vectors import poolings_of

SAFE: dict[str, Any] = {"use_safetensors": True, "dtype": "float32"}
UNREADABLE = "sentence-transformers, the reference for the build, cannot load the model"
DOES_NOT_RUN = "sentence-transformers, the reference for the build, cannot run the model"
# On two cores, 200 texts of 3 to 200 words took 4.5 s of CPU time this way, 6.5 s in batches of 32.
BATCH = 8


class Original:
    """Calls an embedding model by sentence-transformers' public interface."""

    def __init__(self, model: SentenceTransformer, task: str | None = None) -> None:
        """task: which of the model's routes the texts take."""
        self._model = model
        self._task = {} if task is None else {"task": task}

    def __call__(self, texts: Sequence[str], prompt: str | None) -> FloatMatrix:
        """(N, D) float32 unit vectors. prompt: a name; None: the model's default prompt.

        Raises InvalidInput if the model cannot run, InvalidArtefact for NaN or infinite numbers.
        """
        with refusing(DOES_NOT_RUN):
            vectors: FloatMatrix = self._model.encode(
                list(texts),
                prompt_name=prompt,
                normalize_embeddings=True,
                show_progress_bar=False,
                batch_size=BATCH,
                **self._task,
            )
        return _numbers(vectors)

    def tokens(self, text: str) -> int:
        """Number of tokens that it reads of `text`, with special tokens and without a prompt."""
        with refusing(DOES_NOT_RUN):
            features = self._model.preprocess([text], **self._task)
        # Static embeddings have no padding, and therefore no mask.
        return int(
            features["attention_mask"].sum()
            if "attention_mask" in features
            else features["input_ids"].numel()
        )


def embedder(root: Path, source: SourceModel) -> Original:
    """The embedding model in the folder `root`, which was read as `source`.

    sentence-transformers itself reads pooling, further modules, tokenizer and maximum length from the
    folder, so that errors in `source` show. The prompts are those of `source`, and so is the pooling if
    the folder states none: the operator gave it. Raises InvalidInput if it cannot be loaded.
    """
    with refusing(UNREADABLE):
        model = _sentence_transformer(root, source)
        prepare(_reader(model, source), source)
    model.prompts, model.default_prompt_name = dict(source.prompts), source.default_prompt
    return Original(model, source.route)


def _reader(model: SentenceTransformer, source: SourceModel) -> Any:
    """What tokenises the texts of the route of `source`: the model itself, or a module of its Router."""
    first: Any = model[0]
    return first.sub_modules[source.route][0] if isinstance(first, Router) else model


def _sentence_transformer(root: Path, source: SourceModel) -> SentenceTransformer:
    if source.architecture == MODEL2VEC:
        return SentenceTransformer(modules=[_model2vec(source)], device="cpu")
    place, after = clip_of(root)
    if place is not None:
        # A processor of texts alone: one of images needs packages that a build does without.
        texts = CLIPModel(str(place), tokenizer_name_or_path=str(source.folder), model_kwargs=SAFE)
        return SentenceTransformer(modules=[texts, *(Normalize() for _ in after)], device="cpu")
    if (root / "modules.json").is_file():
        return SentenceTransformer(
            str(root), device="cpu", trust_remote_code=False, local_files_only=True, model_kwargs=SAFE
        )
    plain = poolings_of(source.pooling or "mean")[0]
    mode: Any = {
        "last": "lasttoken",
        "weighted_mean": "weightedmean",
        "mean_sqrt_length": "mean_sqrt_len_tokens",
    }.get(plain, plain)
    modules = [Transformer(str(root), model_kwargs=SAFE), Pooling(source.hidden_size, mode)]
    return SentenceTransformer(modules=modules, device="cpu")


def _model2vec(source: SourceModel) -> StaticEmbedding:
    """sentence-transformers' module with model2vec's rules: no unknown tokens, and a maximum length."""
    table, mapping, weights = read_table(source.folder)
    table = table.float() if mapping is None else table.float()[mapping]
    if weights is not None:
        table = table * weights.float()[:, None]
    module = StaticEmbedding(Tokenizer.from_str(source.tokenizer_json), embedding_weights=table)
    module.embedding.padding_idx = unknown_token(source.tokenizer_json)
    module.tokenizer.enable_truncation(source.max_tokens)
    return module


def scorer(root: Path, source: SourceModel) -> Score:
    """The cross-encoder in the folder `root`, which was read as `source`: N pairs -> (N, L) logits.

    Raises InvalidInput if it cannot be loaded; its calls raise as those of Original.
    """
    with refusing(UNREADABLE):
        model = CrossEncoder(
            str(root),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs=SAFE,
            activation_fn=torch.nn.Identity(),
        )
        prepare(model, source)

    def score(pairs: Sequence[tuple[str, str]]) -> FloatMatrix:
        with refusing(DOES_NOT_RUN):
            logits: FloatMatrix = model.predict(list(pairs), show_progress_bar=False, batch_size=BATCH)
        return _numbers(logits).reshape(len(pairs), -1)

    return score


def _numbers(rows: FloatMatrix) -> FloatMatrix:
    if not np.isfinite(rows).all():
        raise InvalidArtefact("the original model itself returns NaN or infinite numbers in FP32")
    return rows


def prepare(model: Any, source: SourceModel) -> None:
    """Make a model of sentence-transformers pad, and read no more than it has positions for."""
    if source.model_type == STATIC:
        return  # no padding, and the tokenizer has the maximum length
    if (positions := _positions(model)) is not None and positions < model.max_seq_length:
        # sentence-transformers takes RoBERTa's 514 rows for 514 tokens, and would fail at a longer text.
        model.max_seq_length = positions
    tokenizer = model.tokenizer
    if tokenizer.pad_token is None:  # a bare tokenizer.json does not name the padding token
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(source.pad_token_id)


def _positions(model: torch.nn.Module) -> int | None:
    """Number of learned positions that tokens can use; None if positions are computed."""
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, torch.nn.Embedding):
            unused = 0 if table.padding_idx is None else table.padding_idx + 1
            return table.num_embeddings - unused
    return None
