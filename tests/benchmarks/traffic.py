"""Days and weeks of requests: when they come, and how large they are.

Arrivals follow counts: recorded ones of a web server, or those of a documented process. Sizes are an
assumption in both (MIX): no public trace of embedding requests is known to us. Does not know backends
or policies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shared.cards import Device
from shared.routing.policy import Work

RECORDING = Path(__file__).with_name("nasa-http-1995.txt")
MINUTES = 24 * 60
DAY_S = MINUTES * 60.0

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


@dataclass(frozen=True, slots=True)
class Day:
    """counts: requests in each of equal parts of a day, to any scale. share: requests of the day, those
    of a working day being 1 on average."""

    counts: Sequence[float]
    share: float


def recorded_days() -> list[Day]:
    """Eight weeks of a web server from a Monday on, in quarters of an hour; its file tells more."""
    lines = [line for line in RECORDING.read_text("utf-8").splitlines() if not line.startswith("#")]
    days = [[int(count) for count in line.split()] for line in lines]
    working = [sum(counts) for number, counts in enumerate(days) if number % 7 < 5 and any(counts)]
    return [Day(counts, sum(counts) * len(working) / sum(working)) for counts in days]


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


def synthetic_days(counts_of: Callable[[int], Sequence[float]], days: int, seed: int) -> list[Day]:
    """The first day a Monday. counts_of: counts of the day with that seed.

    Each day's requests are times a log-normal (standard deviation 0.2), and a fifth on Saturdays and
    Sundays.
    """
    rng = random.Random(seed)
    return [
        Day(counts_of(seed + number), (0.2 if number % 7 >= 5 else 1.0) * math.exp(rng.gauss(0.0, 0.2)))
        for number in range(days)
    ]


def arrivals_of(days: Sequence[Day], requests: int, seed: int) -> list[list[Arrival]]:
    """Arrivals of each day; at_s counts from the first one's midnight. requests: of a working day, on
    average."""
    return [
        [
            replace(each, at_s=each.at_s + number * DAY_S)
            for each in day_of(day.counts, round(requests * day.share), seed + number)
        ]
        for number, day in enumerate(days)
    ]


def day_of(counts: Sequence[float], requests: int, seed: int) -> list[Arrival]:
    """About `requests` arrivals with the shape of `counts`, uniform within each part, in order."""
    rng = random.Random(seed)
    part_s = DAY_S / len(counts)
    scale = requests / (sum(counts) or 1)
    arrivals = []
    for part, count in enumerate(counts):
        whole, rest = divmod(count * scale, 1)
        times = [part_s * (part + rng.random()) for _ in range(int(whole) + (rng.random() < rest))]
        arrivals += [_arrival(at_s, rng) for at_s in sorted(times)]
    return arrivals


def _arrival(at_s: float, rng: random.Random) -> Arrival:
    (name,) = rng.choices(list(MIX), [kind.share for kind in MIX.values()])
    kind = MIX[name]
    low, high = kind.texts
    texts = round(low * (high / low) ** rng.random())
    tokens = max(round(texts * rng.uniform(*kind.tokens)), 1)
    return Arrival(at_s, name, Work(texts, tokens, kind.cross_encoder, SIZE_BYTES))
