"""What a request may give as a text, and which side of it may be cut off.

Does not know models or tokens.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

TruncationSide: TypeAlias = Literal["right", "left"]

TextInput: TypeAlias = str | tuple[int, ...]
"""A text, or ids of the model's own vocabulary (special tokens included)."""


def is_blank(text: str) -> bool:
    """Whether there is nothing in it but spaces and line ends."""
    return not text or text.isspace()
