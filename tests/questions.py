"""Requests to tiny models whose right answers are known, and clients that ask them over HTTP."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp
import numpy as np

from tests.patience import PATIENCE_S
from tests.tiny import Tiny, nearly, some_text


@dataclass(frozen=True)
class Question:
    """A request, the status it should have, and whether that answer's JSON is right."""

    kind: str
    path: str
    body: dict[str, Any]
    is_right: Callable[[Any], bool]
    status: int = 200


@dataclass(frozen=True)
class Answer:
    """right: it has the status and the content that the question should have.

    retry_after_s: what the service asked to wait; None if it did not.
    """

    status: int
    right: bool
    seconds: float
    retry_after_s: float | None
    message: str = ""


def embed_one(tiny: Tiny, random: Random, most_words: int = 12) -> Question:
    text = some_text(random, most_words)
    body = {"model": tiny.name, "input": text, "encoding_format": "base64"}

    def is_right(answer: Any) -> bool:
        (item,) = answer["data"]
        vector = np.frombuffer(base64.b64decode(item["embedding"]), np.float32)
        return answer["model"] == tiny.name and nearly([vector], tiny.vectors([text]))

    return Question("one", "/v1/embeddings", body, is_right)


def embed_many(
    tiny: Tiny, random: Random, *, least_texts: int = 2, most_texts: int = 24, most_words: int = 12
) -> Question:
    count = random.randint(least_texts, most_texts)
    texts = [some_text(random, most_words) for _ in range(count)]
    body = {"model": tiny.name, "inputs": texts}
    return Question("many", "/embed", body, lambda answer: nearly(answer, tiny.vectors(texts)))


def embed_short(tiny: Tiny, random: Random) -> Question:
    """With fewer dimensions than the model has."""
    texts = [some_text(random) for _ in range(random.randint(1, 4))]
    dimensions = random.randint(2, tiny.dimensions)
    body = {"model": tiny.name, "input": texts, "dimensions": dimensions}

    def is_right(answer: Any) -> bool:
        vectors = [item["embedding"] for item in answer["data"]]
        return nearly(vectors, tiny.vectors(texts, dimensions))

    return Question("dimensions", "/v1/embeddings", body, is_right)


def rerank(tiny: Tiny, random: Random) -> Question:
    query = some_text(random, 4)
    texts = [some_text(random) for _ in range(random.randint(1, 10))]
    body = {"model": tiny.name, "query": query, "texts": texts}

    def is_right(answer: Any) -> bool:
        scores = {rank["index"]: rank["score"] for rank in answer}
        ordered = [scores[index] for index in range(len(answer))]
        falling = [rank["score"] for rank in answer]
        return falling == sorted(falling, reverse=True) and nearly(ordered, tiny.scores(query, texts))

    return Question("rerank", "/rerank", body, is_right)


def mistake(tiny: Tiny, random: Random) -> Question:
    """A request that has to be refused, with a message in OpenAI's shape."""
    text = some_text(random)
    body, status = random.choice(
        (
            ({"model": "no-such-model", "input": text}, 404),
            ({"model": tiny.name, "input": []}, 400),
            ({"model": tiny.name, "input": text, "dimensions": tiny.dimensions + 1}, 400),
            ({"model": tiny.name, "input": [text, 7]}, 400),
        )
    )
    return Question("error", "/v1/embeddings", body, lambda answer: _says_why(answer), status)


def mixed(tinies: Sequence[Tiny], random: Random) -> Question:
    """Any of the above of any of `tinies`, 6 % of them mistakes."""
    tiny = random.choice(tinies)
    if random.random() < 0.06:
        return mistake(tiny, random)
    if tiny.task == "cross-encoder":
        return rerank(tiny, random)
    return random.choices((embed_one, embed_many, embed_short, rerank), (6, 2, 2, 1))[0](tiny, random)


async def ask(session: aiohttp.ClientSession, url: str, question: Question) -> Answer:
    """The one answer that `question` gets. Raises if there is none in PATIENCE_S, or no HTTP."""
    began = time.perf_counter()
    timeout = aiohttp.ClientTimeout(PATIENCE_S)
    async with session.post(url + question.path, json=question.body, timeout=timeout) as response:
        body = await response.json()
    right = response.status == question.status and question.is_right(body)
    wait_ms = response.headers.get("retry-after-ms")
    return Answer(
        response.status,
        right,
        time.perf_counter() - began,
        int(wait_ms) / 1000 if wait_ms else None,
        "" if response.status == 200 else str(body),
    )


async def ask_once(url: str, question: Question) -> Answer:
    async with aiohttp.ClientSession() as session:
        return await ask(session, url, question)


@asynccontextmanager
async def asking(
    url: str, next_question: Callable[[], Question], clients: int
) -> AsyncIterator[list[Answer]]:
    """So many clients, each asking again when it has its answer, until the block ends.

    Yields their answers as they come; after the block it holds them all. A client that is refused
    waits as it is told to, but at most a moment.
    """
    answers: list[Answer] = []
    ended = asyncio.Event()

    async def client(session: aiohttp.ClientSession) -> None:
        while not ended.is_set():
            answer = await ask(session, url, next_question())
            answers.append(answer)
            if answer.retry_after_s:
                await asyncio.sleep(min(answer.retry_after_s, 0.1))

    async with _many_connections() as session, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client(session))
        try:
            yield answers
        finally:
            ended.set()


async def flood(
    url: str, next_question: Callable[[], Question], per_s: float, count: int
) -> list[Answer]:
    """The answers to `count` questions, `per_s` a second, asked whether or not there are answers yet."""
    began = time.perf_counter()
    tasks = []
    async with _many_connections() as session, asyncio.TaskGroup() as group:
        for number in range(count):
            await asyncio.sleep(began + number / per_s - time.perf_counter())
            tasks.append(group.create_task(ask(session, url, next_question())))
    return [task.result() for task in tasks]


async def seen(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Return once `condition` holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - of what other processes do
            await asyncio.sleep(0.02)


def _many_connections() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


def _says_why(answer: Any) -> bool:
    return bool(answer["error"]["message"])
