"""`python -m functions.keys` generates an API key for the router and prints its sha256."""

from __future__ import annotations

import argparse
import hashlib
import re
import secrets
import sys
from collections.abc import Sequence

from functions.api.auth import owner_name
from shared.command_line import command_of

# The hashes are unsalted: the length of a key keeps it from being guessed.
_KEY = re.compile(r"[!-~]{16,}")


def main(arguments: Sequence[str]) -> int:
    """Print a new random key and its hash, or the hash of a key from stdin. Returns the exit code."""
    parser = argparse.ArgumentParser(command_of("functions.keys"))
    parser.add_argument("--stdin", action="store_true", help="hash the key on stdin, main none")
    given = parser.parse_args(arguments).stdin
    key = sys.stdin.readline().rstrip("\r\n") if given else secrets.token_urlsafe(32)
    if not _KEY.fullmatch(key):
        print("error: a key needs 16 or more printable ASCII characters, no spaces", file=sys.stderr)
        return 2
    if not given:
        print(f"key:  {key}")
    key_hash = hashlib.sha256(key.encode()).hexdigest()
    print(f"hash: {key_hash}")
    print(f"owner: {owner_name(key_hash)}  (the folder of its files and batches)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
