"""A day of requests: when they come, and how large they are.

Arrivals follow the counts of a recorded day where one lies beside the checkout, else a synthetic day.
Sizes are an assumption in both (MIX): no public trace of embedding requests is known to us. Does not
know backends or policies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shared.manifest import Device
from shared.routing import Work

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "traffic" / "arrivals-per-minute.txt"
MINUTES = 24 * 60

SIZE_BYTES: Mapping[Device, int] = {"cpu": 23_000_000, "gpu": 45_000_000}
"""Of all-MiniLM-L6-v2 in INT8 and in FP16; the cross-encoder is of the same build."""


@dataclass(frozen=True, slots=True)
class Kind:
    """share: of all requests. texts: fewest and most, log-uniform. tokens: a text's, uniform, the same
    for all texts of a request."""

    share: float
    texts: tuple[int, int]
    tokens: tuple[int, int]
    cross_encoder: bool = False


MIX = {
    "query": Kind(share=0.80, texts=(1, 1), tokens=(6, 30)),
    "rerank": Kind(share=0.12, texts=(10, 50), tokens=(60, 250), cross_encoder=True),
    "small batch": Kind(share=0.06, texts=(2, 32), tokens=(40, 250)),
    "large batch": Kind(share=0.02, texts=(64, 1024), tokens=(40, 250)),
}
"""Mostly search: a query is embedded, some answers are reranked; documents come in batches, none larger
than the tokens that a request may have by default."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """at_s: seconds since midnight."""

    at_s: float
    kind: str
    work: Work


def recorded_counts(path: Path) -> list[int]:
    """Requests in each minute: one number a line; lines that start with # tell source and licence."""
    counts = [int(line) for line in path.read_text().splitlines() if line and line[0] != "#"]
    if len(counts) != MINUTES:
        raise ValueError(f"{path.name} has {len(counts)} minutes, not {MINUTES}")
    return counts


def synthetic_counts(seed: int) -> list[float]:
    """A working day by a documented process, not a recording.

    A raised cosine, lowest at 03:00 and seven times that at 15:00; times exp of an AR(1) process of the
    minutes (coefficient 0.9, standard deviation 0.3); and six bursts of five minutes, threefold.
    """
    rng = random.Random(seed)
    bursts = {minute + step for minute in rng.sample(range(MINUTES), 6) for step in range(5)}
    counts, noise = [], 0.0
    for minute in range(MINUTES):
        daily = 4.0 - 3.0 * math.cos(2 * math.pi * (minute / MINUTES - 3 / 24))
        noise = 0.9 * noise + rng.gauss(0.0, 0.3 * math.sqrt(1 - 0.9**2))
        counts.append(daily * math.exp(noise) * (3.0 if minute in bursts else 1.0))
    return counts


def office_counts(seed: int) -> list[float]:
    """A day at the office, by a documented process: up from 07:30 to 09:00, down from 17:00 to 19:00.

    A fiftieth of that at night; times exp of the AR(1) process of `synthetic_counts`.
    """
    rng = random.Random(seed)
    counts, noise = [], 0.0
    for minute in range(MINUTES):
        up, down = (minute - 450) / 90, (1140 - minute) / 120
        daily = 0.02 + 0.98 * min(max(min(up, down), 0.0), 1.0)
        noise = 0.9 * noise + rng.gauss(0.0, 0.3 * math.sqrt(1 - 0.9**2))
        counts.append(daily * math.exp(noise))
    return counts


def weeks_of(
    day: Callable[[int], Sequence[float]], days: int, requests: int, seed: int
) -> list[list[Arrival]]:
    """Arrivals of each of so many days, the first a Monday; at_s counts from that midnight on.

    day: counts of the day with that seed. requests: of a working day, on average: each day's are times a
    log-normal (standard deviation 0.2), and a fifth on Saturdays and Sundays.
    """
    rng = random.Random(seed)
    weeks = []
    for number in range(days):
        share = (0.2 if number % 7 >= 5 else 1.0) * math.exp(rng.gauss(0.0, 0.2))
        arrivals = day_of(day(seed + number), max(round(requests * share), 1), seed + number)
        weeks.append([replace(each, at_s=each.at_s + number * 86_400) for each in arrivals])
    return weeks


def day_of(counts: Sequence[float], requests: int, seed: int) -> list[Arrival]:
    """About `requests` arrivals with the shape of `counts`, uniform within a minute, in order."""
    rng = random.Random(seed)
    scale = requests / sum(counts)
    arrivals = []
    for minute, count in enumerate(counts):
        whole, rest = divmod(count * scale, 1)
        times = [60 * (minute + rng.random()) for _ in range(int(whole) + (rng.random() < rest))]
        arrivals += [_arrival(at_s, rng) for at_s in sorted(times)]
    return arrivals


def _arrival(at_s: float, rng: random.Random) -> Arrival:
    (name,) = rng.choices(list(MIX), [kind.share for kind in MIX.values()])
    kind = MIX[name]
    low, high = kind.texts
    texts = round(low * (high / low) ** rng.random())
    tokens = max(round(texts * rng.uniform(*kind.tokens)), 1)
    return Arrival(at_s, name, Work(texts, tokens, kind.cross_encoder, SIZE_BYTES))
