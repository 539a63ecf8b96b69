"""What embeds the texts of the command line: a service, or a model in this process.

Does not know where texts are from.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import numpy as np

from shared.backends.base import Backend
from shared.cards import ModelCard
from shared.contracts import EmbedRequest, FloatMatrix
from shared.errors import (
    BackendFailed,
    BlitzError,
    InvalidInput,
    Unauthorized,
    Unavailable,
    UnknownModel,
)
from shared.models.catalogue import Catalogue
from shared.models.store import open_store
from shared.settings import Settings
from shared.wire import codec

TIMEOUT_S = 240.0
_MAX_ANSWER_BYTES = 1 << 30


class TextEmbedder(Protocol):
    """Turns texts into vectors while it is entered."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """(N, D) float32. Raises BlitzError."""
        ...


class Service:
    """A service at a URL, in OpenAI's dialect, with arrays in msgpack."""

    def __init__(
        self, url: str, key: str, model: str, dimensions: int | None, prompt_name: str | None
    ) -> None:
        """Raises InvalidInput."""
        _check_url(url)
        if any(each in "\r\n" or each > "\xff" for each in key):  # no header can carry it
            raise InvalidInput("a key is one line, in Latin letters", field="EMBED_KEY")
        self._url = f"{url.rstrip('/').removesuffix('/v1')}/v1/embeddings"
        self._headers = {"content-type": "application/json", "accept": codec.CONTENT_TYPE}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        named = {"model": model, "dimensions": dimensions}
        self._body = {name: value for name, value in named.items() if value}
        if prompt_name is not None:
            self._body["prompt_name"] = prompt_name
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """One request. Raises Unavailable for no answer, and BackendFailed for one without vectors."""
        status, data = self._ask(json.dumps({**self._body, "input": list(texts)}).encode())
        if status >= 300:
            raise _told(status, data)
        try:
            answered = codec.unpack(data, max_bytes=_MAX_ANSWER_BYTES)
        except InvalidInput:  # of the codec, which takes what it reads for a caller's
            answered = None
        vectors = answered.get("data") if isinstance(answered, dict) else None
        if not isinstance(vectors, np.ndarray) or vectors.shape[:-1] != (len(texts),):
            raise BackendFailed(f"{self._url} does not answer with vectors")
        return np.asarray(vectors, np.float32)

    def _ask(self, body: bytes) -> tuple[int, bytes]:
        """The status, and the answer up to a byte more than is taken."""
        try:
            request = urllib.request.Request(self._url, body, self._headers)  # noqa: S310 - checked above
            try:
                answer = self._opener.open(request, timeout=TIMEOUT_S)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                return answer.status, answer.read(_MAX_ANSWER_BYTES + 1)
        except (http.client.InvalidURL, UnicodeError):
            raise InvalidInput(_A_URL, field="--url") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: it leads to somewhere that is no URL.
            reason = getattr(error, "reason", None) or error
            raise Unavailable(f"{self._url} does not answer: {reason}") from None


_A_URL = "use http://HOST:PORT or https://HOST"


def _check_url(url: str) -> None:
    """Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.netloc) and parts.port != 0
    except ValueError:  # "http://[", "http://x:y", "http://x:99999"
        is_usable = False
    if not is_usable:
        raise InvalidInput(_A_URL, field="--url")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key goes nowhere but where its owner sent it."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _told(status: int, body: bytes) -> BlitzError:
    """The service's own words."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the service answered {status}"
    if status == 401:
        return Unauthorized(f"{message}; here: EMBED_KEY=KEY in the environment")
    return Unavailable(message) if status == 429 or status >= 500 else InvalidInput(message)


class Here:
    """A model of the store that `settings` name, in this process."""

    def __init__(
        self, settings: Settings, model: str, dimensions: int | None, prompt_name: str | None
    ) -> None:
        self._settings = settings
        self._model = model
        self._options: dict[str, Any] = {"dimensions": dimensions, "prompt_name": prompt_name}
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        """Raises BlitzError: UnknownModel, or the store does not answer."""
        try:
            cards = self._runner.run(Catalogue(open_store(self._settings), ("cpu",)).cards())
            self._model = _chosen(self._model, [card for card in cards if card.task == "embedding"])
            # By name: the command line with --url needs none of what runs a model.
            self._backend: Backend = import_module("functions.cpu").create_inference(self._settings)
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._backend.close())
        self._runner.close()

    def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """One request, as the service's own."""
        request = EmbedRequest(self._model, tuple(texts), **self._options)
        return self._runner.run(self._backend.run(request)).vectors


def _chosen(named: str, cards: Sequence[ModelCard]) -> str:
    names = sorted(card.name for card in cards)
    if named and named not in names:
        raise UnknownModel.among(names, named)
    if not named and len(names) != 1:
        raise InvalidInput(f"name one: {', '.join(names) or 'the store has none'}", field="--model")
    return named or names[0]
