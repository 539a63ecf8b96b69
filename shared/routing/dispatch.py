"""A backend over several: chooses one per request, splits large requests, and falls back on failures.

Does not know dialects or how a backend is called; `shared.routing.policy` decides which is best.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from typing import Protocol

from msgspec.structs import replace

from shared import partition
from shared.backends.base import Backend
from shared.cards import Device, ModelCard, ModelState
from shared.context import deadline, preference, sender
from shared.contracts import AnyRequest, Request, ResultT
from shared.errors import BeyondMemory, BlitzError, ModelLoadFailed, Overloaded, UnknownModel
from shared.observability import metrics
from shared.observability.metrics import Telemetry
from shared.request_size import characters_of, check_characters, estimate_request
from shared.routing.lane import Lane
from shared.routing.parts import Parts, check_revision
from shared.routing.policy import Policy, Work, preferring, wants_gpu
from shared.routing.revisions import Revisions
from shared.routing.staging import Way, plan_ways

_log = logging.getLogger(__name__)


ESTIMATED_TOO_LOW = 2
"""Factor by which a token estimate may be too low; shared.request_size describes the worst case."""


class Cards(Protocol):
    """The part of shared.models.catalogue.Catalogue that is used here."""

    async def cards_of(self, name: str) -> Sequence[ModelCard]:
        """A model's cards, one a device; none if it is not known."""


