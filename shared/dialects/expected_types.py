"""Describes the expected type of a struct's field in words: "a text or a list of texts".

Does not know what was sent, or any one dialect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

NAME = "name"
"""Key in a Meta's `extra`: what a number is called, such as "token id"."""

_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")
_PLAIN = {
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
}


def at(kind: Any, path: str) -> list[Any]:
    """The types that `kind`, a struct, allows at a path of the decoder, such as parameters.kinds[1].

    Empty if unknown, as below a field of any type.
    """
    kinds = [kind]
    for step in _STEP.findall(path):
        kinds = [below for each in kinds for below in _below(each, step)]
    return [each for each in kinds if each is not NoneType]


def in_words(kinds: Iterable[Any]) -> str:
    """Alternatives in words: "a text, a list of texts, or an object"; "" if there are none."""
    return _any_of(dict.fromkeys(word for kind in kinds for word in _words(kind)))


def choices(kinds: Iterable[Any]) -> list[str]:
    """The strings of all Literals inside `kinds`."""
    return [word for kind in kinds for word in _strings(kind)]


def _below(kind: Any, step: str) -> list[Any]:
    """The types that `kind` allows at one name or index."""
    if step.startswith("["):
        items = get_args(kind)[-1:] if get_origin(kind) in (list, dict) else ()
        return [each for item in items for each in _alternatives(item)]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        return _alternatives(fields[step]) if step in fields else []
    return []


def _alternatives(kind: Any) -> list[Any]:
    """The members of a union; lists without their Annotated; other types unchanged."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return [each for member in get_args(kind) for each in _alternatives(member)]
    if origin is Annotated and get_origin(get_args(kind)[0]) in (Union, UnionType, list):
        return _alternatives(get_args(kind)[0])
    return [kind]


def _words(kind: Any, plural: bool = False) -> list[str]:
    origin = get_origin(kind)
    if origin is Annotated:
        bare, *metas = get_args(kind)
        return [_bounded(word, metas, plural) for word in _words(bare, plural)]
    if origin is Literal:
        return [f"one of {', '.join(map(str, get_args(kind)))}"]
    if origin is list:
        items = [word for each in _alternatives(get_args(kind)[0]) for word in _words(each, plural=True)]
        lists = "lists" if plural else "a list"
        return [f"{lists} of {each}" for each in items] or [lists]
    if kind in _PLAIN:
        return [_PLAIN[kind][plural]]
    if origin is dict or (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return ["objects" if plural else "an object"]
    return []


def _bounded(word: str, metas: Sequence[msgspec.Meta], plural: bool) -> str:
    """Add a number's name and bounds."""
    for meta in metas:
        if name := (meta.extra or {}).get(NAME):
            word = f"{name}s" if plural else f"a {name}"
        if not plural and meta.ge is not None and meta.le is not None:
            word += f" from {meta.ge} to {meta.le}"
    return word


def _strings(kind: Any) -> list[str]:
    strings = (string for each in get_args(kind) for string in _strings(each))
    return [kind] if isinstance(kind, str) else list(strings)


def _any_of(words: Iterable[str]) -> str:
    *first, last = list(words) or [""]
    if len(first) < 2:
        return " or ".join((*first, last))
    return f"{', '.join(first)}, or {last}"
