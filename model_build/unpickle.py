"""A program that reads PyTorch's pickled weights and writes them as one safetensors file.

    python unpickle.py MEMORY_BYTES OUT PICKLE...

Loading a pickle can run code in it. So this runs in a separate process with a memory limit, imports no
other module of this repository, and lets torch's reader run only the few functions that make tensors
(weights_only). A fault in that reader then affects only this process. It does not know models.

Exit codes: 0 done, 3 a file holds something other than tensors or is damaged, 4 two files hold a tensor
with the same name, 5 out of memory.
"""

from __future__ import annotations

import pickle
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

NOT_TENSORS, TWICE, NO_MEMORY = 3, 4, 5


class TwiceError(Exception):
    """Two files hold a tensor with the same name."""


def read_tensors(pickles: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Name -> tensor of all files together; for a trainer's checkpoint, those of its state_dict.

    Raises pickle.UnpicklingError, before any of its code runs, for a file that is not a dictionary of
    tensors; TwiceError if two files hold the same name.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in pickles:
        held = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
            held = held["state_dict"]
        if not isinstance(held, dict):
            raise pickle.UnpicklingError("the file holds no dictionary of tensors")
        # Entries that are not tensors, such as step counters of some trainers, are not weights.
        found = {str(name): each for name, each in held.items() if torch.is_tensor(each)}
        if not found:
            raise pickle.UnpicklingError("the file holds no tensors")
        if tensors.keys() & found.keys():
            raise TwiceError
        # safetensors cannot store views, so tied weights are written twice.
        tensors |= {name: each.clone().contiguous() for name, each in found.items()}
    return tensors


def main(memory_bytes: str, out: str, *pickles: str) -> int:
    """Write the tensors of all `pickles` to `out`. Returns the exit code."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    try:
        save_file(read_tensors(map(Path, pickles)), out, {"format": "pt"})
    except TwiceError:
        return TWICE
    except MemoryError:
        return NO_MEMORY
    except Exception as error:  # torch raises many kinds for a damaged file
        return NO_MEMORY if "allocate memory" in str(error) else NOT_TENSORS
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
