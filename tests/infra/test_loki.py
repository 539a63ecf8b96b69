"""Our JSON lines on their way to Loki, as infra/loki/config.alloy has it."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shared.context import request_id, trace
from shared.observability.logs import JsonLines, log_failure
from shared.settings import CHOICES
from tests.infra.alloy import Block, Entry, Reference, process, read
from tests.infra.bicep import INFRA
from tests.patience import PATIENCE_S

TEXT = (INFRA / "loki" / "config.alloy").read_text("utf-8")
COMPONENTS = {f"{each.name}.{each.label}": each for each in read(TEXT)}
STAGES = COMPONENTS["loki.process.blitz"].blocks
# The exports of each that others may name; https://grafana.com/docs/alloy/latest/reference/components
EXPORTS = {"local.file_match": "targets", "loki.process": "receiver", "loki.write": "receiver"}
LEVELS = ("debug", "info", "warning", "error", "critical")


def _lines(role: str, requests: int) -> list[str]:
    """What a process of `role` writes: of each request a record of two levels, and a failure."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(role))
    log = logging.getLogger("functions.test_loki")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        for number in range(requests):
            with request_id.working_on(f"request-{number}"), trace.serving():
                log.info("request %d", number, extra={"texts": number})
                log.warning("slow")
                log_failure(log, "no answer", ValueError("what a client sent"))
    finally:
        log.removeHandler(handler)
    return stream.getvalue().splitlines()


def _on_their_way(lines: list[str]) -> list[Entry]:
    """As a file's source hands them on: with its target's labels, and the file's name."""
    target = COMPONENTS["local.file_match.blitz"].attributes["path_targets"][0]
    labels = {name: value for name, value in target.items() if not name.startswith("__")}
    return [process(STAGES, Entry(line, {**labels, "filename": "/logs/a.jsonl"})) for line in lines]


@contextmanager
def _loki() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Records pushes: its address, and the streams that it was given. What Loki refuses it refuses."""
    streams: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = 204 if self.path == "/loki/api/v1/push" else 404
            for stream in json.loads(body)["streams"]:
                names = all(re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) for name in stream["stream"])
                times = all(re.fullmatch(r"\d{19}", value[0]) for value in stream["values"])
                status = status if names and times and stream["stream"] else 400
                streams.append(stream)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/loki/api/v1/push", streams
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def _push(url: str, entries: list[Entry]) -> int:
    """Loki's push API in JSON: entries with the same labels are a stream."""
    streams: dict[str, dict[str, Any]] = {}
    for entry in entries:
        stream = streams.setdefault(json.dumps(entry.labels), {"stream": entry.labels, "values": []})
        stream["values"].append([str(entry.at_ns), entry.line, entry.metadata])
    body = json.dumps({"streams": list(streams.values())}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return int(response.status)


def test_labels_are_few_however_many_requests_there_are() -> None:
    """A stream for each role and level; ids, loggers and file names make none."""
    lines = [line for role in CHOICES["role"] for line in _lines(role, requests=20)]
    with _loki() as (url, streams):
        assert _push(url, _on_their_way(lines)) == 204
    labels = [stream["stream"] for stream in streams]
    assert all(set(each) == {"job", "level", "role"} for each in labels)
    assert {each["job"] for each in labels} == {"blitz"}
    assert {each["role"] for each in labels} == set(CHOICES["role"])
    assert {each["level"] for each in labels} == {"info", "warning", "error"}
    assert len(labels) == 3 * len(CHOICES["role"]) <= len(LEVELS) * len(CHOICES["role"])
    assert sum(len(stream["values"]) for stream in streams) == len(lines)


def test_a_line_arrives_whole_with_its_own_time_and_ids() -> None:
    """So that it is found by request, by trace, and beside what others did at the same moment."""
    lines = _lines("router", requests=2)
    with _loki() as (url, streams):
        _push(url, _on_their_way(lines))
    values = [value for stream in streams for value in stream["values"]]
    assert sorted(line for _, line, _ in values) == sorted(lines)
    for at, line, metadata in values:
        said = json.loads(line)
        assert metadata == {"request_id": said["request_id"], "trace_id": said["trace_id"]}
        # The line's milliseconds, by another way than the stage's.
        whole, rest = said["ts"].split(".")
        assert at.endswith(f"{rest[:3]}000000")
        assert whole.endswith(f":{int(at[:10]) % 60:02}")
    assert not any("what a client sent" in line for _, line, _ in values)


def test_what_is_no_json_goes_on_as_it_is() -> None:
    """A native library's last words are worth having, too."""
    (entry,) = _on_their_way(["free(): invalid pointer"])
    assert (entry.line, entry.labels) == ("free(): invalid pointer", {"job": "blitz"})


def test_components_lead_to_each_other() -> None:
    """From the files to Loki, by names that there are."""
    named = []

    def look(value: Any) -> None:
        if isinstance(value, Reference):
            named.append(value)
        for each in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        ):
            look(each)

    def visit(block: Block) -> None:
        look(block.attributes)
        for inner in block.blocks:
            visit(inner)

    for component in COMPONENTS.values():
        visit(component)
    calls = {(each.name, each.argument) for each in named if each.argument is not None}
    assert calls == {("sys.env", "LOG_FILES"), ("sys.env", "LOKI_URL")}
    references = {each.name for each in named if each.argument is None}
    exported = {
        f"{name}.{EXPORTS[each.name]}" for name, each in COMPONENTS.items() if each.name in EXPORTS
    }
    assert references == exported
    (endpoint,) = COMPONENTS["loki.write.loki"].blocks
    assert endpoint.attributes == {"url": Reference("sys.env", "LOKI_URL")}


@pytest.mark.parametrize(
    "broken",
    [
        TEXT.rstrip()[:-1],
        TEXT.replace("[", "", 1),
        TEXT.replace('level = ""', "level", 1),
        TEXT.replace("forward_to =", "forward_to", 1),
        TEXT.replace("sys.env(", "sys.env", 1),
        TEXT + "x = 1\nx = 2\n",
    ],
    ids=["no end", "no bracket", "no value", "no equals sign", "no call", "twice"],
)
def test_the_reader_takes_no_file_that_is_broken(broken: str) -> None:
    """Or what it takes would say nothing."""
    assert broken != TEXT
    with pytest.raises(ValueError, match=r"stands|twice|unpack|double quotes|Expecting"):
        read(broken)
