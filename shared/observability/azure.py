"""Spans, log records and metrics to Application Insights: the only user of opencensus-ext-azure.

Its payloads, transport and files are used, not its three exporters: each has threads of its own, logs
each item that its full queue drops, and one of them sends the messages of exceptions. Here one thread
sends; requests only append to a bounded queue. What the endpoint does not take is kept in files, up to a
limit, and sent when it answers again. No text and no vector is sent: nothing that comes here holds one,
and of exceptions go the class and the frames. Does not know what a request is about.
"""

from __future__ import annotations

import atexit
import logging
import platform
import queue
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from azure.core.credentials import AccessToken, TokenCredential
from azure.core.exceptions import ClientAuthenticationError
from opencensus.ext.azure.common import parse_connection_string
from opencensus.ext.azure.common.protocol import (
    Data,
    DataPoint,
    Envelope,
    ExceptionData,
    Message,
    MetricData,
    RemoteDependency,
    Request,
)
from opencensus.ext.azure.common.storage import LocalFileStorage
from opencensus.ext.azure.common.transport import TransportMixin, TransportStatusCode

from shared.context import trace
from shared.context.trace import Span
from shared.errors import Misconfigured
from shared.observability.logs import FAILURE, OURS, Failure, failure_of, fields_of
from shared.observability.metrics import Telemetry

QUEUE_ITEMS = 20_000
"""Spans and records waiting; about 1 KB each."""
BATCH_ITEMS = 500
SEND_S, METRICS_S = 5.0, 60.0
TIMEOUT_S = 10.0
RETRY_S = 60.0
"""After a failure everything goes to files for so long, and nothing waits for the endpoint."""
FILES_BYTES = 20_000_000
"""Flex Consumption has 0.8 GB of temporary storage, most of it for models."""
GRACE_S = 2.0

_log = logging.getLogger(__name__)

_DEFAULT_ENDPOINT = "https://dc.services.visualstudio.com"
_NAMES = "Microsoft.ApplicationInsights."
_SEVERITIES = ((logging.CRITICAL, 4), (logging.ERROR, 3), (logging.WARNING, 2), (logging.INFO, 1))

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
        self._key, endpoint = _parse(connection_string)
        self._metrics = metrics
        self._send_s, self._metrics_s = send_s, metrics_s
        folder = folder or Path(tempfile.gettempdir()) / f"blitz-telemetry-{role}"
        self._wire = _Wire(endpoint, credential, folder)
        self._tags = {
            "ai.cloud.role": f"blitz-{role}",
            "ai.cloud.roleInstance": platform.node(),
            "ai.internal.sdkVersion": f"py{platform.python_version()}:blitz",
        }
        self._items: queue.Queue[_Item] = queue.Queue(queue_items)
        self._sent: dict[object, tuple[float, int]] = {}
        self._metrics_at = 0.0
        self._batch: list[_Item] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="azure-export", daemon=True)
        self._handler = _Handler(self._add, self._of_record)
        self._stop_listening: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Take spans and our log records from now on, and close at the process's end."""
        self._stop_listening = trace.listen(lambda span: self._add(lambda: self._of_span(span)))
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
            self._wire.keep([item() for item in (*self._batch, *waiting)])
        self._wire.close()

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
            self._batch = [partial(_same, envelope) for envelope in self._of_metrics()]
            self._send_batch()
        while self._move_to(self._batch, BATCH_ITEMS):
            self._send_batch()
        self._wire.resend()

    def _send_batch(self) -> None:
        self._wire.send([item() for item in self._batch])
        self._batch = []

    def _move_to(self, batch: list[_Item], most: int) -> list[_Item]:
        """`batch` with up to `most` of the waiting items: at no time are they in neither."""
        with suppress(queue.Empty):
            while len(batch) < most:
                batch.append(self._items.get_nowait())
        return batch

    def _of_span(self, span: Span) -> Any:
        # A step has no status.
        success = 200 <= span.status < 400 or (span.kind == "consumer" and not span.error)
        common = {
            "id": span.span_id,
            "name": span.name,
            "duration": _duration(span.duration_s),
            "success": success,
            "properties": span.labels,
            "measurements": span.measures,
        }
        result = str(span.status or span.error or ("ok" if success else "none"))
        if span.kind == "client":
            target = {"target": span.target, "type": "HTTP", "data": span.name}
            kind, data = "RemoteDependency", RemoteDependency(resultCode=result, **target, **common)
        else:
            kind, data = "Request", Request(responseCode=result, **common)
        return self._envelope(kind, data, span.began_s, span.trace_id, span.parent_id, span.name)

    def _of_record(self, record: logging.LogRecord, span: Span | None) -> Any:
        severity = next((number for level, number in _SEVERITIES if record.levelno >= level), 0)
        properties = {"logger": record.name}
        properties |= {name: str(value) for name, value in fields_of(record).items()}
        common = {"severityLevel": severity, "properties": properties}
        failure = failure_of(record)
        kind, data = "Message", Message(message=record.getMessage()[:32_000], **common)
        if failure:
            # Azure wants the innermost frame first.
            stack = [
                {"level": level, "method": name, "fileName": file, "line": line}
                for level, (file, line, name) in enumerate(reversed(failure.frames))
            ]
            told = {"id": 1, "outerId": 0, "typeName": failure.error, "message": record.getMessage()}
            told |= {"hasFullStack": True, "parsedStack": stack}
            kind, data = "Exception", ExceptionData(exceptions=[told], **common)
        trace_id, span_id = (span.trace_id, span.span_id) if span else ("", "")
        return self._envelope(kind, data, record.created, trace_id, span_id)

    def _of_metrics(self) -> Iterator[Any]:
        now = time.time()
        for each in self._metrics.samples():
            value, count = each.value, each.count
            if each.kind != "gauge":
                series = each.name, each.labels
                before, count_before = self._sent.get(series, (0.0, 0))
                self._sent[series] = value, count
                value -= before
                if each.kind == "histogram":
                    count -= count_before
                if not (count if each.kind == "histogram" else value):
                    continue
            point = DataPoint(name=each.name, value=value, count=count)
            if each.kind == "gauge":
                point.min = point.max = value
            data = MetricData(metrics=[point], properties=dict(each.labels))
            yield self._envelope("Metric", data, now)

    def _envelope(
        self,
        kind: str,
        data: Any,
        time_s: float,
        trace_id: str = "",
        parent_id: str = "",
        name: str = "",
    ) -> Any:
        tags = dict(self._tags)
        operation = {"id": trace_id, "parentId": parent_id, "name": name}
        tags |= {f"ai.operation.{key}": value for key, value in operation.items() if value}
        return Envelope(
            name=_NAMES + kind,
            time=datetime.fromtimestamp(time_s, UTC).isoformat().replace("+00:00", "Z"),
            iKey=self._key,
            tags=tags,
            data=Data(baseData=data, baseType=f"{kind}Data"),
        )


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


