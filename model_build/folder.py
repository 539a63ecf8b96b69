"""Reads the files of a model's folder, and words the refusal where they are not what they should be.

It does not know what the files mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.errors import InvalidInput


def refused(message: str) -> InvalidInput:
    """The error for a model that this builder cannot serve."""
    return InvalidInput(message, field="model")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file. Raises InvalidInput (field "model")."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise refused(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise refused(f"{path.name} is not a JSON object")
    return value


def check_weights(folder: Path, *names: str) -> None:
    """One of `names` must be there. Pickles run code when they are read."""
    if any((folder / name).is_file() for name in names):
        return
    if any(folder.glob("*.bin")):
        raise refused("the weights are pickles (*.bin) only; this builder reads safetensors")
    raise refused(f"there is no {names[0]}")
