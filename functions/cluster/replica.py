"""One replica of a backend: an Inference with its own model cache, called by routers.

Bodies are shared.wire's. Does not know HTTP, dialects, or which requests come here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from importlib import import_module
from typing import Any

from msgspec.structs import replace
from ray import serve

from functions.cluster import call, scaling
from functions.cluster.placement import free_places
from functions.http.admission import Admission
from functions.http.caller import LARGE_BODY_BYTES, in_thread_if
from functions.local.driver import driver_of
from shared.cards import Device, ModelState
from shared.context import deadline
from shared.contracts import REQUESTS
from shared.errors import BlitzError
from shared.inference.service import Inference
from shared.names import pinned_name, split_pinned
from shared.observability import logs, metrics
from shared.observability.logs import log_failure
from shared.observability.start import start_export
from shared.settings import Settings
from shared.wire import messages

_log = logging.getLogger(__name__)

IDLE_S = 60.0
"""A model that nobody asked for in so long may go for another."""

_KINDS = {kind.operation: kind for kind in REQUESTS}


class Replica:
    """The deployment's class. Ray calls its methods in one event loop.

    settings: of the whole service; with a storage, all CPU replicas work on its bulk jobs. Its GPU
    replicas get none: jobs cannot wake them.
    threads: engine threads, the CPUs that Ray gave this replica.
    """

    def __init__(self, settings: Settings, device: Device, threads: int) -> None:
        settings = replace(settings, role=device, threads=settings.threads or threads)
        logs.use(settings.log_format, device)
        start_export(settings)
        self._inference = self.create_inference(settings, device)
        self._settings = settings
        self._admission = Admission(
            max_requests=settings.max_requests, max_bytes=settings.max_pending_bytes
        )
        self._busy = _BusyTime()
        self._asked_at: dict[str, float] = {}
        self._bulk: asyncio.Task[None] | None = None
        if device == "cpu" and (settings.storage or settings.storage_connection_string):
            driver = driver_of(settings, self._inference, device)
            self._bulk = asyncio.get_running_loop().create_task(driver.run())

    @staticmethod
    def create_inference(settings: Settings, device: Device) -> Inference:
        """This replica's models. Imported by name: the CPU backend loads no GPU's dependencies."""
        inference: Inference = import_module(f"functions.{device}").create_inference(settings)
        return inference

    async def run(self, operation: str, body: bytes, headers: dict[str, str]) -> call.Answer:
        """The packed result of a packed request, or the packed error."""
        with call.told(headers, f"RUN /{operation}"):
            try:
                async with deadline.within(call.timeout_of(headers, self._settings.request_timeout_s)):
                    return True, await self._answer(operation, body)
            except BlitzError as raised:
                error = raised
            except Exception as raised:
                log_failure(_log, "unexpected error", raised)
                error = BlitzError("internal error")
        metrics.PROCESS.request_failed(error.code)
        return False, messages.pack_error(error)

    async def states(self) -> list[ModelState]:
        """The states of the models here, sorted by name."""
        return await self._inference.states()

    async def wake(self) -> None:
        """Answer that this replica is up."""

    async def render_metrics(self) -> tuple[str, bytes]:
        """This replica's name, and its process's metrics in Prometheus's text format."""
        return serve.get_replica_context().replica_tag, metrics.PROCESS.render()

    async def record_routing_stats(self) -> dict[str, Any]:
        """What routers rank this replica by; Ray asks for it every few seconds. A loaded model goes by
        two names: the one it was asked for by, and NAME@REVISION."""
        states = self._inference.in_memory()
        warm = [
            {state.name, pinned_name(split_pinned(state.name)[0], state.revision or "")}
            for state in states
            if state.state == "warm"
        ]
        loading = [state.name for state in states if state.state == "loading"]
        since = time.monotonic() - IDLE_S
        self._asked_at = {name: at for name, at in self._asked_at.items() if at > since}
        places = self._settings.cache_models - len(loading)
        return {
            "warm": sorted(set[str]().union(*warm)),
            "loading": loading,
            "free": free_places(places, warm, self._asked_at),
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What functions.cluster.scaling decides by."""
        return {
            scaling.WAITING_TOKENS: float(self._inference.queued_tokens),
            scaling.BUSY_SHARE: self._busy.share(),
        }

    async def __del__(self) -> None:
        """Called by Ray once no request is left, before the process ends."""
        if self._bulk is not None:  # its messages go back to their queues
            self._bulk.cancel()
            await asyncio.wait([self._bulk])
        await self._inference.close()

    async def _answer(self, operation: str, body: bytes) -> bytes:
        began = time.perf_counter()
        reservation = self._admission.acquire()
        try:
            self._inference.check()
            reservation.reserve(body_bytes=len(body))
            kind = _KINDS[operation]
            unpack = partial(
                messages.unpack_request, body, kind, max_bytes=self._settings.max_body_bytes
            )
            asked = await in_thread_if(len(body) > LARGE_BODY_BYTES, unpack)
            inputs = len(asked.texts)
            self._asked_at[asked.model] = time.monotonic()
            metrics.PROCESS.request_arrived(inputs)
            with self._busy:
                result = await self._inference.run(asked)
            content = messages.pack_result(result)
        finally:
            reservation.release()
        metrics.PROCESS.request_succeeded(result, inputs=inputs, duration_s=time.perf_counter() - began)
        return content


class _BusyTime:
    """The share of time in which at least one request was running."""

    def __init__(self) -> None:
        self._running = 0
        self._since = self._asked = time.monotonic()
        self._busy_s = 0.0

    def __enter__(self) -> None:
        if not self._running:
            self._since = time.monotonic()
        self._running += 1

    def __exit__(self, *_: object) -> None:
        self._running -= 1
        if not self._running:
            self._busy_s += time.monotonic() - self._since

    def share(self) -> float:
        """Since it was last asked for, 0 to 1."""
        now = time.monotonic()
        busy_s = self._busy_s + (now - self._since if self._running else 0.0)
        passed_s = now - self._asked
        self._busy_s, self._since, self._asked = 0.0, now, now
        return min(1.0, busy_s / passed_s) if passed_s > 0 else 0.0
