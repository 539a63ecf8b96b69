"""Which backend a request is to go to first, if who sent it said so, wherever in its call tree one asks.

It goes with the task, as a context variable, like shared.context.deadline. Does not know HTTP, except
the header that says it, nor which backends there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import get_args

from shared.cards import Device
from shared.errors import InvalidInput

HEADER = "x-blitz-backend"
"""cpu or gpu. API Management sets it for the keys of its products, and takes nobody else's."""

DEVICES: tuple[Device, ...] = get_args(Device)

_device: ContextVar[Device | None] = ContextVar("preference", default=None)


@contextmanager
def stated(value: str | None) -> Iterator[None]:
    """Go by the header's `value` in the block; None: there is no header. Raises InvalidInput."""
    device = next((device for device in DEVICES if device == value), None)
    if device is None and value is not None:
        raise InvalidInput(f"the header {HEADER} must be {' or '.join(DEVICES)}", field=HEADER)
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def preferred() -> Device | None:
    """None: the policy alone decides."""
    return _device.get()
