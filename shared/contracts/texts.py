"""The types of a request's texts: a text or token ids, and the side that is cut off.

Does not know models or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from shared.errors import EmptyInput

TruncationSide: TypeAlias = Literal["right", "left"]

TextInput: TypeAlias = str | tuple[int, ...]
"""A text, or ids of the model's own vocabulary (special tokens included)."""


def is_blank(text: str) -> bool:
    """Whether `text` is empty or only white space."""
    return not text or text.isspace()


def check_not_empty(inputs: Sequence[TextInput]) -> None:
    """Raises EmptyInput without inputs, or naming one that is empty."""
    if not inputs:
        raise EmptyInput("there is nothing to embed: give at least one input", field="input")
    for index, item in enumerate(inputs):
        if not item:
            raise EmptyInput("an input is empty: give a text", field=f"input[{index}]")
