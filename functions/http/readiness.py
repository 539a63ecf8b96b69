"""The readiness rule and the response of /ready, for the router and for the backends.

Does not know how models are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from shared.cards import ModelState
from shared.observability.metrics import Telemetry

_JSON = "application/json"


def is_ready(states: Sequence[ModelState], warm_models: Sequence[str] | None) -> bool:
    """Whether every model of `warm_models` is warm, so that requests are answered soon.

    None: unknown here, because a router's backends have settings of their own. Then: whether any model
    is warm, or none was requested yet.
    """
    warm = {state.name for state in states if state.state == "warm"}
    if warm_models is not None:
        return warm.issuperset(warm_models)
    return bool(warm) or all(state.state == "cold" for state in states)


def readiness_response(
    states: Sequence[ModelState],
    warm_models: Sequence[str] | None,
    metrics: Telemetry,
    **more: object,
) -> Response:
    """200 if `is_ready`, else 503; the body holds all states, and `more`."""
    return _response(is_ready(states, warm_models), metrics, models=states, **more)


def not_ready_response(reason: str, metrics: Telemetry) -> Response:
    """503 for unknown states, with the reason."""
    return _response(False, metrics, reason=reason, models=[])


def _response(ready: bool, metrics: Telemetry, **body: object) -> Response:
    metrics.said_ready(ready)
    return Response(
        msgspec.json.encode({"ready": ready, **body}), 200 if ready else 503, media_type=_JSON
    )
