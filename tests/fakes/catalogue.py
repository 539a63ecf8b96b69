"""Catalogues without a store."""

from __future__ import annotations

from shared.cards import ModelCard


class FakeCatalogue:
    async def cards(self) -> list[ModelCard]:
        return [ModelCard("m", "r", "cpu-int8", "bert", "mean", 2, 16)]

    async def cards_of(self, name: str) -> list[ModelCard]:
        """Of "p" too, which labels, and is not listed."""
        labels = ModelCard("p", "r", "cpu-int8", "bert", None, 2, 16, task="cross-encoder")
        return [card for card in (*await self.cards(), labels) if card.name == name]
