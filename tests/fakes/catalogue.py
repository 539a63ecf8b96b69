"""A catalogue without a store, and the cards that tests of several rooms list in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.cards import Device, ModelCard
from tests.fakes.embedder import PROMPTS


class FakeCatalogue:
    """Lists `listed`; what is `unlisted` is found by its name alone."""

    def __init__(self, listed: Sequence[ModelCard], unlisted: Sequence[ModelCard] = ()) -> None:
        self.listed = listed
        self.unlisted = unlisted

    async def cards(self) -> list[ModelCard]:
        return list(self.listed)

    async def cards_of(self, name: str) -> list[ModelCard]:
        return [card for card in (*self.listed, *self.unlisted) if card.name == name]


def embedder_and_labeller() -> FakeCatalogue:
    """ "m" embeds and is the only one there is: "p" labels, "s" is sparse, "l" late: not listed."""
    labels = ModelCard("p", "r", "cpu-int8", "bert", None, 2, 16, task="cross-encoder")
    sparse = ModelCard("s", "r", "cpu-int8", "bert", "splade", 99, 16, task="sparse")
    late = ModelCard("l", "r", "cpu-int8", "bert", None, 2, 16, task="multi-vector")
    return FakeCatalogue(
        [ModelCard("m", "r", "cpu-int8", "bert", "mean", 2, 16)], [labels, sparse, late]
    )


def bulk_cards(*others: str, revision: str = "r1") -> list[ModelCard]:
    """ "mini" on both devices, the cross-encoder "ranker", and `others` that embed."""

    def card(name: str, device: Device = "cpu", task: Any = "embedding") -> ModelCard:
        return ModelCard(
            name, revision, "cpu-int8", "bert", None, 4, 16, PROMPTS, device=device, task=task
        )

    known = [card("mini"), card("mini", "gpu"), card("ranker", task="cross-encoder")]
    return known + [card(name) for name in others]
