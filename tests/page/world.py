"""What the tests of the page share: models, widths, and waiting for what a page shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

from tests.patience import PATIENCE_S
from tests.tiny import Tiny

MINILM = "all-MiniLM-L6-v2"
TINY = Tiny("tiny", prompts={"query": "w1 w2 ", "document": "w3 "})
RANKER = Tiny("ranker", task="cross-encoder")
SPARSE = Tiny("sparse", task="sparse")
LATE = Tiny("late", task="multi-vector")
BROKEN = Tiny("broken")

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}

Page: TypeAlias = Any
"""Playwright's. It is not installed where mypy runs."""
Visit: TypeAlias = Callable[..., Page]


def facts(place: Page) -> dict[str, str]:
    """What stands there under names: a value, and on the next line what is to be known of it."""
    names, values = (place.locator(each).all_inner_texts() for each in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def until(page: Page, condition: Callable[[], object]) -> None:
    """Wait while what the page does goes on."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "the page does not show it"
        page.wait_for_timeout(50)
