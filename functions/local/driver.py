"""Calls the bulk pipeline on one machine: tasks that poll, in place of Azure's triggers.

Does not know what the steps do, nor HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from functions.bulk.steps import Step, build_bulk, steps_of, unless_invalid
from shared.backends.base import Backend
from shared.bulk.options import SIDECAR
from shared.bulk.passed_over import is_input
from shared.bulk.paths import event_key
from shared.bulk.pipeline import Bulk
from shared.cards import Device, ModelCard
from shared.errors import BlitzError
from shared.observability.logs import log_failure
from shared.settings import Settings
from shared.storage.blobs import OUT, SOURCE, Message, Queue, Storage
from shared.storage.connect import DEFAULT, local_storage, open_storage
from shared.storage.shown_names import shown

MAX_TRIES, RETRY_S = 8, 60.0
"""As in host.json (maxDequeueCount, visibilityTimeout): rows are given up after minutes of failing."""
HIDDEN_S = 30.0
"""After so long, the messages of a killed process are visible to others."""
_AGAIN = "it will be tried again"
_RENEWALS = 3
"""How often a message is renewed in the time that it is hidden: two renewals may fail."""

_log = logging.getLogger(__name__)


class Pace(msgspec.Struct, frozen=True):
    """Seconds.

    hidden_s: how long a message that was received is hidden from others; renewed while it is worked on.
    retry_s: until what failed is tried again.
    poll_s: between looks at a queue that was empty, and at the inputs.
    """

    hidden_s: float = HIDDEN_S
    retry_s: float = RETRY_S
    poll_s: float = 1.0
    reconcile_s: float = 60.0


class Driver:
    """Does the work of a device's app until it is cancelled. For the event loop of its backend."""

    def __init__(self, bulk: Bulk, storage: Storage, device: Device, pace: Pace) -> None:
        self._bulk = bulk
        self._storage = storage
        self._device = device
        self._pace = pace
        self._noticed: set[str] = set()
        self._arriving: set[str] = set()

    async def run(self) -> None:
        """Until cancelled; messages under way then go back to their queues."""
        steps = steps_of(self._bulk, self._device)
        readers = [self._read(step) for step in steps for _ in range(step.at_once)]
        if self._device == "cpu":
            readers.append(self._every(self._pace.poll_s, self.look))
            readers.append(self._every(self._pace.reconcile_s, self._bulk.reconcile))
        try:
            async with asyncio.TaskGroup() as group:
                for reader in readers:
                    group.create_task(reader)
        finally:
            self._bulk.stop()

    async def look(self) -> None:
        """Notice versions of inputs that were seen twice: while a file is copied, its ETag changes."""
        arriving, there = set(), set()
        for stat in await asyncio.to_thread(lambda: list(self._storage.source.list(""))):
            version = event_key("source", stat.key, stat.etag)
            there.add(version)
            if version in self._noticed or not (stat.key.endswith(SIDECAR) or is_input(stat.key)):
                continue
            if version in self._arriving:
                await self._bulk.notice(stat.key, stat.etag)
                self._noticed.add(version)
            else:
                arriving.add(version)
        self._arriving = arriving
        self._noticed &= there  # else the set would grow without end

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                log_failure(_log, f"bulk: {work.__name__}", error, logging.WARNING, _AGAIN)
            await asyncio.sleep(seconds)

    async def _read(self, step: Step) -> None:
        """One message after another."""
        while True:
            try:
                found = await self._handle_next(step)
            except _Logged:
                found = False
            except Exception as error:
                found = False
                log_failure(_log, f"bulk: {step.queue}", error, logging.WARNING, _AGAIN)
            if not found:
                await asyncio.sleep(self._pace.poll_s)

    async def _handle_next(self, step: Step) -> bool:
        """Whether there was a message. Raises what the step raises; the message then comes again."""
        queue = self._storage.queue(step.queue)
        hold: _Hold | None = None
        is_done = False
        receiving = asyncio.ensure_future(
            asyncio.to_thread(queue.receive, visible_after_s=self._pace.hidden_s)
        )
        try:
            message = await asyncio.shield(receiving)
            if message is None:
                return False
            hold = _Hold(queue, message, self._pace.hidden_s)
            try:
                await self._handle(step, message)
            except Exception:
                await self._put_off(queue, await hold.end())
                raise
            is_done = True
            if (held := await hold.end()) is not None:
                await asyncio.to_thread(queue.delete, held)
        except asyncio.CancelledError:
            self._bulk.stop()
            with suppress(Exception):  # if it does not go back now, it does after hidden_s
                held = await (hold.end() if hold else receiving)
                if held is not None and not is_done:
                    await _hand_back(queue, held)
                elif held is not None:
                    await asyncio.to_thread(queue.delete, held)
            raise
        finally:
            if hold is not None:
                await hold.end()
        return True

    async def _put_off(self, queue: Queue, message: Message | None) -> None:
        if message is not None:
            with suppress(BlitzError):  # then it comes again after hidden_s
                await asyncio.to_thread(queue.renew, message, visible_after_s=self._pace.retry_s)

    async def _handle(self, step: Step, message: Message) -> None:
        async def give_up() -> None:
            await unless_invalid(self._bulk.give_up, message.body, step.queue, message.id)

        if message.dequeue_count > MAX_TRIES:  # each process that took it was killed
            await give_up()
            return
        try:
            await unless_invalid(step.run, message.body, step.queue, message.id)
        except Exception as error:
            last = message.dequeue_count >= MAX_TRIES
            what = f"bulk: {step.queue}, message {shown(message.id)}"
            log_failure(_log, what, error, logging.WARNING, "it is given up" if last else _AGAIN)
            if not last:
                raise _Logged from error
            await give_up()


