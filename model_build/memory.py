"""Measures the peak memory of running one text in the CPU engine, in a separate process.

It does not know how the model was made, or a server's memory.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from shared.cards import TextMemory
from shared.engines.cpu import open_cpu_engine
from shared.errors import BlitzError, InvalidArtefact
from shared.models.manifest import Manifest

_MOST_TOKENS = 2048
"""Longer texts are extrapolated, so the builder does not need the memory for 8,192 tokens."""
_MARGIN = 1.15
"""Peaks of equal runs vary with the order of allocations: by 5 % in our measurements."""
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_memory(folder: Path, manifest: Manifest) -> TextMemory | None:
    """Memory of the CPU model in `folder`. None for a GPU, or off Linux, where peaks are unknown.

    Raises InvalidArtefact if the files do not match `manifest`, or fail on a text of its length.
    """
    if manifest.device != "cpu" or not _RESET.exists():
        return None
    longest = min(manifest.max_tokens, _MOST_TOKENS)
    # This process has freed memory of torch and two models, which would be reused and not counted.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as process:
        job = process.submit(_peaks, folder, manifest, (longest // 2, longest))
        try:
            return fit(job.result())
        except BrokenProcessPool:  # killed by lack of memory: fall back to the safe assumption
            return None
        except BlitzError:
            raise
        except Exception as error:  # onnxruntime's
            raise InvalidArtefact(f"the built model does not run a text of {longest} tokens") from error


def fit(peaks: Mapping[int, int]) -> TextMemory:
    """Fit the peaks of two text lengths, with a margin.

    >>> fit({10: 200, 20: 600})  # 10 per token and 1 per pair, plus 15 %
    TextMemory(per_token=11.5, per_pair=1.15)
    """
    (short, of_short), (long, of_long) = sorted(peaks.items())
    per_pair = max(0.0, (of_long / long - of_short / short) / (long - short))
    per_token = max(0.0, of_short / short - per_pair * short, of_long / long - per_pair * long)
    return TextMemory(round(per_token * _MARGIN, 3), round(per_pair * _MARGIN, 3))


def _peaks(folder: Path, manifest: Manifest, lengths: tuple[int, ...]) -> dict[int, int]:
    """Peak bytes of one text of each length, beyond the loaded model."""
    engine = open_cpu_engine(folder, manifest)
    token = 0 if manifest.pad_token_id else 1
    engine.run([[token] * min(8, *lengths)])
    peaks = {}
    for length in lengths:
        _RESET.write_text("5")  # resets the peak to the current usage
        before = _status("VmRSS")
        engine.run([[token] * length])
        peaks[length] = max(0, _status("VmHWM") - before)
    return peaks


def _status(name: str) -> int:
    """A memory figure of /proc/self/status, in bytes."""
    return int(re.findall(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[0]) * 1024
