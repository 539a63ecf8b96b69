"""Bulk jobs in an app: the pipeline over the settings' storage, and which queues which app reads.

Shared by the Functions triggers and by the local driver. Does not know either of them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec

from shared.backends.base import Backend
from shared.bulk.control import FINISH, SPLIT, queue_of
from shared.bulk.inputs.allowance import Limits
from shared.bulk.pipeline import FINISHES, SPLITS, Bulk
from shared.cards import Device
from shared.errors import InvalidMessage
from shared.models.catalogue import Catalogue
from shared.models.store import open_store
from shared.routing.policy import policy_of
from shared.settings import Settings, aliases_of
from shared.storage.blobs import Storage
from shared.storage.shown_names import shown

_log = logging.getLogger(__name__)


class Step(msgspec.Struct, frozen=True):
    """run: takes a message of `queue`; safe to repeat. at_once: messages that one process works on."""

    queue: str
    run: Callable[[bytes], Awaitable[object]]
    at_once: int


async def unless_invalid(
    run: Callable[[bytes], Awaitable[object]], body: bytes, queue: str, message_id: str
) -> None:
    """Run a step with a message; one that is none of the queue's is told of, and done with.

    Whoever may write to the queue wrote it: its body is not shown.
    """
    try:
        await run(body)
    except InvalidMessage as error:
        _log.warning("bulk: message %s of %s is dropped: %s", shown(message_id), queue, error.message)


def build_bulk(settings: Settings, storage: Storage, backend: Backend | None) -> Bulk:
    """backend: this process's own models, or None where chunks are for another one."""
    # Jobs go to no app that is not there: nobody would read its queue.
    devices: tuple[Device, ...] = ("cpu", "gpu") if settings.gpu_backend_url else ("cpu",)
    return Bulk(
        storage,
        Catalogue(open_store(settings), devices),
        policy_of(settings),
        backend=backend,
        devices=devices,
        request_tokens=settings.max_request_tokens,
        max_inputs=settings.max_inputs,
        limits=Limits(settings.max_job_bytes, settings.max_job_rows),
        default_model=settings.default_model,
        aliases=aliases_of(settings.model_aliases),
    )


def steps_of(bulk: Bulk, device: Device) -> tuple[Step, ...]:
    """The queues of an app. The GPU's embeds and nothing else: all other work is the CPU's."""
    # Two: while one chunk is in the engine, the other is read or written.
    embed = Step(queue_of(device), bulk.embed, at_once=2)
    if device == "gpu":
        return (embed,)
    return (
        Step(SPLIT, bulk.split, at_once=SPLITS),
        embed,
        Step(FINISH, bulk.finish, at_once=FINISHES),
    )
