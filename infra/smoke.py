"""Smoke test of a deployed service: `smoke.py URL`, with a caller's key on stdin.

Waits for a cold start and until a new key is valid. Prints what it checked, never the key. Exit code 1
if a check fails. Uses only HTTP and the standard library.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import urllib.error
import urllib.request
from typing import Any

TEXTS = ("How do I reset my password?", "I forgot my login, help", "The recipe needs two eggs")
"""The first two mean nearly the same."""
_PAUSE_S, _REQUEST_S = 2.0, 230.0
_NOT_YET = {401, 404, 408, 424, 429, 500, 502, 503, 504}
"""Statuses to wait through: the key is not valid yet, an app starts, or a model is not loaded."""


class Wrong(Exception):
    """A check failed; the message says which."""


class Service:
    """A deployed service. ends: time.monotonic() at which wait_for gives up."""

    def __init__(self, url: str, key: str, ends: float) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._ends = ends

    def ask(self, path: str, body: object = None, *, with_key: bool = True) -> tuple[int, Any]:
        """Status and body (JSON if it is); 0 and the exception's name if there was no answer."""
        headers = {"content-type": "application/json"}
        if with_key:
            # The router reads one of them, API Management the other.
            headers |= {"authorization": f"Bearer {self._key}", "api-key": self._key}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_S) as answer:  # noqa: S310
                return answer.status, _json_of(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json_of(error.read())
        except (OSError, ValueError) as error:
            return 0, type(error).__name__

    def wait_for(self, path: str, body: object = None) -> Any:
        """The JSON of the first 200. Raises Wrong for any other final status, or when the time is up."""
        while True:
            status, found = self.ask(path, body)
            if status == 200:
                return found
            if status not in _NOT_YET | {0} or time.monotonic() > self._ends:
                raise Wrong(f"{path}: {status or 'no answer'} {found}")
            time.sleep(_PAUSE_S)


def check(service: Service, model: str) -> list[str]:
    """Run all checks: one line per passed check. Raises Wrong at the first that fails."""
    seen = []
    names = [each["id"] for each in service.wait_for("/v1/models")["data"]]
    if not names:
        raise Wrong("/v1/models: the store has no model")
    seen.append(f"serves {', '.join(names)}")
    asked = {"model": model or names[0], "input": [*TEXTS, TEXTS[0]]}
    rows = service.wait_for("/v1/embeddings", asked)["data"]
    vectors = [row["embedding"] for row in sorted(rows, key=lambda row: row["index"])]
    if len(vectors) != len(TEXTS) + 1 or not all(
        abs(math.hypot(*vector) - 1) < 0.001 for vector in vectors
    ):
        raise Wrong("/v1/embeddings: not a vector of length 1 for each text")
    first, near, far, again = vectors
    if first != again and _dot(first, again) < 0.999999:
        raise Wrong("/v1/embeddings: the same text has two vectors")
    if _dot(first, near) <= _dot(first, far):
        raise Wrong("/v1/embeddings: what means the same is not nearer than what does not")
    seen.append(f"embeds in {len(first)} dimensions with {asked['model']}")
    for what, status, found in (
        ("no key", 401, service.ask("/v1/models", with_key=False)),
        ("no input", 400, service.ask("/v1/embeddings", {"model": asked["model"]})),
    ):
        if found[0] != status or not found[1]["error"]["message"]:
            raise Wrong(f"{what}: {status} with a message was expected, not {found}")
        seen.append(f"answers {status} where there is {what}")
    return seen


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _json_of(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data[:200].decode(errors="replace")


def main() -> int:
    """Print the passed checks. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Ask a deployed service; the key comes on stdin.")
    parser.add_argument("url")
    parser.add_argument("--model", default="", help="the first one that is listed, if left out")
    parser.add_argument("--wait-s", type=float, default=900.0, help="for cold starts and a new key")
    given = parser.parse_args()
    service = Service(given.url, sys.stdin.readline().strip(), time.monotonic() + given.wait_s)
    try:
        for line in check(service, given.model):
            print(line)
    except Wrong as wrong:
        print(f"wrong: {wrong}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