class Dispatcher:
    """A `shared.backends.base.Backend` over `backends`. For one event loop at a time.

    A request tries the devices in the order that `policy` returns, starting with the sender's preference
    if there is one (see shared.context.preference), until one answers; a caller's error ends this at
    once. One backend and one revision of the model answer it; which one, shared.routing.staging says. A
    staged one that fails leaves the request to the current one. While further tries are left, an attempt
    gets half of the remaining time, so that a hanging backend does not use it up.

    concurrency, max_queue_s, patience_s: see Lane; a device without a number runs in this process.
    part_texts: larger requests are split into parts of this size, run concurrently; not for a backend
    in this process, and not if the total might exceed max_request_tokens, which a backend that sees the
    whole request checks before running any of it. gpu_idle_s: the GPU counts as scaled to zero this long
    after its last response. wake_gpu: returns once the GPU is up. clock: monotonic seconds.

    Raises what backends raise. If several failed: the first error other than UnknownModel, if any.
    """

    def __init__(
        self,
        backends: Mapping[Device, Backend],
        catalogue: Cards,
        policy: Policy,
        *,
        part_texts: int,
        concurrency: Mapping[Device, int],
        max_queue_s: float,
        max_request_tokens: int,
        patience_s: float,
        gpu_idle_s: float,
        wake_gpu: Callable[[], Awaitable[None]] | None = None,
        metrics: Telemetry = metrics.PROCESS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lanes = {
            device: Lane(
                device,
                backend,
                concurrency=concurrency.get(device),
                max_queue_s=max_queue_s,
                idle_s=gpu_idle_s if device == "gpu" else None,
                patience_s=patience_s,
                metrics=metrics,
                clock=clock,
            )
            for device, backend in backends.items()
        }
        self._catalogue = catalogue
        self._policy = policy
        self._part_texts = part_texts
        self._max_request_tokens = max_request_tokens
        self._wake_gpu = wake_gpu
        self._waking: asyncio.Task[None] | None = None
        self._gpu_wanted: Callable[[], None] | None = None
        self._metrics = metrics
        self._revisions = Revisions(metrics, clock)

    async def run(self, request: Request[ResultT]) -> ResultT:
        """Where the policy sends it; what runs no model goes to the CPU."""
        if request.runs_model:
            return await self._dispatch(request)
        with preference.stated("cpu"):  # needs no GPU, so do not wake one
            return await self._dispatch(request)

    def watch_gpu_work(self, wanted: Callable[[], None]) -> None:
        """Call `wanted` for each request that goes to the GPU, or would if it were up."""
        self._gpu_wanted = wanted

    async def wake_gpu(self) -> None:
        """Wake the GPU, even if it seems up. Return once it is up or has failed to wake (logged)."""
        self._start_waking()
        if self._waking is not None:
            await asyncio.shield(self._waking)

    def check(self) -> None:
        """Raise Overloaded if every backend would refuse a request now."""
        refusals = []
        for lane in self._lanes.values():
            try:
                lane.check()
            except Overloaded as error:
                refusals.append(error)
            else:
                return
        raise min(refusals, key=lambda error: error.retry_after_s or 0.0)

    async def states(self) -> list[ModelState]:
        """States by name, of the CPU and of a GPU that is up; asking must not wake a GPU."""
        states = []
        for device, lane in self._lanes.items():
            try:
                if lane.view.warm:
                    states += [replace(state, device=device) for state in await lane.backend.states()]
            except BlitzError as error:
                if device == "cpu":
                    raise
                _log.warning("the GPU backend does not report its state: %s", error.message)
        return sorted(states, key=lambda state: state.name)

    async def close(self) -> None:
        """Stop waking the GPU, and close the backends."""
        if self._waking is not None:
            self._waking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._waking
        for lane in self._lanes.values():
            await lane.backend.close()

    async def _dispatch(self, request: Request[ResultT]) -> ResultT:
        check_characters(characters_of(request), self._max_request_tokens, request.items_as_told)
        cards = await self._catalogue.cards_of(request.model)
        work = _work(request, cards)
        views = {device: lane.view for device, lane in self._lanes.items()}
        device = preference.preferred()
        policy = preferring(device) if device else self._policy
        decision = policy(work, views)
        if self._gpu_wanted is not None and wants_gpu(policy, work, views):
            self._gpu_wanted()
        _log.debug("to %s: %s", decision.devices[0], decision.reason)
        if decision.wake_gpu:
            self._start_waking()
        self._revisions.tell_quality(request.model, cards)
        return await self._walk(
            plan_ways(request, decision.devices, cards, sender.current()), request, work.tokens
        )

    async def _walk(self, ways: Sequence[Way], request: Request[ResultT], tokens: int) -> ResultT:
        """The answer of the first way that has one."""
        failures: list[BlitzError] = []
        for way, after in zip(ways, [*ways[1:], None], strict=True):
            try:
                with self._revisions.watched(way, request.model) as seen:
                    async with _share_of_time(is_last=after is None):
                        asked = replace(request, model=way.model) if way.revision else request
                        result = await self._attempt(self._lanes[way.device], asked, tokens)
                    check_revision(result.revision, way.revision)
                    seen.tokens = result.total_tokens
                return result
            except BlitzError as error:
                if not _another_may_answer(error):
                    raise
                failures.append(_as_staged(error, way))
                if deadline.is_over():
                    break
                if after is not None and after.device != way.device:
                    self._metrics.backend_fell_back(way.device)
        raise next((e for e in failures if not isinstance(e, UnknownModel)), failures[0])

    async def _attempt(
        self,
        lane: Lane,
        request: Request[ResultT],
        tokens: int,
    ) -> ResultT:
        """Run the whole request on one backend."""
        parts = [request]
        if lane.is_remote and tokens * ESTIMATED_TOO_LOW <= self._max_request_tokens:
            parts = partition.split(request, self._part_texts)
        with lane.attempt(tokens, is_split=len(parts) > 1):
            if len(parts) == 1:
                return await lane.call(lambda backend: backend.run(request))
            results = await Parts(
                parts,
                lambda part: lane.call(lambda backend: backend.run(part), is_part=True),
                part_texts=self._part_texts,
                max_tokens=self._max_request_tokens,
            ).answer()
        return partition.join(results)

    def _start_waking(self) -> None:
        """One wake at a time, outside the request's context, so that its deadline cannot end it."""
        if self._wake_gpu is None or (self._waking is not None and not self._waking.done()):
            return
        self._metrics.gpu_woken()
        wake = _waking(self._lanes["gpu"], self._wake_gpu)
        self._waking = asyncio.get_running_loop().create_task(wake, context=Context())


def _as_staged(error: BlitzError, way: Way) -> BlitzError:
    """A staged revision that is not there does not make its model unknown."""
    if not way.revision or not isinstance(error, UnknownModel):
        return error
    return ModelLoadFailed(f"the revision {way.model} is not there", retry_after_s=5.0)


def _share_of_time(is_last: bool) -> contextlib.AbstractAsyncContextManager[None]:
    """The deadline of one attempt: half of the time left, and all of it for the last."""
    left_s = deadline.remaining_s()
    if is_last or left_s is None:
        return contextlib.nullcontext()
    return deadline.within(left_s / 2)


def _work(request: AnyRequest, cards: Sequence[ModelCard]) -> Work:
    texts = request.texts
    cross_encoder = any(card.task == "cross-encoder" for card in cards)
    max_tokens = max((card.max_tokens for card in cards), default=None)
    tokens = estimate_request(request, paired=cross_encoder, max_tokens=max_tokens)
    return Work(len(texts), tokens, cross_encoder, {card.device: card.size_bytes for card in cards})


def _another_may_answer(error: BlitzError) -> bool:
    """Whether another backend may succeed: not after a caller's error; 500 concerns one backend."""
    return error.status >= 500 or isinstance(error, Overloaded | UnknownModel | BeyondMemory)


async def _waking(lane: Lane, wake: Callable[[], Awaitable[None]]) -> None:
    try:
        await lane.wake(wake)
    except BlitzError as error:
        _log.warning("the GPU backend did not wake: %s", error.message)
