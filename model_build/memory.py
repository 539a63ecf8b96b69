"""Measures what memory running one text takes in a CPU's engine, in a process of its own.

It does not know how the model was made, nor how much memory a server has.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from shared.cards import TextMemory
from shared.engines.onnx import OnnxEngine
from shared.errors import BlitzError, InvalidArtefact
from shared.models.manifest import Manifest

_MOST_TOKENS = 2048
"""Longer texts are reckoned from these: the builder need not have the memory for 8,192 tokens."""
_MARGIN = 1.15
"""Peaks of equal runs differ by the order in which memory was taken: by 5 % where it was tried."""
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_memory(folder: Path, manifest: Manifest) -> TextMemory | None:
    """Of the CPU model in `folder`. None for a GPU, or where peaks cannot be told (no Linux).

    Raises InvalidArtefact if the files are not what `manifest` says, or do not run a text of its length.
    """
    if manifest.device != "cpu" or not _RESET.exists():
        return None
    longest = min(manifest.max_tokens, _MOST_TOKENS)
    # This process has torch and two models loaded, whose memory it would take again unseen.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as process:
        job = process.submit(_peaks, folder, manifest, (longest // 2, longest))
        try:
            return fit(job.result())
        except BrokenProcessPool:  # killed: not even this machine has so much, so assume what is safe
            return None
        except BlitzError:
            raise
        except Exception as error:  # onnxruntime's
            raise InvalidArtefact(f"the built model does not run a text of {longest} tokens") from error


def fit(peaks: Mapping[int, int]) -> TextMemory:
    """From the bytes that texts of two lengths took at most, with a margin.

    >>> fit({10: 200, 20: 600})  # 10 a token and 1 a pair, and 15 % more
    TextMemory(per_token=11.5, per_pair=1.15)
    """
    (short, of_short), (long, of_long) = sorted(peaks.items())
    per_pair = max(0.0, (of_long / long - of_short / short) / (long - short))
    per_token = max(0.0, of_short / short - per_pair * short, of_long / long - per_pair * long)
    return TextMemory(round(per_token * _MARGIN, 3), round(per_pair * _MARGIN, 3))


def _peaks(folder: Path, manifest: Manifest, lengths: tuple[int, ...]) -> dict[int, int]:
    """Bytes that one text of each length takes beside the loaded model, at most."""
    engine = OnnxEngine(folder, manifest)
    token = 0 if manifest.pad_token_id else 1
    engine.run([[token] * min(8, *lengths)])
    peaks = {}
    for length in lengths:
        _RESET.write_text("5")  # the peak is now what is held
        before = _status("VmRSS")
        engine.run([[token] * length])
        peaks[length] = max(0, _status("VmHWM") - before)
    return peaks


def _status(name: str) -> int:
    """Bytes that /proc tells of this process."""
    return int(re.findall(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[0]) * 1024
