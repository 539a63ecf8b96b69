"""What models, revisions and prompts may be called. Does not know which there are."""

from __future__ import annotations

import re
from collections.abc import Collection

from shared.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


def is_name(name: str) -> bool:
    """Whether `name` can be a model's or a revision's name.

    The pattern is what keeps a name inside the store: no separators, no leading or trailing dot.
    """
    return _NAME.fullmatch(name) is not None


def check_name(name: str, *, field: str = "model") -> str:
    """Return `name` if it can be one; InvalidInput otherwise."""
    if not is_name(name):
        raise InvalidInput(
            "a model name is 1 to 128 letters, digits, '.', '_' or '-', "
            "and begins and ends with a letter or digit",
            field=field,
        )
    return name


def check_prompt(name: str, known: Collection[str]) -> None:
    """Raises InvalidInput if a model's prompts `known` have none of that name."""
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise InvalidInput(f"this model has no such prompt; it has: {names}", field="prompt_name")


def pinned_name(name: str, revision: str) -> str:
    """NAME@REVISION: that revision of a model, whatever `current` points at. '@' is in no name."""
    return f"{name}@{revision}"


def split_pinned(name: str) -> tuple[str, str]:
    """NAME and REVISION of a pinned name; no revision ("") for another one."""
    plain, _, revision = name.partition("@")
    return plain, revision
