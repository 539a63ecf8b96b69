"""Callers of the service that ask on and on while something happens to it, and check what they get."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np

from tests.patience import PATIENCE_S, wait_until
from tests.tiny import Tiny

HONEST = {429, 502, 503, 504}
CALLERS = 6


@contextmanager
def under_load(url: str, models: tuple[Tiny, ...]) -> Iterator[Counter[int]]:
    """Callers who ask until the block ends; yields how many got which status. Vectors are checked."""
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def call(number: int) -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            turn = number
            while not stop.is_set():
                model = models[turn % len(models)]
                texts = [f"w{turn % 400}", f"w{(turn * 7) % 400} w{number}"]
                response = client.post("/embed", json={"model": model.name, "inputs": texts})
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    assert np.allclose(np.array(response.json()), model.vectors(texts), atol=1e-5)
                else:
                    assert response.status_code in HONEST, response.text
                    assert set(response.json()) == {"error", "error_type"}
                turn += CALLERS

    with ThreadPoolExecutor(CALLERS) as threads:
        calls = [threads.submit(call, number) for number in range(CALLERS)]
        try:
            yield statuses
        finally:
            stop.set()
            for each in calls:
                each.result()


def until_more(statuses: Counter[int], answers: int = 60) -> None:
    """Until so many more requests were answered with 200."""
    goal = statuses[200] + answers
    wait_until(lambda: statuses[200] >= goal)
