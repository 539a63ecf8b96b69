"""How much memory this process may really use: the container's limit, not the host's."""

from __future__ import annotations

import os
from pathlib import Path

PROCESS_BYTES = 600_000_000
"""Python, its libraries, requests under way and answers, beside models and what running them takes."""
LEAST_BYTES = 256_000_000
"""The least that running models get: hundreds of tokens of any model. Less would serve nobody."""


def usable_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: the smaller of the machine's memory and the cgroup (v2, v1) limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)


def left_for_batches(models_bytes: int, usable_bytes: int) -> int:
    """Bytes for running models: what loaded models and the process itself leave of `usable_bytes`."""
    return max(LEAST_BYTES, usable_bytes - models_bytes - PROCESS_BYTES)
