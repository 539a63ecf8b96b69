"""A program that loads a tokenizer.json from stdin and uses it; exit code 0 if that works.

It runs in a separate process because the library's Rust code panics on some files, which prints a
backtrace, and aborts the process on others. It does not know models.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from tokenizers import Tokenizer

_TEXTS = ("A text, as others have it: 12 words?", "Größe, 東京 и 한국어 🙂", " \t\n", "")


def main() -> None:
    """Tokenise a few texts with the tokenizer.json on stdin. The library may abort the process."""
    tokenizer = Tokenizer.from_str(sys.stdin.buffer.read().decode())
    # The server sets both itself: a file may pad every text to a billion tokens.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text in _TEXTS:
        with suppress(Exception):  # an unknown word is an error of a request, not of the tokenizer
            tokenizer.encode(text)


if __name__ == "__main__":
    main()
