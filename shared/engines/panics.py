"""Panics of libraries written in Rust: exceptions that no `except Exception` sees.

pyo3 makes them of a class of its own, one in each library, that derives from BaseException alone. Knows
no library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Panicked(Exception):
    """What a library's panic becomes: an exception like any other, without the panic's text."""


def is_panic(error: BaseException) -> bool:
    """Whether it is one of them."""
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)


@contextmanager
def panics_are_errors() -> Iterator[None]:
    """Raise Panicked for a panic. KeyboardInterrupt, SystemExit and CancelledError pass."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise Panicked("a library panicked") from None
