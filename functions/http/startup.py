"""Log lines of a starting process: the limits that hold.

Does not know what is served, or where logs go.
"""

from __future__ import annotations

import logging

from shared.observability import logs
from shared.settings import Settings
from shared.wording import counted

_start = logging.getLogger(logs.START)


def log_engine_limits(
    role: str,
    *,
    threads: int,
    tokenizer_threads: int,
    models: int,
    models_bytes: int,
    batches_bytes: int,
) -> None:
    """Log a backend's threads and its memory for models and for micro-batches."""
    _start.info(
        "%-7s %s, %s; memory: at most %s in %s, %s to run them",
        f"{role}:",
        counted(threads, "engine thread"),
        counted(tokenizer_threads, "tokenizer thread"),
        counted(models, "model"),
        _size(models_bytes),
        _size(batches_bytes),
        extra={
            "engine_threads": threads,
            "tokenizer_threads": tokenizer_threads,
            "cache_models": models,
            "cache_memory_bytes": models_bytes,
            "batch_memory_bytes": batches_bytes,
        },
    )


def log_request_limits(settings: Settings, connections: int | None = None) -> None:
    """Log the request limits. connections: their limit; None: another server accepts them."""
    taken = "" if connections is None else f"{connections:,} connections, "
    _start.info(
        "%-7s at most %s%s concurrent requests with %s of bodies and responses; a body has at most %s",
        f"{settings.role}:",
        taken,
        f"{settings.max_requests:,}",
        _size(settings.max_pending_bytes),
        _size(settings.max_body_bytes),
        extra={
            "max_requests": settings.max_requests,
            "max_pending_bytes": settings.max_pending_bytes,
            "max_body_bytes": settings.max_body_bytes,
            **({} if connections is None else {"max_connections": connections}),
        },
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