class _Logged(Exception):
    """A step failed, and that is logged."""


class _Hold:
    """Keeps a message hidden while it is worked on, as the Functions host does.

    So a step may take any time, and the message of a killed process soon comes to another. If renewing
    fails for too long, another process receives it too: both do the step, with the same bytes as a
    result, and the other one deletes the message.
    """

    def __init__(self, queue: Queue, message: Message, hidden_s: float) -> None:
        self._queue = queue
        self._hidden_s = hidden_s
        self._over = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep(message))

    async def end(self) -> Message | None:
        """Stop renewing. Returns the message with its last receipt; None if another has it."""
        self._over.set()
        return await asyncio.shield(self._keeping)

    async def _keep(self, message: Message | None) -> Message | None:
        while message is not None and not await self._is_over_within(self._hidden_s / _RENEWALS):
            with suppress(BlitzError):  # the step logs that storage fails; the next renewal may succeed
                message = await asyncio.to_thread(
                    self._queue.renew, message, visible_after_s=self._hidden_s
                )
        return message

    async def _is_over_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return self._over.is_set()


async def _hand_back(queue: Queue, message: Message) -> None:
    """As a new message, visible at once: a process that was stopped is no failed try."""
    await asyncio.to_thread(queue.send, message.body)
    await asyncio.to_thread(queue.delete, message)


def driver_of(settings: Settings, backend: Backend, device: Device) -> Driver:
    """The driver of the app whose models `backend` are. Raises Misconfigured."""
    storage = open_storage(settings)
    return Driver(build_bulk(settings, storage, backend), storage, device, Pace())


def make_inboxes(settings: Settings, cards: Sequence[ModelCard]) -> None:
    """In a folder, `bulk-in/MODEL/` for each embedding model: people drop files there.

    Without it `cp FILE bulk-in/MODEL` would make a file named like the model.
    """
    if (folder := _folder(settings)) is None:
        return
    for name in _embedding(cards):
        try:
            (folder / SOURCE / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _log.warning("bulk: %s cannot be made: %s", folder / SOURCE / name, error.strerror)


def bulk_hint(settings: Settings, cards: Sequence[ModelCard]) -> str:
    """Where to put a file to have it embedded."""
    folder = _folder(settings)
    where = "the account's " if folder is None else f"{folder}/"
    name = next(iter(_embedding(cards)), "MODEL")
    return f"put a file into {where}{SOURCE}/{name}/, find its vectors in {where}{OUT}/{name}/"


def _folder(settings: Settings) -> Path | None:
    """The bulk storage's; None if it is an account's."""
    named = local_storage(settings)
    url = named.storage or ("" if named.storage_connection_string else DEFAULT)
    return Path(url.removeprefix("file://")) if url.startswith("file://") else None


def _embedding(cards: Sequence[ModelCard]) -> list[str]:
    return list(dict.fromkeys(card.name for card in cards if card.task == "embedding"))
