"""What is written as a log line, as one JSON object each or as text."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shared.context import trace
from shared.errors import InvalidInput, Unavailable
from shared.observability import logs
from shared.observability.logs import JsonLines, Text, log_failure
from tests.patience import PATIENCE_S
from tests.server import ROOT, free_port, wait_until_answered
from tests.tiny import Tiny, publish_all

SECRET = "what a client sent"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """For `logs.use`; afterwards logging is as it was."""
    loggers = [logging.getLogger(name) for name in (None, *logs._QUIET, logs.START, *logs.OURS)]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield io.StringIO()
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
    logging.captureWarnings(False)


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object(stream: io.StringIO) -> None:
    """With when, how bad, who, what and which role; newlines stay inside it."""
    logs.use("json", "cpu", stream)
    logging.getLogger("functions.x").warning("two\nlines of %s", "text")
    (line,) = _lines(stream)
    assert datetime.fromisoformat(line.pop("ts")).tzinfo is not None
    assert line == {
        "level": "warning",
        "logger": "functions.x",
        "msg": "two\nlines of text",
        "role": "cpu",
    }


def test_a_line_of_a_request_names_its_trace(stream: io.StringIO) -> None:
    """The innermost span's ids, as fields; outside of requests there are none."""
    logs.use("json", "router", stream)
    log = logging.getLogger("shared.x")
    with trace.serving() as span:
        log.info("in", extra={"texts": 3, "object": object()})
    log.info("out")
    logging.getLogger("library").warning("a retry", extra={"caused_by": SECRET})
    inside, outside, of_library = _lines(stream)
    assert "fields" not in of_library
    assert (inside["trace_id"], inside["span_id"]) == (span.trace_id, span.span_id)
    assert inside["fields"] == {"texts": 3}
    assert not {"trace_id", "span_id", "fields"} & set(outside)


def test_a_failure_is_told_without_a_foreign_message(stream: io.StringIO) -> None:
    """Our messages are made for callers; any other may quote one: class and place stand in for it."""
    logs.use("json", "cpu", stream)
    log = logging.getLogger("shared.x")
    for error in (Unavailable("try later"), ValueError(SECRET)):
        try:
            raise error
        except Exception as raised:
            logs.log_failure(log, "it did not work", raised, logging.WARNING)
    ours, foreign = _lines(stream)
    assert (ours["level"], ours["msg"]) == ("warning", "it did not work: try later")
    assert "frames" not in ours
    assert foreign["msg"].startswith("it did not work: ValueError in test_a_failure_is_told_without")
    assert (foreign["level"], foreign["error"], len(foreign["frames"])) == ("warning", "ValueError", 1)
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_exceptions_message_is_never_written(stream: io.StringIO, log_format: str) -> None:
    """Its class and its frames are, also when a library logs it."""
    logs.use(log_format, "cpu", stream)
    for name in ("asyncio", "functions.x"):
        try:
            raise KeyError(SECRET) from ValueError(SECRET)
        except KeyError:
            logging.getLogger(name).exception("it failed")
    written = stream.getvalue()
    assert written.count("KeyError") == 2
    assert written.count("test_an_exceptions_message_is_never_written") == 2
    assert SECRET not in written


def test_libraries_are_heard_from_warnings_on(stream: io.StringIO) -> None:
    """Azure's tell every header of every call at INFO; Python's own warnings are log lines too."""
    logs.use("json", "cpu", stream)
    logging.getLogger("azure.core").info("headers")
    logging.getLogger("shared.x").debug("details")
    logging.getLogger("azure.core").warning("retrying")
    logging.getLogger("azure.identity.x").warning("what was tried, in many lines")
    logging.getLogger("stamina").warning("stamina.retry_scheduled")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("an old call", stacklevel=1)
    assert [line["logger"] for line in _lines(stream)] == ["azure.core", "py.warnings"]
    assert logging.getLogger().level == logging.WARNING


def test_using_it_again_replaces_it(stream: io.StringIO) -> None:
    """One handler, so that no line is written twice."""
    logs.use("text", "cpu", stream)
    logs.use("text", "cpu", stream)
    logging.getLogger("shared.x").info("once")
    assert stream.getvalue() == "info: once\n"


def test_start_lines_are_for_people_unless_logs_are_json(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they are, on stdout; or an object each, among the others."""
    logs.use("text", "cpu", stream)
    logging.getLogger(logs.START).info("docs:   %s", "here")
    assert capsys.readouterr().out == "docs:   here\n"
    assert stream.getvalue() == ""
    logs.use("json", "cpu", stream)
    logging.getLogger(logs.START).info("docs:   %s", "here")
    assert [(line["level"], line["msg"]) for line in _lines(stream)] == [("info", "docs:   here")]
    assert capsys.readouterr().out == ""


def test_the_local_service_logs_json_where_that_is_set(tmp_path: Path) -> None:
    """From its first line to its last, whatever it says."""
    store = f"file://{tmp_path / 'models'}"
    publish_all([Tiny("a")], store)
    port = free_port()
    arguments = ["--host", "0.0.0.0", "--port", str(port), "--model-store", store]
    process = subprocess.Popen(
        [sys.executable, "-m", "functions.local", *arguments],
        cwd=ROOT,
        env={"BLITZ_LOG_FORMAT": "json"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until_answered(f"http://127.0.0.1:{port}/health", process, PATIENCE_S, anything=False)
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_S)
    lines = [json.loads(line) for line in output.splitlines()]
    assert {line["role"] for line in lines} == {"router"}
    said = [line["msg"] for line in lines if line["logger"] == logs.START]
    assert [line.partition(":")[0] for line in said] == [
        "cpu",
        "router",
        "models",
        "keys",
        "docs",
        "page",
        "try",
        "bulk",
    ]
    (warning,) = [line["msg"] for line in lines if line["level"] == "warning"]
    assert "no key is needed" in warning


def test_a_setting_that_is_wrong_is_told_in_the_log_s_format() -> None:
    """The format is known although not all settings are."""
    ran = subprocess.run(
        [sys.executable, "-m", "functions.local"],
        cwd=ROOT,
        env={"BLITZ_LOG_FORMAT": "json", "BLITZ_THREDS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    line = json.loads(ran.stderr)
    assert (line["level"], "BLITZ_THREADS" in line["msg"]) == ("error", True)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InvalidInput("limit must be positive"), "a step: limit must be positive; again"),
        (ValueError("SECRET"), "a step: ValueError in fail, "),
    ],
)
def test_a_failure_is_logged_without_a_text_of_a_caller(
    error: Exception, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Our own messages are safe to show; of others the class and the place are."""

    def fail() -> None:
        raise error

    try:
        fail()
    except Exception as caught:
        log_failure(logging.getLogger("shared.x"), "a step", caught, logging.WARNING, "again")
    [record] = caplog.records
    assert record.getMessage().startswith(line)
    assert record.getMessage().endswith("; again")
    assert "SECRET" not in Text().format(record) + JsonLines("cpu").format(record)
