"""`python -m functions.keys` makes keys for callers, and keeps the document that names them.

    $ python -m functions.keys                            a new key and its sha256
    $ echo MY_KEY | python -m functions.keys --stdin      the sha256 of a key that there is already

    $ python -m functions.keys add search --expires 90d   a new key of `search`, beside those that it has
    $ python -m functions.keys list                       who may call, and until when
    $ python -m functions.keys revoke search --hash 9f86  one key of it; without --hash all

The document is the one that BLITZ_API_KEYS or --document names. Two who change it at once both get
their way. Does not know what a router does with it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from functions.api.key_list import (
    Caller,
    Key,
    decode_keys,
    encode_keys,
    owner_name,
    parse_moment,
    with_key,
    without_keys,
)
from functions.api.known_keys import KeyDocument, open_document
from shared.command_line import command_of
from shared.errors import BlitzError, InvalidInput, Misconfigured
from shared.settings import Settings

# The hashes are unsalted: the length of a key keeps it from being guessed.
_KEY = re.compile(r"[!-~]{16,}")
_SHOWN_DIGITS = 12


def main(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Do what the command line says; the exit code."""
    given = _parser().parse_args(arguments)
    now = datetime.now(UTC)
    try:
        if given.command is None:
            _make(given.stdin)
            return 0
        document = _document(given.document, environ)
        if given.command == "add":
            _add(document, given, now)
        elif given.command == "revoke":
            _change(document, lambda callers: without_keys(callers, given.name, given.hash.lower()))
            print(f"revoked: {given.name} {given.hash or '(all keys)'}")
        else:
            _list(decode_keys(document.read()), now)
    except BlitzError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(command_of("functions.keys"))
    parser.add_argument("--stdin", action="store_true", help="hash the key on stdin, make none")
    document = argparse.ArgumentParser(add_help=False)
    document.add_argument(
        "--document", default="", help="file://FOLDER/keys.json or a blob's URL; else BLITZ_API_KEYS"
    )
    commands = parser.add_subparsers(dest="command")
    add = commands.add_parser("add", parents=[document], help="give a caller one more key")
    add.add_argument("name", help="the caller's, as metrics and logs show it")
    add.add_argument("--stdin", action="store_true", help="take the key on stdin, make none")
    add.add_argument("--expires", default="", metavar="WHEN", help="90d, 2027-03-01; never if left out")
    add.add_argument("--not-before", default="", metavar="WHEN", help="as above; now if left out")
    commands.add_parser("list", parents=[document], help="who may call, and until when")
    revoke = commands.add_parser("revoke", parents=[document], help="take keys from a caller")
    revoke.add_argument("name", help="the caller's")
    revoke.add_argument("--hash", default="", help="only the keys whose sha256 begins so; see list")
    return parser


def _make(given: bool) -> None:
    key = _given_key() if given else secrets.token_urlsafe(32)
    if not given:
        print(f"key:  {key}")
    key_hash = hashlib.sha256(key.encode()).hexdigest()
    print(f"hash: {key_hash}")
    print(f"owner: {owner_name(key_hash)}  (the folder of its files and batches)")


def _given_key() -> str:
    """Of stdin. Raises InvalidInput."""
    key = sys.stdin.readline().rstrip("\r\n")
    if not _KEY.fullmatch(key):
        raise InvalidInput("a key needs 16 or more printable ASCII characters, no spaces")
    return key


def _document(url: str, environ: Mapping[str, str]) -> KeyDocument:
    settings = Settings.from_env(environ)
    if not (url or settings.api_keys):
        raise Misconfigured("name the document: --document file://FOLDER/keys.json, or BLITZ_API_KEYS")
    return open_document(url or settings.api_keys, settings.storage_connection_string)


def _add(document: KeyDocument, given: argparse.Namespace, now: datetime) -> None:
    key = _given_key() if given.stdin else secrets.token_urlsafe(32)
    added = Key(
        hashlib.sha256(key.encode()).hexdigest(),
        parse_moment(given.expires, now) if given.expires else None,
        parse_moment(given.not_before, now) if given.not_before else None,
    )
    if added.expires is not None and added.expires <= max(now, added.not_before or now):
        raise InvalidInput("--expires is over, or before --not-before: the key would never count")
    _change(document, lambda callers: with_key(callers, given.name, added))
    if not given.stdin:
        print(f"key:  {key}")
    print(f"hash: {added.sha256}")
    print(f"name: {given.name}, {_until(added, now)}")


def _change(document: KeyDocument, change: Callable[[tuple[Caller, ...]], tuple[Caller, ...]]) -> None:
    """Nothing is written if `change` refuses, or if what is there is not valid."""
    document.update(lambda data: encode_keys(change(decode_keys(data))))


def _list(callers: Sequence[Caller], now: datetime) -> None:
    for caller in callers:
        print(f"{caller.name}  owner {caller.owner}{'' if caller.keys else '  no key'}")
        for key in caller.keys:
            print(f"    {key.sha256[:_SHOWN_DIGITS]}  {_until(key, now)}")


def _until(key: Key, now: datetime) -> str:
    if key.expires is not None and key.expires <= now:
        return f"expired {key.expires:%Y-%m-%d %H:%M} UTC"
    begins = f"from {key.not_before:%Y-%m-%d %H:%M} UTC " if key.not_before else ""
    ends = "never expires" if key.expires is None else f"expires {key.expires:%Y-%m-%d %H:%M} UTC"
    return begins + ends


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
