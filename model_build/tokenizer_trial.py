"""A program: reads a tokenizer.json on stdin and uses it once; the exit code is 0 if that went well.

It does not know models. It is a process of its own because the library's Rust panics on some files,
which prints a backtrace, and on others, while it words the error, ends the process it is in.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from tokenizers import Tokenizer

_TEXTS = ("A text, as others have it: 12 words?", "Größe, 東京 и 한국어 🙂", " \t\n", "")


def main() -> None:
    tokenizer = Tokenizer.from_str(sys.stdin.buffer.read().decode())
    # The server sets both itself: a file may pad every text to a thousand million tokens.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text in _TEXTS:
        with suppress(Exception):  # it does not know a word: the service says so of a request
            tokenizer.encode(text)


if __name__ == "__main__":
    main()
