"""Spans, log records and metrics to Application Insights: a bounded queue and one thread that sends.

Of opencensus-ext-azure the payloads, the transport and its files are used, not its three exporters: each
has threads of its own and logs every item that its full queue drops, and one of them sends the messages
of exceptions. What the endpoint does not take is kept in files, up to a limit, and sent when it answers
again. No text and no vector is sent, since no span, record or metric holds one. Does not know what a
request is about.
"""

from __future__ import annotations

import atexit
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from azure.core.credentials import TokenCredential

from shared.context import trace
from shared.context.trace import Span
from shared.observability.azure.envelopes import Envelopes
from shared.observability.azure.transport import Transport, key_and_endpoint
from shared.observability.logs import FAILURE, OURS, Failure
from shared.observability.metrics import Telemetry

QUEUE_ITEMS = 20_000
"""Spans and records waiting; about 1 KB each."""
BATCH_ITEMS = 500
SEND_S, METRICS_S = 5.0, 60.0
GRACE_S = 2.0

_log = logging.getLogger(__name__)

_Item = Callable[[], Any]
"""Makes an envelope, in the sending thread."""


class AzureExport:
    """One process's way to Application Insights. role: cloud role name blitz-<role>.

    credential: whose tokens let it in; None: the instrumentation key does.
    folder: for what could not be sent. metrics: what to send every `metrics_s`; counters and histograms
    as what was added since, so that sums over instances and time are right. Raises Misconfigured.
    """

    def __init__(
        self,
        connection_string: str,
        role: str,
        metrics: Telemetry,
        *,
        credential: TokenCredential | None = None,
        folder: Path | None = None,
        queue_items: int = QUEUE_ITEMS,
        send_s: float = SEND_S,
        metrics_s: float = METRICS_S,
    ) -> None:
        key, endpoint = key_and_endpoint(connection_string)
        self._metrics = metrics
        self._send_s, self._metrics_s = send_s, metrics_s
        folder = folder or Path(tempfile.gettempdir()) / f"blitz-telemetry-{role}"
        self._transport = Transport(endpoint, credential, folder)
        self._envelopes = Envelopes(key, role)
        self._items: queue.Queue[_Item] = queue.Queue(queue_items)
        self._metrics_at = 0.0
        self._batch: list[_Item] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="azure-export", daemon=True)
        self._handler = _Handler(self._add, self._envelopes.of_record)
        self._stop_listening: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Take spans and our log records from now on, and close at the process's end."""
        self._stop_listening = trace.listen(
            lambda span: self._add(lambda: self._envelopes.of_span(span))
        )
        for name in OURS:
            logging.getLogger(name).addHandler(self._handler)
        self._thread.start()
        atexit.register(self.close)

    def close(self, grace_s: float = GRACE_S) -> None:
        """Send what waits, or keep it in files if that takes longer than `grace_s`."""
        if self._closing.is_set():
            return
        atexit.unregister(self.close)
        self._stop_listening()
        for name in OURS:
            logging.getLogger(name).removeHandler(self._handler)
        self._closing.set()
        self._thread.join(grace_s)
        if self._thread.is_alive():
            waiting = self._move_to([], self._items.qsize())
            self._transport.keep([item() for item in (*self._batch, *waiting)])
        self._transport.close()

    def _add_span(self, span: Span) -> None:
        self._add(lambda: self._envelopes.of_span(span))

    def _add(self, item: _Item) -> None:
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self._metrics.telemetry_dropped()

    def _run(self) -> None:
        self._metrics_at = time.monotonic() + self._metrics_s
        while not self._closing.wait(self._send_s):
            self._send_guarded()
        self._metrics_at = 0.0
        self._send_guarded()

    def _send_guarded(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # or one fault would end all telemetry
            failure = Failure.of(error)
            _log.error("telemetry: %s%s", failure.error, failure.innermost, extra={FAILURE: failure})

    def _send_all(self) -> None:
        if time.monotonic() >= self._metrics_at:
            self._metrics_at = time.monotonic() + self._metrics_s
            envelopes = self._envelopes.of_metrics(self._metrics.samples())
            self._batch = [partial(_same, envelope) for envelope in envelopes]
            self._send_batch()
        while self._move_to(self._batch, BATCH_ITEMS):
            self._send_batch()
        self._transport.resend()

    def _send_batch(self) -> None:
        self._transport.send([item() for item in self._batch])
        self._batch = []

    def _move_to(self, batch: list[_Item], most: int) -> list[_Item]:
        """`batch` with up to `most` of the waiting items: at no time are they in neither."""
        with suppress(queue.Empty):
            while len(batch) < most:
                batch.append(self._items.get_nowait())
        return batch


class _Handler(logging.Handler):
    """Our log records, with the span that they were made in."""

    def __init__(
        self, add: Callable[[_Item], None], make: Callable[[logging.LogRecord, Span | None], Any]
    ) -> None:
        super().__init__(logging.INFO)
        self._add = add
        self._make = make

    def emit(self, record: logging.LogRecord) -> None:
        span = trace.current()
        self._add(lambda: self._make(record, span))


def _same(envelope: Any) -> Any:
    return envelope
