"""Measures a built model through the serving code against its FP32 original, and judges the result.

It does not know how the model was made or where it will be published.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from model_build.export import SourceModel
from shared.batching import plan_batches
from shared.contracts import EmbedRequest, FloatMatrix
from shared.cpus import usable_cpus
from shared.engines.onnx import OnnxEngine
from shared.errors import InvalidInput
from shared.manifest import Manifest, Quality
from shared.model import Model, load_model
from shared.settings import Settings
from shared.vectors import finish

MAX_BATCH_DIFFERENCE = 1e-6
TEXTS = 200
_ALONE = 24
_BATCH = 32
_CUT = 10  # nDCG@10

Embed = Callable[[Sequence[str], str | None], FloatMatrix]
"""Texts and a prompt's name (None: the model's default) -> (N, D) float32 unit vectors."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """STS: how alike people found each (a, b)."""

    name: str
    scores: list[float]
    a: list[str]
    b: list[str]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """corpus, queries: id -> text. relevant: query id -> document id -> grade, 1 or more."""

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]


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


def read_evaluation(path: Path) -> Pairs | Retrieval:
    """A .tsv of score, a, b (lines without a score are skipped), or a folder in BEIR's layout.

    Raises InvalidInput (field "eval") naming the file and line.
    """
    try:
        return _read_retrieval(path) if path.is_dir() else _read_pairs(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read", field="eval") from error


def sample_texts(count: int = TEXTS) -> list[str]:
    """`count` English texts of 3 to 200 words, always the same ones."""
    rng = random.Random(20240229)  # noqa: S311 - no secret
    # Short texts are what is mostly embedded, so lengths grow geometrically.
    lengths = [round(3 * (200 / 3) ** (i / max(1, count - 1))) for i in range(count)]
    rng.shuffle(lengths)
    return [_text(rng, length) for length in lengths]


_SUBJECTS = (
    "the night nurse;a retired cartographer;our build server;the committee;my younger sister;"
    "a flock of starlings;the harbour pilot;an unpaid invoice;the second witness;this compiler;"
    "the bakery on the corner;a tired commuter;the central bank;her violin teacher;the old glacier;"
    "a faulty sensor;the translation team;every third customer;the goalkeeper;a patient gardener"
).split(";")
_VERBS = (
    "repaired;forgot;sold;measured;praised;lost sight of;rewrote;inherited;postponed;painted;"
    "compared;delivered;questioned;translated;photographed;refused;borrowed;counted;explained;hid"
).split(";")
_OBJECTS = (
    "three copper kettles;the quarterly report;a map of the northern coast;an unusual recipe;"
    "the blood samples;half of the evidence;a database of bird songs;the wedding invitations;"
    "its own documentation;two tickets to Lisbon;the interest rate;a broken telescope;"
    "the longest sentence in the novel;a vaccine trial;the spare keys;forty barrels of oil;"
    "a chess opening;the neighbour's bicycle;an encrypted message;the school's only piano"
).split(";")
_ENDINGS = (
    "before sunrise;without asking anyone;because the train was late;in spite of heavy rain;"
    "for less than 20 euros;although nobody believed it;after the 2019 election;near the river;"
    "with surprising care;as the manual recommends;when the power failed;during the final minute;"
    "to win a small bet;under a new licence;at 4:30 pm;so the others could rest"
).split(";")
_MARKS = (".", ".", ".", "?", "!", ";")


def _text(rng: random.Random, words: int) -> str:
    parts: list[str] = []
    while len(parts) < words:
        clause = " ".join(rng.choice(each) for each in (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS))
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
    for index in range(0, len(sequences), max(1, len(sequences) // _ALONE)):
        company = [sequences[(index + step) % len(sequences)] for step in range(_BATCH)]
        alone = finish(model.embed([sequences[index]]), None, normalize=True)
        among = finish(model.embed(company), None, normalize=True)[:1]
        # np.maximum keeps a NaN; max() would drop it.
        largest = float(np.maximum(largest, np.abs(alone - among).max()))
    return largest


def _run_all(
    evaluations: Sequence[Pairs | Retrieval], served: Embed, original: Embed, manifest: Manifest
) -> dict[str, float]:
    """Two figures each: NAME and NAME of the original."""
    figures = {}
    for each in evaluations:
        kind = "spearman" if isinstance(each, Pairs) else f"ndcg@{_CUT}"
        for whose, embed in (("", served), (" (original)", original)):
            score = (
                sts_spearman(each, embed)
                if isinstance(each, Pairs)
                else ndcg(each, embed, set(manifest.prompts))
            )
            figures[f"{each.name} {kind}{whose}"] = round(score, 6)
    return figures


def sts_spearman(pairs: Pairs, embed: Embed) -> float:
    """Rank correlation of the cosines with the scores, -1 to 1."""
    cosines = (embed(pairs.a, None) * embed(pairs.b, None)).sum(axis=1)
    return float(spearmanr(cosines, pairs.scores).statistic)


def ndcg(task: Retrieval, embed: Embed, prompts: set[str]) -> float:
    """Mean nDCG@10 over the queries that have judgements, by exact search."""
    query_prompt = "query" if "query" in prompts else None
    document_prompt = next((p for p in ("document", "passage") if p in prompts), None)
    documents, queries = list(task.corpus), [q for q in task.queries if task.relevant.get(q)]
    vectors = embed(list(task.corpus.values()), document_prompt)
    scores = embed([task.queries[q] for q in queries], query_prompt) @ vectors.T
    discounts = 1 / np.log2(np.arange(2, _CUT + 2))
    gains = []
    for row, query in zip(scores, queries, strict=True):
        grades = task.relevant[query]
        best = np.argsort(-row, kind="stable")[:_CUT]
        got = np.array([2 ** grades.get(documents[i], 0) - 1 for i in best])
        ideal = np.array([2**g - 1 for g in sorted(grades.values(), reverse=True)[:_CUT]])
        gains.append((got * discounts[: len(got)]).sum() / (ideal * discounts[: len(ideal)]).sum())
    return float(np.mean(gains))


def _read_pairs(path: Path) -> Pairs:
    pairs = Pairs(path.stem, [], [], [])
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        score, *texts = line.split("\t")
        if len(texts) < 2:
            raise _malformed(path, number, "is not score, a, b with tabs between")
        if not score.strip() or not texts[0] or not texts[1]:
            continue
        try:
            pairs.scores.append(float(score))
        except ValueError as error:
            raise _malformed(path, number, "does not begin with a number") from error
        pairs.a.append(texts[0])
        pairs.b.append(texts[1])
    if len(pairs.scores) < 2:
        raise InvalidInput(f"{path.name} has fewer than two scored pairs", field="eval")
    return pairs


def _read_retrieval(path: Path) -> Retrieval:
    relevant: dict[str, dict[str, int]] = {}
    judgements = path / "qrels" / "test.tsv"
    for number, line in enumerate(judgements.read_text("utf-8").splitlines(), start=1):
        if number == 1 and line.startswith("query-id"):
            continue
        try:
            query, document, grade = line.split("\t")
            if int(grade) > 0:
                relevant.setdefault(query, {})[document] = int(grade)
        except ValueError as error:
            raise _malformed(judgements, number, "is not query, document, grade") from error
    queries = _read_texts(path / "queries.jsonl")
    if not relevant.keys() & queries.keys():
        raise InvalidInput(f"{path.name} has no query with a relevant document", field="eval")
    return Retrieval(path.name, _read_texts(path / "corpus.jsonl"), queries, relevant)


def _read_texts(path: Path) -> dict[str, str]:
    """_id -> title and text of each JSON line; empty ones are left out."""
    texts = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            item = json.loads(line)
            text = f"{item.get('title') or ''} {item['text']}".strip()
            if text:
                texts[str(item["_id"])] = text
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _malformed(path, number, "is not an object with _id and text") from error
    return texts


def _malformed(path: Path, line: int, what: str) -> InvalidInput:
    return InvalidInput(f"{path.name}, line {line} {what}", field="eval")
