"""Predictive warm-up: the router counts what the GPU is wanted for, and a timer wakes it ahead.

In Azure the timer runs on an instance of its own, which never sees a request: what every instance
counts, and when the GPU was woken, they tell each other through one blob. Does not know how a forecast
is made or how a GPU is woken.
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
"""Every TICK_S."""

FLUSH_S = 60.0
"""Counts are written so often; an instance that dies takes those of at most so long with it."""

_TRIES = 8
_log = logging.getLogger(__name__)


class WarmUp:
    """Of one process. For one event loop at a time.

    blobs: where the state lies. wake: returns once the GPU is up. gpu_s_per_request, wake_s, idle_s: see
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
        """A request came that the GPU is wanted for. It is written soon, in nobody's request."""
        self._counts[slot_at(self._clock())] += 1
        if self._flushing is None or self._flushing.done():
            flushing = self._keep_flushing()
            self._flushing = asyncio.get_running_loop().create_task(flushing, context=Context())

    async def flush(self) -> None:
        """Write what was counted. If the GPU was woken ahead meanwhile, know it here too.

        If the storage does not serve, that is logged, and the counts are kept for the next time.
        """
        counts, self._counts = self._counts, Counter()
        now_s = self._clock()
        try:
            state = await self._change(lambda state: forecast.add_counts(state, counts, now_s))
        except BlitzError as error:
            self._counts.update(counts)
            _log.warning("what the GPU was wanted for was not written: %s", error.message)
            return
        is_up = now_s - state.woken_s < self._idle_s
        if is_up and state.woken_s > self._woken_s:
            # Asked once, so that this process's routing takes it for warm.
            self._woken_s = state.woken_s
            await self._wake()

    async def tick(self) -> None:
        """What the timer does: wake the GPU if it will be wanted. Of many that tick, one wakes it."""
        now_s = self._clock()
        woken = False

        def decide(state: State) -> State:
            nonlocal woken
            woken = self._is_worth_it(state, now_s)
            return forecast.advance(state, now_s, woken=woken)

        try:
            await self._change(decide)
        except BlitzError as error:
            _log.warning("no forecast: %s", error.message)
            return
        if woken:
            _log.info("the GPU is woken ahead")
            self._woken_s = now_s
            await self._wake()

    async def _keep_flushing(self) -> None:
        while self._counts:
            await self.flush()
            await asyncio.sleep(FLUSH_S)

    async def _change(self, change: Callable[[State], State]) -> State:
        """The new state, written. `change` may be called again, if others write meanwhile."""
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
            time.sleep(random.uniform(0, 0.05 * (tries + 1)))  # noqa: S311 - so that not all come at once
        raise Unavailable("too many write the forecast's state at once")


def connect(settings: Settings, wake: Callable[[], Awaitable[None]]) -> WarmUp:
    """Over the settings' bulk storage. Raises Misconfigured; does not connect yet."""
    if not settings.storage and not settings.storage_connection_string:
        raise Misconfigured("BLITZ_GPU_AHEAD_S needs a place for what is learned: set BLITZ_STORAGE")
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

    # Not at startup: every instance that comes would begin with it.
    trigger = app.timer_trigger(arg_name="timer", schedule=SCHEDULE, run_on_startup=False)
    # The host takes whatever is called `warmup` for its own trigger of that name.
    app.function_name("wake_ahead")(trigger(wake_ahead))


def _decode(data: bytes | None) -> State | None:
    """None if there is nothing that this version wrote: it is learned anew."""
    try:
        return None if data is None else msgspec.json.decode(data, type=State)
    except msgspec.DecodeError:
        _log.warning("the forecast's state could not be read: it is learned anew")
        return None
