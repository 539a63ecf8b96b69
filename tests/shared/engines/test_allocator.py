from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from shared.engines import allocator
from tests.server import ROOT

_HELD = """
import sys, threading
from pathlib import Path
from shared.engines import allocator
if sys.argv[1] == "bounded":
    allocator.bound_arenas()
def work():
    barrier.wait()
    kept.append([bytes(1000) for _ in range(1000)])
    barrier.wait()
barrier, kept = threading.Barrier(9), []
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
barrier.wait(); barrier.wait()
# Each arena of glibc's is a mapping of 64 MiB, of which what is used is readable.
print(sum("rw-p" in line for line in Path("/proc/self/maps").read_text().splitlines()))
"""


@pytest.mark.skipif(allocator._glibc() is None, reason="other allocators are left alone")
def test_arenas_are_few_where_threads_are_many() -> None:
    """Counted by the mappings that they add to a process of eight threads."""

    def mappings(how: str) -> int:
        command = [sys.executable, "-c", _HELD, how]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)

    assert mappings("bounded") < mappings("free")


def test_memory_is_given_back_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment later, and again when asked again; where there is no glibc nothing happens."""
    given, done = list[int](), threading.Event()
    monkeypatch.setattr(allocator, "_pause_s", 0.05)
    monkeypatch.setattr(allocator, "_glibc", lambda: object())

    def give_back() -> None:
        given.append(1)
        done.set()

    monkeypatch.setattr(allocator, "give_back", give_back)
    for _ in range(2):
        for _ in range(10):
            allocator.give_back_soon()
        assert done.wait(10)
        done.clear()
    assert len(given) == 2
    monkeypatch.undo()
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    allocator.bound_arenas()
    allocator.give_back()
    allocator.give_back_soon()
