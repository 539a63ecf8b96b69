"""Which sequences make a micro-batch: pure functions of lengths and limits.

Does not know threads, models or callers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

LOOKAHEAD = 32
"""How many waiting requests are looked at to fill a batch: bounds the work done under the lock."""


class Offer(msgspec.Struct, frozen=True):
    """The next micro-batch of a waiting request. longest: its padded length; tokens: its real ones.

    text_bytes: memory that running one text of its padded length takes.
    """

    model: object
    texts: int
    longest: int
    tokens: int
    text_bytes: int = 0


def plan_batches(
    lengths: Sequence[int],
    *,
    budget_tokens: int,
    max_texts: int,
    max_bytes: int = 0,
    text_bytes: Callable[[int], int] = lambda tokens: 0,
) -> list[list[int]]:
    """Positions of `lengths` grouped into micro-batches of like lengths, longest first.

    Each has at most max_texts, max_len * count <= budget_tokens and text_bytes(max_len) * count <=
    max_bytes; a longer text goes alone. Longest first, so that threads working on one request finish
    together. text_bytes: memory that running a text of so many tokens takes.
    >>> plan_batches([5, 20, 6], budget_tokens=20, max_texts=8)
    [[1], [2, 0]]
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if room == 0:
            batches.append([])
            length = lengths[index]
            each = text_bytes(length)
            fit = max_bytes // each if each else max_texts
            room = max(1, min(max_texts, budget_tokens // max(1, length), fit))
        batches[-1].append(index)
        room -= 1
    return batches


def choose(offers: Sequence[Offer], *, budget_tokens: int, max_texts: int, max_bytes: int) -> list[int]:
    """Positions of the offers that make the next micro-batch; `offers` are in order of fairness.

    The first is always taken. Others of the same model join while the padded whole stays within the
    limits and the padding added by joining is at most a quarter of the real tokens.
    """
    first = offers[0]
    chosen, texts, longest, tokens = [0], first.texts, first.longest, first.tokens
    text_bytes = first.text_bytes
    alone = first.texts * first.longest
    for position, offer in enumerate(offers[1:], start=1):
        if offer.model is not first.model or texts + offer.texts > max_texts:
            continue
        together = (texts + offer.texts) * max(longest, offer.longest)
        apart = alone + offer.texts * offer.longest
        if (texts + offer.texts) * max(text_bytes, offer.text_bytes) > max_bytes:
            continue
        if together > budget_tokens or 4 * (together - apart) > tokens + offer.tokens:
            continue
        chosen.append(position)
        texts, longest = texts + offer.texts, max(longest, offer.longest)
        text_bytes = max(text_bytes, offer.text_bytes)
        tokens, alone = tokens + offer.tokens, apart
    return chosen
