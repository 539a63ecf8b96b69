"""The functions that a Functions host finds in each app, as the worker library tells them."""

from __future__ import annotations

from typing import Any

HTTP_TRIGGER = {
    "direction": "IN",
    "type": "httpTrigger",
    "name": "req",
    "methods": ["GET", "POST", "DELETE", "HEAD", "PATCH", "PUT", "OPTIONS"],
    "authLevel": "ANONYMOUS",
    "route": "/{*route}",
}
HTTP_FUNCTION = [HTTP_TRIGGER, {"direction": "OUT", "type": "http", "name": "$return"}]


def _queues(*names: str) -> dict[str, list[dict[str, str]]]:
    """The functions of these queues."""
    return {
        name.replace("-", "_"): [
            {
                "direction": "IN",
                "type": "queueTrigger",
                "name": "message",
                "queueName": name,
                "connection": "BulkStorage",
            }
        ]
        for name in names
    }


TIMER_TRIGGER = {
    "direction": "IN",
    "type": "timerTrigger",
    "name": "timer",
    "schedule": "0 */5 * * * *",
    "runOnStartup": False,
}
CPU_QUEUES = ("bulk-split", "bulk-cpu", "bulk-finish")
FUNCTIONS: dict[str, dict[str, Any]] = {
    "router": {"http_app_func": HTTP_FUNCTION},
    "lone_router": {"http_app_func": HTTP_FUNCTION},
    "cpu": {
        "http_app_func": HTTP_FUNCTION,
        **_queues("bulk-events", *CPU_QUEUES, *(f"{name}-poison" for name in CPU_QUEUES)),
        "bulk_reconcile": [TIMER_TRIGGER],
    },
    "gpu": {"http_app_func": HTTP_FUNCTION, **_queues("bulk-gpu", "bulk-gpu-poison")},
}
