"""A program that reads PyTorch's pickled weights and writes them as one safetensors file.

    python unpickle.py MEMORY_BYTES OUT PICKLE...

It runs in a process of its own, with nothing of ours imported and a limit of memory, because a pickle is
a program: torch's reader is told to run only the few functions that make tensors (weights_only), and a
fault in it would be a fault of this process alone. It does not know models.

Exit codes: 0 done, 3 a file holds something else than tensors or is damaged, 4 two files hold a tensor
of one name, 5 there is no memory for it.
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
    """Two files hold a tensor of one name."""


def read_tensors(pickles: Iterable[Path]) -> dict[str, torch.Tensor]:
    """The tensors of all files together; of a trainer's checkpoint those of its state_dict.

    Raises pickle.UnpicklingError for anything that is not a tensor under a name, before any of it runs.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in pickles:
        held = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
            held = held["state_dict"]
        if not isinstance(held, dict):
            raise pickle.UnpicklingError("the file holds no dictionary of tensors")
        # Whole numbers among them, as some trainers leave, are no weights.
        found = {str(name): each for name, each in held.items() if torch.is_tensor(each)}
        if not found:
            raise pickle.UnpicklingError("the file holds no tensors")
        if tensors.keys() & found.keys():
            raise TwiceError
        # A safetensors file holds no views: weights that are tied are written twice.
        tensors |= {name: each.clone().contiguous() for name, each in found.items()}
    return tensors


def main(memory_bytes: str, out: str, *pickles: str) -> int:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    try:
        save_file(read_tensors(map(Path, pickles)), out, {"format": "pt"})
    except TwiceError:
        return TWICE
    except MemoryError:
        return NO_MEMORY
    except Exception as error:  # torch raises many kinds of a damaged file
        return NO_MEMORY if "allocate memory" in str(error) else NOT_TENSORS
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
