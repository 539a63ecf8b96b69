"""Log lines: one JSON object each, for Loki and its like, or text for people. Knows no exporter.

What an exception says is never written: it may quote what a client sent. Its class and where it happened
are. A line has ts, level, logger, msg and role; in a request request_id, trace_id and span_id; of an
exception error and frames; and fields, an object, of whatever `extra=` gave. Level and role are few
enough for labels.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

import msgspec

from shared.context import request_id, trace
from shared.errors import BlitzError

OURS = ("functions", "shared")
"""Our loggers. Others' may quote anything, so that no exporter is given them."""
START = "functions.start"
"""The logger of what people read at the start: lines as they are on stdout, unless logs are JSON."""
_QUIET = ("azure.identity", "stamina", "uvicorn.error")
"""The first logs each way to sign in that it tried, in many lines; the second that it tries again, but
not what. Our own error says more in the end. The third warns of each request that is not HTTP, so that
whoever can connect could fill the disk."""
FAILURE = "failure"
"""The `extra=` under which a record carries a Failure in place of exc_info."""

_PLAIN = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "color_message"}


class Failure(msgspec.Struct, frozen=True):
    """An exception without its message. frames: (file, line, function), the outermost first."""

    error: str
    frames: tuple[tuple[str, int, str], ...]

    @classmethod
    def of(cls, error: BaseException, where: TracebackType | None = None) -> Failure:
        """What of an error may be logged: its class and frames, and never its message."""
        found = traceback.extract_tb(where or error.__traceback__)
        frames = tuple((frame.filename, frame.lineno or 0, frame.name) for frame in found)
        return cls(type(error).__qualname__, frames)

    @property
    def innermost(self) -> str:
        """Where it was raised, to end a sentence with; empty if nobody knows."""
        if not self.frames:
            return ""
        file, line, name = self.frames[-1]
        return f" in {name}, {file}:{line}"

    def lines(self) -> str:
        """One line for each frame, as in a traceback, without source text."""
        return "".join(f'\n  File "{file}", line {line}, in {name}' for file, line, name in self.frames)


def log_failure(
    log: logging.Logger, what: str, error: BaseException, level: int = logging.ERROR, then: str = ""
) -> None:
    """Log that `what` failed, and why, without a text of a caller.

    Messages of our own errors are safe to show. Of any other error the class and the place are logged:
    its message may quote what a client sent. then: what happens next.
    """
    end = f"; {then}" if then else ""
    if isinstance(error, BlitzError):
        log.log(level, "%s: %s%s", what, error.message, end)
        return
    failure = Failure.of(error)
    why = f"{failure.error}{failure.innermost}"
    log.log(level, "%s: %s%s", what, why, end, extra={FAILURE: failure})


def failure_of(record: logging.LogRecord) -> Failure | None:
    """What went wrong, if the record tells of an exception."""
    carried = getattr(record, FAILURE, None)
    if isinstance(carried, Failure):
        return carried
    if record.exc_info and record.exc_info[1]:
        return Failure.of(record.exc_info[1], record.exc_info[2])
    return None


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What our code gave as `extra=`: numbers, booleans and short names. Libraries give texts there."""
    if record.name.partition(".")[0] not in OURS:
        return {}
    extra = {name: value for name, value in record.__dict__.items() if name not in _PLAIN}
    return {name: value for name, value in extra.items() if isinstance(value, str | int | float)}


def use(log_format: str, role: str, stream: TextIO | None = None) -> None:
    """Write this process's logs to `stream`, or stderr: ours from INFO on, others' from WARNING on.

    log_format: text or json. role: in each JSON line. Not for Functions: its host has its own handlers.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(role) if log_format == "json" else Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    start = logging.getLogger(START)
    start.propagate = log_format == "json"
    start.handlers[:] = [] if start.propagate else [logging.StreamHandler(sys.stdout)]
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)


class JsonLines(logging.Formatter):
    """One JSON object a record."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            "role": self._role,
        }
        if named := request_id.current():
            line["request_id"] = named
        if span := trace.current():
            line |= {"trace_id": span.trace_id, "span_id": span.span_id}
        if failure := failure_of(record):
            line |= {
                "error": failure.error,
                "frames": [f"{f}:{n} {name}" for f, n, name in failure.frames],
            }
        if fields := fields_of(record):
            line["fields"] = fields
        return json.dumps(line)


class Text(logging.Formatter):
    """For a terminal."""

    def __init__(self) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        named = request_id.current()
        request = f" (request {named})" if named else ""
        line = f"{record.levelname.lower()}: {record.getMessage()}{request}"
        failure = failure_of(record)
        return line if failure is None else f"{line}\n{failure.error}{failure.lines()}"
