"""The keys document: who may call, under which name, with which keys, until when.

    {"callers": [{"name": "search", "owner": "9f86d081884c7d65", "keys": [
        {"sha256": "64 hex digits", "expires": "2027-03-01T00:00:00Z", "not_before": null}]}]}

A caller may have several keys at once, so that one can be replaced without a gap. What a caller stores
belongs to `owner`, which the first of its keys named (see auth.owner_name) and which stays when keys
come and go. Does not know where the document lies, nor who asks for it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from shared.command_line import command_of
from shared.errors import InvalidInput, Misconfigured

MAX_CALLERS = 200
"""In one document: each is a value of a label in the metrics."""

MAX_KEYS = 10
"""Of one caller. Every request is compared with all there are."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?")
"""Shorter than any key that we make, so that no key is a name by mistake."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OWNER = re.compile(r"[0-9a-f]{16}")

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """sha256: of the key, lower-case hex. It counts from not_before until expires, if they are named."""

    sha256: str
    expires: Moment | None = None
    not_before: Moment | None = None

    def counts_at(self, now: datetime) -> bool:
        """Whether the key has begun and has not expired."""
        begun = self.not_before is None or self.not_before <= now
        return begun and (self.expires is None or now < self.expires)


class Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """name: in metrics and logs. owner: the folder of its files and batches. keys: maybe none."""

    name: str
    owner: str
    keys: tuple[Key, ...]

    def expires(self) -> datetime | None:
        """When its last key ends; None if one does not, or there is none."""
        ends = [key.expires for key in self.keys]
        known = [end for end in ends if end is not None]
        return max(known) if known and len(known) == len(ends) else None


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    callers: tuple[Caller, ...]


def decode_keys(data: bytes | None) -> tuple[Caller, ...]:
    """Of no document: nobody. Raises Misconfigured that says what is wrong, and quotes no hash."""
    if data is None:
        return ()
    try:
        callers = msgspec.json.decode(data, type=_Document).callers
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"BLITZ_API_KEYS names a document that is not valid: {error}") from error
    if wrong := _wrong_in(callers):
        raise Misconfigured(f"BLITZ_API_KEYS names a document in which {wrong}")
    return callers


def encode_keys(callers: Iterable[Caller]) -> bytes:
    """Pretty JSON, by name. Raises InvalidInput for what `decode_keys` would refuse."""
    document = _Document(tuple(sorted(callers, key=lambda caller: caller.name)))
    if wrong := _wrong_in(document.callers):
        raise InvalidInput(f"this would make a document in which {wrong}")
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def owner_name(key_hash: str) -> str:
    """16 hex digits, from which nobody finds the key or its hash (hex); another key's are others."""
    return hashlib.sha256(bytes.fromhex(key_hash)).hexdigest()[:16]


def with_key(callers: Iterable[Caller], name: str, key: Key) -> tuple[Caller, ...]:
    """`callers` and one more key of `name`, who is new or keeps its owner."""
    by_name = {caller.name: caller for caller in callers}
    before = by_name.get(name) or Caller(name, owner_name(key.sha256), ())
    by_name[name] = Caller(name, before.owner, (*before.keys, key))
    return tuple(by_name.values())


def without_keys(callers: Iterable[Caller], name: str, hash_begins: str = "") -> tuple[Caller, ...]:
    """`callers` without `name`'s keys whose hash begins so. The name stays, with its owner.

    Raises InvalidInput if there is no such key.
    """
    by_name = {caller.name: caller for caller in callers}
    before = by_name.get(name)
    if before is None:
        raise InvalidInput(
            f"there is no caller {name!r}; there are: {', '.join(sorted(by_name)) or 'none'}"
        )
    left = tuple(key for key in before.keys if not key.sha256.startswith(hash_begins))
    if len(left) == len(before.keys):
        raise InvalidInput(f"{name} has no key whose hash begins so; see list")
    by_name[name] = Caller(name, before.owner, left)
    return tuple(by_name.values())


def parse_moment(text: str, now: datetime) -> datetime:
    """90d (days from now), 2027-03-01 or 2027-03-01T12:00:00Z. Raises InvalidInput."""
    if days := re.fullmatch(r"(\d{1,4})d", text):
        return datetime.fromtimestamp(int(now.timestamp()) + int(days[1]) * 86400, UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            f"{text!r} is no time: 90d, 2027-03-01 or 2027-03-01T12:00:00Z is right"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _wrong_in(callers: tuple[Caller, ...]) -> str | None:
    """After "a document in which"; None: nothing."""
    if len(callers) > MAX_CALLERS:
        return f"there are {len(callers)} callers; {MAX_CALLERS} is the most"
    for caller in callers:
        if not _NAME.fullmatch(caller.name):
            return (
                "a caller's name is not 1 to 32 lower-case letters, digits, '.', '_' and '-' that begin "
                "and end with a letter or digit"
            )
        if not _OWNER.fullmatch(caller.owner):
            return f"{caller.name} has an owner that is not 16 lower-case hex digits"
        if len(caller.keys) > MAX_KEYS:
            return f"{caller.name} has {len(caller.keys)} keys; {MAX_KEYS} is the most"
        if not all(_SHA256.fullmatch(key.sha256) for key in caller.keys):
            return (
                f"{caller.name} has a sha256 that is not 64 lower-case hex digits; "
                f"{command_of('functions.keys')} makes a key and its hash"
            )
    for what, values in (
        ("name", [caller.name for caller in callers]),
        ("owner", [caller.owner for caller in callers]),
        ("key", [key.sha256 for caller in callers for key in caller.keys]),
    ):
        if len(set(values)) < len(values):
            return f"the same {what} is there twice"
    return None
