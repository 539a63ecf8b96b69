"""How much memory this machine has, or the container that we are in.

It does not know what needs it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The smaller of the machine's memory and the cgroup's limit (v2, v1)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int((cgroup / name).read_text()))
    return min(limits)
