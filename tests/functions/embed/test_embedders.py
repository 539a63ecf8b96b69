"""What a service may answer a command line instead of vectors, and what it may be given as a URL."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from functions.embed import embedders
from functions.embed.embedders import Service
from shared.errors import BackendFailed, BlitzError, InvalidInput, Unavailable
from shared.wire import codec
from tests.patience import PATIENCE_S


@contextmanager
def _answering(data: bytes, *, hangs: bool = False) -> Iterator[str]:
    """A URL where one request is answered with these bytes. hangs: and the connection stays open."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as request:
                length = 0
                while (line := request.readline()) != b"\r\n":
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                request.read(length)
                connection.sendall(data)
                if hangs:
                    done.wait(PATIENCE_S)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            done.set()
            thread.join(PATIENCE_S)


def _http(body: bytes, status: str = "200 OK", head: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body


def _packed(value: object) -> bytes:
    return _http(codec.pack(value))


ROWS = np.eye(2, 4, dtype=np.float32)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        pytest.param(b"", Unavailable, "does not answer", id="nothing"),
        pytest.param(b"220 mail.example\r\n\r\n", Unavailable, "does not answer", id="no HTTP"),
        pytest.param(_packed({"data": ROWS})[:-2], BackendFailed, "with vectors", id="cut off"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc",
            Unavailable,
            "does not answer",
            id="a chunk cut off",
        ),
        pytest.param(_http(b'{"data": []}'), BackendFailed, "with vectors", id="JSON"),
        pytest.param(_http(b""), BackendFailed, "with vectors", id="an empty body"),
        pytest.param(_packed([1]), BackendFailed, "with vectors", id="a list"),
        pytest.param(_packed({"data": "x"}), BackendFailed, "with vectors", id="no array"),
        pytest.param(_packed({"data": ROWS[:1]}), BackendFailed, "with vectors", id="one of two"),
        pytest.param(_packed({"data": ROWS[:, 0]}), BackendFailed, "with vectors", id="numbers"),
        pytest.param(
            _http(b"", "302 Found", "location: http://127.0.0.1:1/\r\n"),
            InvalidInput,
            "answered 302",
            id="a redirect",
        ),
        pytest.param(_http(b"<html>", "404 Not Found"), InvalidInput, "answered 404", id="no route"),
        pytest.param(_http(b"<html>", "502 Bad Gateway"), Unavailable, "answered 502", id="a gateway"),
    ],
)
def test_an_answer_without_vectors_is_the_services_fault(
    answer: bytes, error: type[BlitzError], message: str
) -> None:
    """But for what says that the request, or the URL, is wrong."""
    with _answering(answer) as url, pytest.raises(error, match=message) as told:
        Service(url, "", "", None, None).embed(["a", "b"])
    assert type(told.value) is error


def test_no_more_of_an_answer_is_read_than_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest never comes: waiting for it would end by the time limit, with other words."""
    monkeypatch.setattr(embedders, "_MAX_ANSWER_BYTES", 100)
    monkeypatch.setattr(embedders, "TIMEOUT_S", 2.0)
    answer = _http(b"x" * 1000)[:-800]
    with _answering(answer, hangs=True) as url, pytest.raises(BackendFailed):
        Service(url, "", "", None, None).embed(["a"])


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:7071", "ftp://x", "http://", "http://[", "http://x:y", "http://x:99999"),
        *("http://x:0", "http://a b", "http://a\x00b", "http://a.\N{SNOWMAN}" + "a" * 70),
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as told:
        Service(url, "", "", None, None).embed(["a"])
    assert told.value.field == "--url"


@pytest.mark.parametrize("key", ["two\nlines", "two\rlines", "\N{SNOWMAN}"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput) as told:
        Service("http://127.0.0.1:1", key, "", None, None)
    assert told.value.field == "EMBED_KEY"
    assert key not in told.value.message


@pytest.mark.parametrize("add", [str, "{}/".format, "{}/v1".format, "{}/v1/".format])
def test_a_url_may_be_written_as_openais(add: Callable[[str], str]) -> None:
    with _answering(_packed({"data": ROWS})) as url, Service(add(url), "", "", None, None) as service:
        assert np.array_equal(service.embed(["a", "b"]), ROWS)
