"""The types of a request's texts: a text or token ids, and the side that is cut off.

Does not know models or tokens.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

TruncationSide: TypeAlias = Literal["right", "left"]

TextInput: TypeAlias = str | tuple[int, ...]
"""A text, or ids of the model's own vocabulary (special tokens included)."""


def is_blank(text: str) -> bool:
    """Whether `text` is empty or only white space."""
    return not text or text.isspace()
