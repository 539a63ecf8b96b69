"""The Backend over a deployment handle of Ray Serve: retries, deadlines, errors translated.

Does not know models or dialects, nor which replica answers: functions.cluster.request_router ranks them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any

import stamina
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from functions.cluster.call import Answer
from shared.cards import Device, ModelState
from shared.context import deadline, trace
from shared.context.outgoing import headers_of
from shared.contracts import Request, ResultT
from shared.errors import BackendFailed, DeadlineExceeded, Overloaded, Unavailable
from shared.wire import messages

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

ATTEMPTS = 4
"""Of one call: replicas may end one after another while a node goes."""
STATES_S = 5.0
WAKE_S = 600.0
"""Time for a node to be added, its image to be pulled, and a replica to start."""

_BEST_FIRST = ("warm", "loading", "failed", "cold")


class HandleBackend:
    """A backend that runs as the deployment behind `handle`.

    A call ends with the deadline of the request being served, and the replica is told how much time is
    left; cancelling a call cancels it on the replica, queued or running.

    Calls are pure functions of the request: when a replica ends during one, it is repeated on another,
    up to ATTEMPTS times. The replica's errors are raised as the same class. Raises Unavailable if
    replicas end faster than that, and BackendFailed if an answer is not in the wire format.
    """

    def __init__(self, handle: DeploymentHandle[Any], device: Device) -> None:
        self._handle = handle
        self._device: Device = device

    async def run(self, request: Request[ResultT]) -> ResultT:
        if deadline.is_over():
            raise DeadlineExceeded("the request took too long")
        body = messages.pack_request(request)
        is_result, data = await self._call(request.operation, body, request.model)
        if not is_result:
            raise messages.unpack_error(data)
        kind: type[ResultT] = request.result
        return messages.unpack_result(data, kind)

    def check(self) -> None:
        """Nothing is known here; the dispatcher limits concurrent calls."""

    async def states(self) -> list[ModelState]:
        """Of each model the best state that a replica knows. Raises Unavailable if there is none."""
        with _translating():
            told = await self._handle.broadcast("states").results_async(
                timeout_s=STATES_S, return_exceptions=True
            )
        known = [state for states in told if isinstance(states, list) for state in states]
        if not any(isinstance(states, list) for states in told):
            raise Unavailable(f"no replica of the {self._device.upper()} backend answers")
        by_name: dict[str, ModelState] = {}
        for state in sorted(known, key=lambda state: _BEST_FIRST.index(state.state), reverse=True):
            by_name[state.name] = state
        return [by_name[name] for name in sorted(by_name)]

    async def wake(self) -> None:
        """Return once a replica is up; the call itself makes Ray start one. Raises Unavailable."""
        async with deadline.within(WAKE_S):
            with _translating():
                await self._handle.wake.remote()

    async def close(self) -> None:
        """Nothing is held here: the handle belongs to its replica."""

    async def _call(self, operation: str, body: bytes, model: str) -> Answer:
        with _translating():
            async for attempt in stamina.retry_context(
                on=RayActorError,
                attempts=ATTEMPTS,
                timeout=None,  # the deadline ends it
                wait_initial=0.05,
                wait_max=0.5,
                wait_jitter=0.1,
            ):
                with attempt:
                    return await self._send(operation, body, model)
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, operation: str, body: bytes, model: str) -> Answer:
        handle = self._handle.options(method_name="run", multiplexed_model_id=model)
        with trace.calling(f"POST /{operation}", self._handle.deployment_name) as span:
            # Ray gives each call the id of the HTTP request that it is made for, and finds a replica for
            # one call of an id: all parts of a split request but one would wait for ever.
            response = Context().run(handle.remote, operation, body, headers_of(span))
            try:
                answer: Answer = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            span.status = 200 if answer[0] else 500
        return answer


@contextmanager
def _translating() -> Iterator[None]:
    """Translate Ray's errors into ours."""
    try:
        yield
    except BackPressureError:
        raise Overloaded("too many requests are waiting: retry later", retry_after_s=1.0) from None
    except RayActorError:
        raise Unavailable("the replica ended: retry", retry_after_s=1.0) from None
    except (TimeoutError, DeploymentUnavailableError):  # the latter where there is no replica
        raise Unavailable("the replicas do not answer", retry_after_s=1.0) from None
    except (RayError, RayServeException):
        raise BackendFailed("the call of the replica failed") from None
