"""Synthetic texts, and queries with documents, for measuring built models; the same in every build.

It does not know models. Builds need no download and no data set.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

TEXTS = 200
QUERIES = 12
DOCUMENTS = 16
_SEED = 20240229

# Blocks of subjects, verbs, objects and endings, one phrase per line.
_PHRASES = Path(__file__).with_name("texts.txt")
_MARKS = (".", ".", ".", "?", "!", ";")


@dataclass(frozen=True, slots=True)
class Ranking:
    """A query and the documents to rank for it."""

    query: str
    documents: tuple[str, ...]


def sample_texts(count: int = TEXTS, seed: int = _SEED) -> list[str]:
    """`count` English texts of 3 to 200 words. With another seed they are others."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    # Lengths grow geometrically, because most embedded texts are short.
    lengths = [round(3 * (200 / 3) ** (i / max(1, count - 1))) for i in range(count)]
    rng.shuffle(lengths)
    columns = _columns()
    return [_text(rng, columns, length) for length in lengths]


def long_text(words: int) -> str:
    """One English text of so many words, for what is longer than a model reads."""
    return _text(random.Random(_SEED), _columns(), words)  # noqa: S311 - no secret


def sample_rankings(seed: int = _SEED) -> list[Ranking]:
    """Queries such as "Who sold the spare keys?", and documents of graded relevance.

    Each document shares a different subset of subject, verb, object and ending with the answer, so that
    a ranker can order them; some continue with unrelated sentences. 5 to 90 words.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    columns = _columns()
    rankings = []
    for _ in range(QUERIES):
        answer = [rng.choice(column) for column in columns]
        documents = []
        for shared in range(DOCUMENTS):
            parts = [
                own if shared >> bit & 1 else rng.choice([each for each in column if each != own])
                for bit, (own, column) in enumerate(zip(answer, columns, strict=True))
            ]
            rest = _text(rng, columns, rng.choice((0, 0, 10, 80)))
            documents.append(f"{_sentence(parts)}. {rest}".strip())
        rankings.append(Ranking(f"Who {answer[1]} {answer[2]}?", tuple(documents)))
    return rankings


def _columns() -> list[list[str]]:
    return [block.splitlines() for block in _PHRASES.read_text("utf-8").split("\n\n")]


def _sentence(parts: list[str]) -> str:
    clause = " ".join(parts)
    return clause[0].upper() + clause[1:]


def _text(rng: random.Random, columns: list[list[str]], words: int) -> str:
    parts: list[str] = []
    while len(parts) < words:
        clause = _sentence([rng.choice(column) for column in columns])
        parts += (clause + rng.choice(_MARKS)).split()
    return " ".join(parts[:words])
