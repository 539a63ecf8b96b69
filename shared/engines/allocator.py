"""Keeps the C library's allocator from holding on to what threads have freed. Knows no caller.

glibc gives up to eight heaps ("arenas") a core to threads, and each keeps the most it ever held. Other
systems have allocators of their own, which are left alone.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from functools import cache

ARENAS = 2
"""One for the event loop's thread and one for all others. More would pay for threads that allocate all
the time; these compute."""

_M_ARENA_MAX = -8  # malloc.h

_pause_s = 1.0
_due = threading.Lock()


def bound_arenas() -> None:
    """Limit the number of arenas. Call it before threads are started."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return free memory to the system. Takes milliseconds."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def give_back_soon() -> None:
    """`give_back` in a moment, when the caller has freed its memory; once for all who ask until then."""
    if _glibc() is None or not _due.acquire(blocking=False):
        return
    timer = threading.Timer(_pause_s, _give_back_now)
    timer.daemon = True
    timer.start()


def _give_back_now() -> None:
    _due.release()
    give_back()


@cache
def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)
