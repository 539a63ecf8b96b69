"""Who sent the request that is being answered, wherever in its call tree one asks.

It goes with the task, as a context variable, like shared.context.deadline. Does not know keys or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec


class Sender(msgspec.Struct, frozen=True):
    """name: of the key, as in metrics; several senders without names share one. owner: of one sender
    alone, and the same for all of its keys. Both "" where no keys are known."""

    name: str = ""
    owner: str = ""


NOBODY = Sender()

_sender: ContextVar[Sender] = ContextVar("sender", default=NOBODY)


@contextmanager
def known(sender: Sender) -> Iterator[None]:
    """The block answers that sender."""
    token = _sender.set(sender)
    try:
        yield
    finally:
        _sender.reset(token)


def current() -> Sender:
    """NOBODY outside of requests."""
    return _sender.get()
