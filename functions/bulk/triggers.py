"""What calls the bulk pipeline in Azure: queue and timer triggers of the CPU and the GPU app.

A new blob comes as a message too: Event Grid writes it to EVENTS. A blob trigger would have the host
read the blob whole and send it to this process, which for 2 GB cannot work; it would need a webhook and
its key, and lose what arrives while the app is being deployed. Does not know what the steps do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import azure.functions as func
import msgspec

from functions.bulk.steps import steps_of, unless_invalid
from shared.bulk.pipeline import Bulk
from shared.cards import Device
from shared.errors import BlitzError, InvalidMessage
from shared.storage.blobs import SOURCE

EVENTS = "bulk-events"
"""The queue that the Event Grid subscription of the container bulk-in writes to."""
CONNECTION = "BulkStorage"
"""Prefix of the settings that tell the host where BLITZ_STORAGE's queues are."""
EVERY_5_MINUTES = "0 */5 * * * *"

_WRITTEN = ("BlobCreated", "BlobRenamed")
_SUBJECT = f"/blobServices/default/containers/{SOURCE}/blobs/"


class _Data(msgspec.Struct):
    etag: str = msgspec.field(default="", name="eTag")


class _Event(msgspec.Struct):
    """Of Event Grid's schema (eventType) and CloudEvents 1.0 (type) what is needed."""

    subject: str = ""
    data: Any = None
    type: str = ""
    event_type: str = msgspec.field(default="", name="eventType")


def register(app: func.AsgiFunctionApp, bulk: Bulk, device: Device) -> None:
    """Add the triggers of a device's app: its queues, each with its poison queue.

    The CPU app also has what happens once for all apps: events of inputs, and the timer.
    """
    for step in steps_of(bulk, device):
        _on_queue(app, step.queue, step.run)
        _on_queue(app, f"{step.queue}-poison", bulk.give_up)
    if device == "cpu":

        async def notice(body: bytes) -> None:
            blobs, others = blobs_of(body)
            for blob in blobs:
                await bulk.notice(*blob)
            if others or not blobs:
                raise InvalidMessage(
                    f"{others} of its {others + len(blobs)} events tell of no blob written to {SOURCE}"
                )

        _on_queue(app, EVENTS, notice)
        _on_timer(app, "bulk_reconcile", bulk.reconcile)


def blobs_of(body: bytes) -> tuple[list[tuple[str, str]], int]:
    """Key and ETag (empty if not told) of the blobs that Event Grid's events are about.

    body: an event or a list of them, in either schema. The number is of those that tell of something
    else: the validation of a subscription, a deletion, another container. Raises InvalidMessage.
    """
    try:
        found = msgspec.json.decode(body)
        events = found if isinstance(found, list) else [found]
        blobs = [blob for event in events if (blob := _blob_of(event)) is not None]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidMessage("it is no event of Event Grid") from None
    return blobs, len(events) - len(blobs)


def _blob_of(event: object) -> tuple[str, str] | None:
    try:
        found = msgspec.convert(event, _Event)
        data = msgspec.convert(found.data or {}, _Data)
    except msgspec.ValidationError:
        return None
    type_ = found.type or found.event_type
    key = found.subject.removeprefix(_SUBJECT)
    if not key or key == found.subject or (type_ and not type_.endswith(_WRITTEN)):
        return None
    return key, data.etag.strip('"')


@contextmanager
def _said_to_the_host() -> Iterator[None]:
    """The host logs an exception with its message; of those that are not ours it may quote a text."""
    try:
        yield
    except BlitzError:
        raise
    except Exception as error:
        raise RuntimeError(f"unexpected {type(error).__name__}, see the log") from None


def _on_queue(app: func.AsgiFunctionApp, queue: str, run: Callable[[bytes], Awaitable[object]]) -> None:
    async def handle(message: func.QueueMessage) -> None:
        with _said_to_the_host():
            await unless_invalid(run, message.get_body(), queue, message.id or "")

    name = queue.replace("-", "_")
    handle.__name__ = name
    trigger = app.queue_trigger(arg_name="message", queue_name=queue, connection=CONNECTION)
    app.function_name(name)(trigger(handle))


def _on_timer(app: func.AsgiFunctionApp, name: str, run: Callable[[], Awaitable[None]]) -> None:
    async def handle(timer: func.TimerRequest) -> None:
        with _said_to_the_host():
            await run()

    handle.__name__ = name
    # Not at startup: every instance that comes would begin with it.
    trigger = app.timer_trigger(arg_name="timer", schedule=EVERY_5_MINUTES, run_on_startup=False)
    app.function_name(name)(trigger(handle))
