"""Azure AI Search's route over HTTP: what its URL says, what it answers, and with which status."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from shared.contracts import EmbedRequest
from shared.errors import DeadlineExceeded, ModelLoadFailed, Overloaded
from tests.apps import router_app
from tests.fakes.backend import FakeBackend, vector_of

pytestmark = pytest.mark.anyio

KEY = "key-of-a-caller"
KEY_HASH = hashlib.sha256(KEY.encode()).hexdigest()


def records(*texts: Any) -> dict[str, Any]:
    return {"values": [{"recordId": str(n), "data": {"text": text}} for n, text in enumerate(texts)]}


async def post(backend: FakeBackend, url: str, body: Any, **settings: Any) -> httpx.Response:
    transport = httpx.ASGITransport(router_app(backend, **settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        # As the service sends it, charset and all.
        headers = {"content-type": "application/json; charset=utf-8"}
        return await client.post(url, json=body, headers=headers)


async def test_the_url_names_model_side_and_key() -> None:
    """All that a vectorizer can be told is its URL."""
    backend = FakeBackend("mini", "other")
    response = await post(
        backend,
        f"/azure-search?model=other&input_type=query&dimensions=4&code={KEY}",
        records("where"),
        api_key_hashes=(KEY_HASH,),
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    (record,) = response.json()["values"]
    assert record["data"]["vector"] == pytest.approx(vector_of("where", 4).tolist())
    expected = EmbedRequest("other", ("where",), dimensions=4, input_type="query")
    assert backend.requests == [expected]


async def test_as_many_records_come_back_as_were_sent() -> None:
    """Good ones with their vectors, the bad one with its error, by their ids."""
    response = await post(FakeBackend(), "/azure-search", records("a", "", "c"))
    assert response.status_code == 200
    good, bad, other = response.json()["values"]
    assert [each["recordId"] for each in (good, bad, other)] == ["0", "1", "2"]
    assert good["data"]["vector"] == pytest.approx(vector_of("a", 8).tolist())
    assert other["data"]["vector"] == pytest.approx(vector_of("c", 8).tolist())
    assert (good["errors"], bad["data"], len(bad["errors"])) == (None, {}, 1)


async def test_the_skills_names_are_the_urls() -> None:
    """A skill calls its input and output what it likes."""
    body = {"values": [{"recordId": "x", "data": {"chunk": "a"}}]}
    response = await post(FakeBackend(), "/azure-search?input=chunk&output=embedding", body)
    assert list(response.json()["values"][0]["data"]) == ["embedding"]


@pytest.mark.parametrize(
    ("url", "body", "status", "named"),
    [
        ("/azure-search", {}, 400, "values"),
        ("/azure-search", {"values": []}, 400, "values"),
        ("/azure-search", {"values": [{"data": {"text": "a"}}]}, 400, "recordId"),
        ("/azure-search?dimensions=x", records("a"), 400, "dimensions"),
        ("/azure-search?input_type=x", records("a"), 400, "input_type"),
        ("/azure-search?model=nope", records("a"), 404, "mini"),
    ],
)
async def test_a_request_that_is_wrong_as_a_whole_is_refused(
    url: str, body: Any, status: int, named: str
) -> None:
    """With a message that says where, in {error: {code, message}}."""
    response = await post(FakeBackend(), url, body)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message"}
    assert named in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Overloaded("the queue is full"), 429),
        (ModelLoadFailed("the model did not load"), 503),
        (DeadlineExceeded("it took too long"), 503),
    ],
)
async def test_what_will_pass_is_repeated_by_the_indexer(error: Exception, status: int) -> None:
    """It repeats 429, 502 and 503; when, the header says."""
    response = await post(FakeBackend(error=error), "/azure-search", records("a"))
    assert response.status_code == status
    assert int(response.headers["retry-after"]) >= 1


async def test_without_a_key_the_refusal_has_the_routes_shape() -> None:
    """401, like everything else that has no valid key."""
    response = await post(FakeBackend(), "/azure-search", records("a"), api_key_hashes=(KEY_HASH,))
    assert response.status_code == 401
    assert set(response.json()["error"]) == {"code", "message"}
