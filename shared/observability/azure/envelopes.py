"""Spans, log records and metrics as Application Insights' envelopes.

Of an exception only the class and the frames are written, never its message. Does not know when or how
envelopes are sent.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

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

from shared.context.trace import Span
from shared.observability.logs import failure_of, fields_of
from shared.observability.metrics import Sample

_NAMES = "Microsoft.ApplicationInsights."
_SEVERITIES = ((logging.CRITICAL, 4), (logging.ERROR, 3), (logging.WARNING, 2), (logging.INFO, 1))
_MESSAGE_CHARACTERS = 32_000


class Envelopes:
    """Those of one process. role: its cloud role name is blitz-<role>."""

    def __init__(self, instrumentation_key: str, role: str) -> None:
        self._key = instrumentation_key
        self._tags = {
            "ai.cloud.role": f"blitz-{role}",
            "ai.cloud.roleInstance": platform.node(),
            "ai.internal.sdkVersion": f"py{platform.python_version()}:blitz",
        }
        self._sent: dict[object, tuple[float, int]] = {}

    def of_span(self, span: Span) -> Any:
        """A client's span is a dependency, every other one a request."""
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

    def of_record(self, record: logging.LogRecord, span: Span | None) -> Any:
        """An exception, if the record tells of one, or else a message. span: the one it was made in."""
        severity = next((number for level, number in _SEVERITIES if record.levelno >= level), 0)
        properties = {"logger": record.name}
        properties |= {name: str(value) for name, value in fields_of(record).items()}
        common = {"severityLevel": severity, "properties": properties}
        failure = failure_of(record)
        kind, data = "Message", Message(message=record.getMessage()[:_MESSAGE_CHARACTERS], **common)
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

    def of_metrics(self, samples: Iterable[Sample]) -> Iterator[Any]:
        """Counters and histograms as what was added since the last call, gauges as they are.

        So sums over instances and time are right.
        """
        now = time.time()
        for each in samples:
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


def _duration(seconds: float) -> str:
    """As .NET's TimeSpan."""
    whole = timedelta(seconds=max(0.0, seconds))
    minutes, second = divmod(whole.seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{whole.days}.{hour:02}:{minute:02}:{second:02}.{whole.microseconds:06}"
