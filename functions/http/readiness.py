"""Whether a service is ready: the rule, and what /ready answers, for the router and for the backends.

Does not know how models are loaded, nor who asks.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from shared.contracts import ModelState
from shared.observability.metrics import Telemetry

_JSON = "application/json"


def is_ready(states: Sequence[ModelState], warm_models: Sequence[str] | None) -> bool:
    """Whether requests will be answered soon: once every model of `warm_models` is warm.

    None: not known here, since a router's backends have settings of their own. Then once any model is
    warm, or none was ever asked for.
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
    """200 if `is_ready`, else 503; the body lists all states, and `more`."""
    return _response(is_ready(states, warm_models), metrics, models=states, **more)


def not_ready_response(reason: str, metrics: Telemetry) -> Response:
    """503: the states are not known, and why."""
    return _response(False, metrics, reason=reason, models=[])


def _response(ready: bool, metrics: Telemetry, **body: object) -> Response:
    metrics.said_ready(ready)
    return Response(
        msgspec.json.encode({"ready": ready, **body}), 200 if ready else 503, media_type=_JSON
    )
