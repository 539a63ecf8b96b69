"""Predictive warm-up: the router counts requests for the GPU, and a timer wakes it ahead of demand.

In Azure the timer runs on a separate instance that sees no requests, so instances share their counts and
the time of the last wake in one blob. Does not know how a forecast is made or how a GPU is woken.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial

import azure.functions as func
import msgspec

from shared.errors import BlitzError, Misconfigured, Unavailable
from shared.routing import forecast
from shared.routing.forecast import State, slot_at
from shared.settings import Settings
from shared.storage.blobs import Blobs
from shared.storage.connect import open_storage

KEY = "warmup/state.json"
SCHEDULE = "0 */5 * * * *"
"""Every forecast.TICK_S."""

FLUSH_S = 60.0
"""Interval between writes of the counts; an instance that dies loses at most this much."""

_TRIES = 8
_log = logging.getLogger(__name__)


class WarmUp:
    """The warm-up of one process. For one event loop at a time.

    blobs: stores the state. wake: returns once the GPU is up. gpu_s_per_request, wake_s, idle_s: see
    `shared.routing.forecast.should_wake`. clock: Unix seconds.
    """

    def __init__(
        self,
        blobs: Blobs,
        wake: Callable[[], Awaitable[None]],
        *,
        gpu_s_per_request: float,
        wake_s: float,
        idle_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._blobs = blobs
        self._wake = wake
        self._idle_s = idle_s
        self._clock = clock
        self._is_worth_it = partial(
            forecast.should_wake, wake_s=wake_s, idle_s=idle_s, gpu_s_per_request=gpu_s_per_request
        )
        self._counts: Counter[int] = Counter()
        self._flushing: asyncio.Task[None] | None = None
        self._woken_s = 0.0

    def count(self) -> None:
        """Count a request for the GPU. A task outside the request's context writes the counts."""
        self._counts[slot_at(self._clock())] += 1
        if self._flushing is None or self._flushing.done():
            flushing = self._keep_flushing()
            self._flushing = asyncio.get_running_loop().create_task(flushing, context=Context())

    async def flush(self) -> None:
        """Write the counts, and notice if another instance has woken the GPU.

        If the storage fails, that is logged and the counts are kept for the next flush.
        """
        counts, self._counts = self._counts, Counter()
        now_s = self._clock()
        try:
            state = await self._change(lambda state: forecast.add_counts(state, counts, now_s))
        except BlitzError as error:
            self._counts.update(counts)
            _log.warning("the counts of GPU requests were not written: %s", error.message)
            return
        is_up = now_s - state.woken_s < self._idle_s
        if is_up and state.woken_s > self._woken_s:
            # Call it once, so that this process's routing sees it as warm.
            self._woken_s = state.woken_s
            await self._wake()

    async def tick(self) -> None:
        """Called by the timer: wake the GPU if forecast to be needed; one of concurrent ticks does."""
        now_s = self._clock()
        woken = False

        def decide(state: State) -> State:
            nonlocal woken
            woken = self._is_worth_it(state, now_s)
            return forecast.advance(state, now_s, woken=woken)

        try:
            await self._change(decide)
        except BlitzError as error:
            _log.warning("no GPU forecast: %s", error.message)
            return
        if woken:
            _log.info("waking the GPU ahead of demand")
            self._woken_s = now_s
            await self._wake()

    async def _keep_flushing(self) -> None:
        while self._counts:
            await self.flush()
            await asyncio.sleep(FLUSH_S)

    async def _change(self, change: Callable[[State], State]) -> State:
        """Update the stored state. `change` is called again if another writer came between."""
        return await asyncio.to_thread(self._replace, change)

    def _replace(self, change: Callable[[State], State]) -> State:
        for tries in range(_TRIES):
            stat = self._blobs.stat(KEY)
            data = self._blobs.read(KEY) if stat else None
            state = change(_decode(data) or forecast.begin(self._clock()))
            encoded = msgspec.json.encode(state)
            if stat is None:
                written = self._blobs.create(KEY, encoded)
            else:
                written = self._blobs.replace(KEY, encoded, etag=stat.etag)
            if written:
                return state
            time.sleep(random.uniform(0, 0.05 * (tries + 1)))  # noqa: S311 - jitter
        raise Unavailable("too many concurrent writers of the forecast's state")


def connect(settings: Settings, wake: Callable[[], Awaitable[None]]) -> WarmUp:
    """A WarmUp over the bulk storage of the settings. Raises Misconfigured; does not connect yet."""
    if not settings.storage and not settings.storage_connection_string:
        raise Misconfigured("BLITZ_GPU_AHEAD_S needs a storage for its forecast: set BLITZ_STORAGE")
    return WarmUp(
        open_storage(settings).out,
        wake,
        gpu_s_per_request=settings.gpu_ahead_s,
        wake_s=settings.gpu_wake_s,
        idle_s=settings.gpu_idle_s,
    )


def register(app: func.AsgiFunctionApp, warm_up: WarmUp) -> None:
    """Add the timer to the router's app."""

    async def wake_ahead(timer: func.TimerRequest) -> None:
        await warm_up.tick()

    # Not at startup, which every new instance would run.
    trigger = app.timer_trigger(arg_name="timer", schedule=SCHEDULE, run_on_startup=False)
    # The host takes whatever is called `warmup` for its own trigger of that name.
    app.function_name("wake_ahead")(trigger(wake_ahead))


def _decode(data: bytes | None) -> State | None:
    """The state; None if there is none that this version can read, so that learning restarts."""
    try:
        return None if data is None else msgspec.json.decode(data, type=State)
    except msgspec.DecodeError:
        _log.warning("the forecast's state could not be read: learning restarts")
        return None
