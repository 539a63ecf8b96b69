"""The models of the cluster's tests."""

from __future__ import annotations

from tests.tiny import Tiny

MODELS = tuple(Tiny(f"m{n}", dimensions=16 + n) for n in range(8))
SCORER = Tiny("scorer", task="cross-encoder")
SLOW = Tiny("slow", dimensions=128, work=3000)
