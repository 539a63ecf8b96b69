"""How counts are worded in what people read.

Does not know who reads it.
"""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`counted(1, "row") == "1 row"`, `counted(2000, "row") == "2,000 rows"`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
