"""How speed and latency change with what callers decide: texts a call, length, clients, models, load.

Medians with quartiles of rounds taken in turns; what a service can do is measured on its real HTTP. Does
not know how curves are drawn.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from msgspec.structs import replace

from shared.models.manifest import Manifest
from shared.models.store import open_store_url
from tests.benchmarks.engines import Contenders, rate_of
from tests.benchmarks.peers import tokenizer_of
from tests.benchmarks.service import MODEL, load
from tests.benchmarks.turns import Spread, spread, take_turns
from tests.questions import Question, asking, flood, seen
from tests.server import metrics_of, running_service

ROUNDS = 5
TEXTS_A_CALL = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (8, 16, 32, 64, 128, 256)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
MODELS_HELD = 3
MODELS_ASKED = (1, 2, 3, 4, 6, 8)
LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Lines by name, each of (x, y with quartiles)."""

    title: str
    across: str
    up: str
    lines: dict[str, list[tuple[float, Spread]]] = field(default_factory=dict)

    def add(self, name: str, x: float, y: Spread) -> None:
        self.lines.setdefault(name, []).append((x, y))

    def figures(self) -> dict[str, dict[str, float]]:
        return {name: {f"{x:g}": y.median for x, y in points} for name, points in self.lines.items()}


def by_texts_a_call(contenders: Contenders, names: Sequence[str], texts: Sequence[str]) -> Curve:
    """Texts a second of each, over how many a call has. texts: as many as the largest call or more."""
    curve = Curve("Throughput over texts a call", "texts a call", "texts/s")
    opened = {name: contenders.open(name) for name in names}
    for at_once in TEXTS_A_CALL:
        some = texts[: max(at_once, TEXTS_A_CALL[-1] // 4)]
        turns = take_turns(
            {name: rate_of(embed, some, at_once) for name, embed in opened.items()}, ROUNDS
        )
        for name in names:
            curve.add(name, at_once, turns.of(name))
    return curve


def by_length(contenders: Contenders, names: Sequence[str], texts: Sequence[str]) -> Curve:
    """Tokens a second of each, over the length of all texts of a call, special tokens included."""
    curve = Curve("Throughput over length", "tokens of each text", "tokens/s")
    opened = {name: contenders.open(name) for name in names}
    for tokens in TOKENS:
        some = list(itertools.islice(_of_length(contenders, texts, tokens), max(8, 1024 // tokens)))
        turns = take_turns({name: rate_of(embed, some) for name, embed in opened.items()}, ROUNDS)
        for name in names:
            rates = [rate * tokens for rate in turns.measured[name]]
            curve.add(name, tokens, spread(rates))
    return curve


def _of_length(contenders: Contenders, texts: Sequence[str], tokens: int) -> Iterator[str]:
    """Beginnings of texts' words that have this many tokens, over and over."""
    tokenize = tokenizer_of(contenders.setting)
    words = itertools.cycle(itertools.chain.from_iterable(text.split() for text in texts))
    while True:
        text = next(words)
        while len(tokenize([text])[0]) < tokens:
            text = f"{text} {next(words)}"
        if len(tokenize([text])[0]) == tokens:
            yield text


def by_clients(store: Path, texts: Sequence[str]) -> Curve:
    """Texts a second over HTTP, over how many clients ask at once."""
    curve = Curve("Throughput over clients", "clients, each with one request at a time", "texts/s")
    with running_service(f"file://{store}") as url:

        def measure(clients: int, per_request: int) -> Callable[[], float]:
            endpoint = f"{url}/v1/embeddings"
            some = texts[: max(100, clients * per_request)]
            return lambda: asyncio.run(load(endpoint, some, clients, per_request, 1))

        for per_request in (1, 8):
            turns = take_turns(
                {str(clients): measure(clients, per_request) for clients in CLIENTS}, ROUNDS
            )
            for clients in CLIENTS:
                name = "one text a request" if per_request == 1 else f"{per_request} texts a request"
                curve.add(name, clients, turns.of(str(clients)))
    return curve


def by_models(build: tuple[Path, Manifest], texts: Sequence[str]) -> tuple[Curve, Curve]:
    """Requests a second, and loads a request, over how many models are asked of a cache that holds 3."""
    title = f"a cache of {MODELS_HELD} models, asked at random"
    rates = Curve(f"Requests over models: {title}", "models asked", "requests/s of 4 clients")
    loads = Curve(f"Loads over models: {title}", "models asked", "loads a request")
    folder, manifest = build
    with tempfile.TemporaryDirectory() as scratch:
        store = f"file://{Path(scratch) / 'models'}"
        published = open_store_url(store, cache_dir=Path(scratch) / "cache", cache_disk_bytes=10**9)
        names = [f"{manifest.name}-{number}" for number in range(MODELS_ASKED[-1])]
        for name in names:
            published.publish(folder, replace(manifest, name=name))
        with running_service(store, environ={"BLITZ_CACHE_MODELS": str(MODELS_HELD)}) as url:
            for asked in MODELS_ASKED:
                rate, loaded = asyncio.run(_ask_models(url, names[:asked], texts))
                rates.add("BlitzEmbedding", asked, spread([rate]))
                loads.add("BlitzEmbedding", asked, spread([loaded]))
    return rates, loads


async def _ask_models(url: str, names: Sequence[str], texts: Sequence[str]) -> tuple[float, float]:
    random = Random(0)

    def question() -> Question:
        return _question(random.choice(names), [random.choice(texts)])

    def loads(metrics: Mapping[str, float]) -> float:
        return metrics.get("blitz_cache_load_duration_count", 0.0)

    async with asking(url, question, clients=4) as warming:
        await seen(lambda: len(warming) >= 20 * len(names))
    before = await asyncio.to_thread(metrics_of, url)
    async with asking(url, question, clients=4) as answers:
        await asyncio.sleep(SECONDS)
        count = len(answers)
    after = await asyncio.to_thread(metrics_of, url)
    assert all(answer.right for answer in answers)
    return count / SECONDS, (loads(after) - loads(before)) / len(answers)


def by_load(store: Path, texts: Sequence[str]) -> Curve:
    """Latency percentiles of single texts that arrive at a rate, whether or not others are answered."""
    curve = Curve("Latency over load", "requests of one text, share of what 8 clients get", "ms")
    endless = itertools.cycle(texts)

    def question() -> Question:
        return _question(MODEL, [next(endless)])

    async def measure(url: str) -> None:
        async with asking(url, question, clients=8) as answers:
            await seen(lambda: len(answers) >= 200)
            before = len(answers)
            await asyncio.sleep(SECONDS)
            most_per_s = (len(answers) - before) / SECONDS
        for share in LOADS:
            per_s = share * most_per_s
            answers = await flood(url, question, per_s, int(per_s * SECONDS))
            assert all(answer.right for answer in answers)
            times = [answer.seconds * 1e3 for answer in answers]
            for percent in (50, 95, 99):
                value = float(np.percentile(times, percent))
                curve.add(f"p{percent}", share, spread([value]))

    with running_service(f"file://{store}") as url:
        asyncio.run(measure(url))
    return curve


def _question(model: str, texts: list[str]) -> Question:
    def are_vectors(answer: Any) -> bool:
        return np.asarray(answer).shape == (len(texts), 384)

    return Question("many", "/embed", {"model": model, "inputs": texts}, are_vectors)