class _Wire(TransportMixin):  # type: ignore[misc]
    """opencensus' transport, and its files for what was not taken. For one thread, but for `keep`."""

    def __init__(self, endpoint: str, credential: TokenCredential | None, folder: Path) -> None:
        self.options = SimpleNamespace(
            endpoint=endpoint,
            credential=_Retried(credential) if credential else None,
            proxies="{}",
            timeout=TIMEOUT_S,
        )
        self.storage = LocalFileStorage(str(folder), max_size=FILES_BYTES, source="azure-export")
        self._consecutive_redirects = 0
        self._retry_at = 0.0

    def send(self, envelopes: list[Any]) -> None:
        """To the endpoint, or to files while that does not answer."""
        if not envelopes:
            return
        if time.monotonic() < self._retry_at:
            self.keep(envelopes)
        elif self._transmit(envelopes) is TransportStatusCode.RETRY:
            self._retry_at = time.monotonic() + RETRY_S
            self.keep(envelopes)

    def keep(self, envelopes: Sequence[Any]) -> None:
        """In a file, unless there are too many; opencensus logs that."""
        if envelopes:
            self.storage.put(envelopes)

    def resend(self) -> None:
        """Send the files that wait, until one is not taken. Other processes may do so at once."""
        for blob in self.storage.gets():
            if time.monotonic() < self._retry_at:
                return
            if blob.lease(TIMEOUT_S + 5) and (envelopes := blob.get()):
                if self._transmit(envelopes) is TransportStatusCode.RETRY:
                    self._retry_at = time.monotonic() + RETRY_S
                else:
                    blob.delete()

    def close(self) -> None:
        self.storage.close()

    def _check_stats_collection(self) -> bool:
        """True, or opencensus (1.1.15) takes every failed connection for a payload to be dropped.

        It then also counts in memory; only its exporters would start a thread that sends those counts.
        """
        return True


class _Retried:
    """A credential whose failures are reasons to try again: for most, opencensus drops the payload."""

    def __init__(self, credential: TokenCredential) -> None:
        self._credential = credential

    def get_token(self, *scopes: str) -> AccessToken:
        try:
            return self._credential.get_token(*scopes)
        except Exception as error:
            raise ClientAuthenticationError(f"no token: {type(error).__name__}") from error


def _same(envelope: Any) -> Any:
    return envelope


def _parse(connection_string: str) -> tuple[str, str]:
    """Instrumentation key and endpoint. The message holds no part of what was given."""
    try:
        parts = parse_connection_string(connection_string.strip(" ;"))
        key = str(uuid.UUID(parts.get("instrumentationkey")))
    except (ValueError, AttributeError, TypeError):
        raise Misconfigured(
            "APPLICATIONINSIGHTS_CONNECTION_STRING must be like "
            "InstrumentationKey=GUID;IngestionEndpoint=https://..."
        ) from None
    return key, (parts.get("ingestionendpoint") or _DEFAULT_ENDPOINT).rstrip("/")


def _duration(seconds: float) -> str:
    """As .NET's TimeSpan."""
    whole = timedelta(seconds=max(0.0, seconds))
    minutes, second = divmod(whole.seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{whole.days}.{hour:02}:{minute:02}:{second:02}.{whole.microseconds:06}"
