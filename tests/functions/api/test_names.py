"""What models are called: aliases in every dialect and place, and what is said of wrong names."""

from __future__ import annotations

import re
from typing import Any

import pytest

from shared.dialects.operations import OPERATIONS, Operation, request_type_of
from shared.errors import UnknownModel, printable
from tests.apps import post, router_client
from tests.fakes.backend import FakeBackend

pytestmark = pytest.mark.anyio

ALIASES = ("BAAI/bge-m3=mini", "text-embedding-3-small=mini", "cross/encoder=rerank-1", "mini-2=mini")
MODELS = ("mini", "mini-2", "rerank-1", "label-2")

NAMED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/embeddings", {"model": "{}", "input": "a"}, "BAAI/bge-m3"),
    ("/v1/embeddings", {"model": "{}", "input": "a"}, "text-embedding-3-small"),
    ("/v1/embeddings?model={}", {"input": "a"}, "BAAI/bge-m3"),
    ("/v1/embeddings?model={}", {"input": "a", "model": None}, "BAAI%2Fbge-m3"),
    ("/openai/v1/embeddings", {"model": "{}", "input": "a"}, "BAAI/bge-m3"),
    ("/openai/deployments/{}/embeddings", {"input": "a"}, "BAAI/bge-m3"),
    ("/openai/deployments/{}/embeddings", {"input": "a"}, "BAAI%2Fbge-m3"),
    ("/openai/deployments/{}/embeddings?api-version=1", {"input": "a", "model": "x"}, "BAAI%2fbge-m3"),
    ("/embed", {"model": "{}", "inputs": "a"}, "BAAI/bge-m3"),
    ("/embed?model={}", {"inputs": "a"}, "BAAI/bge-m3"),
    ("/?model={}", {"inputs": "a"}, "BAAI/bge-m3"),
    ("/similarity?model={}", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "BAAI/bge-m3"),
    ("/tokenize?model={}", {"inputs": "a"}, "BAAI/bge-m3"),
    ("/decode?model={}", {"ids": [97]}, "BAAI/bge-m3"),
    ("/v2/embed", {"model": "{}", "texts": ["a"], "input_type": "search_query"}, "BAAI/bge-m3"),
    ("/azure-search?model={}", {"values": [{"recordId": "0", "data": {"text": "a"}}]}, "BAAI/bge-m3"),
    ("/v1/embeddings", {"model": "{}", "input": "a"}, "mini-2"),
    ("/rerank?model={}", {"query": "q", "texts": ["a"]}, "cross/encoder"),
    ("/rerank", {"model": "{}", "query": "q", "documents": ["a"]}, "cross/encoder"),
    ("/v1/rerank", {"model": "{}", "query": "q", "documents": ["a"]}, "cross/encoder"),
    ("/v2/rerank", {"model": "{}", "query": "q", "documents": ["a"]}, "cross/encoder"),
    ("/predict?model={}", {"inputs": "a"}, "cross/encoder"),
]


@pytest.mark.parametrize(("path", "body", "name"), NAMED)
async def test_an_alias_is_a_name_in_every_place(path: str, body: dict[str, Any], name: str) -> None:
    """The model behind it is asked; where an answer names a model, it is what was asked for."""
    backend = FakeBackend(*MODELS)
    body = {key: name if value == "{}" else value for key, value in body.items()}
    response = await post(path.format(name), body, backend, model_aliases=ALIASES)
    assert response.status_code == 200, response.text
    (asked,) = backend.requests
    assert asked.model == ("rerank-1" if name == "cross/encoder" else "mini")
    told = re.search(r'"model":"([^"]*)"', response.text)
    assert told is None or told[1] == re.sub("%2f", "/", name, flags=re.IGNORECASE)


async def test_metrics_count_the_model_and_not_its_aliases() -> None:
    """A series each would be anybody's to make, and tell operators less."""
    async with router_client(FakeBackend(*MODELS), model_aliases=ALIASES) as client:
        await client.post("/v1/embeddings", json={"model": "BAAI/bge-m3", "input": "a"})
        metrics = (await client.get("/metrics")).text
    assert "BAAI" not in metrics
    assert 'model="mini"' in metrics


async def test_aliases_are_listed_as_models_of_their_own() -> None:
    """One entry a name; one whose model is not there is none. An alias goes before a model's name."""
    aliases = (*ALIASES, "lost=nowhere")
    async with router_client(FakeBackend(*MODELS), model_aliases=aliases) as client:
        listed = [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
        assert listed == sorted({*MODELS, "BAAI/bge-m3", "text-embedding-3-small", "cross/encoder"})
        for path in ("/v1/models/BAAI/bge-m3", "/v1/models/BAAI%2Fbge-m3", "/v1/models/BAAI/bge-m3/"):
            assert (await client.get(path)).json()["id"] == "BAAI/bge-m3"
        assert (await client.get("/info?model=BAAI/bge-m3")).status_code == 200
        for name in ("lost", "BAAI", "bge-m3", "BAAI/../mini", "cross/encoder/x"):
            response = await client.get(f"/v1/models/{name.replace('..', '%2e%2e')}")
            assert response.status_code == 404
            assert f"no model '{name}'" in response.json()["error"]["message"]


async def test_a_default_may_be_an_alias() -> None:
    backend = FakeBackend(*MODELS)
    settings: dict[str, Any] = {"model_aliases": ALIASES, "default_model": "BAAI/bge-m3"}
    assert (await post("/embed", {"inputs": "a"}, backend, **settings)).status_code == 200
    assert [asked.model for asked in backend.requests] == ["mini"]


@pytest.mark.parametrize("each", OPERATIONS, ids=lambda each: f"{each.paths[0]} {each.summary}")
async def test_what_cannot_be_is_told_before_what_is_missing(each: Operation) -> None:
    """An unknown model, repeated with those that can do it, though the body lacks all else.

    Also where nothing is served: there may be no reason to say of a model that is not there.
    """
    assert request_type_of(each)
    path = each.paths[0].replace("{model}", "no/such model")
    for asked in ({"model": "no/such model"}, {"model": "no/such model", "input": 3, "inputs": 3}):
        response = await post(path, asked, FakeBackend(*MODELS))
        assert response.status_code == 404, response.text
        assert "there is no model 'no/such model'; there are: " in response.text


@pytest.mark.parametrize(
    ("path", "body", "model", "said"),
    [
        ("/v1/embeddings", {}, "rerank-1", "rerank-1 is a cross-encoder, which gives scores"),
        ("/v1/embeddings", {"input": "a"}, "rerank-1", "rerank-1 is a cross-encoder"),
        ("/v1/embeddings", {"input": ""}, "rerank-1", "rerank-1 is a cross-encoder"),
        ("/embed", {"inputs": "a"}, "rerank-1", "rerank-1 is a cross-encoder"),
        ("/v2/embed", {"texts": []}, "label-2", "label-2 is a cross-encoder"),
        ("/azure-search", {}, "rerank-1", "rerank-1 is a cross-encoder"),
        ("/predict", {"inputs": "a"}, "mini", "mini is an embedding model"),
        ("/predict", {}, "mini", "mini is an embedding model"),
        (
            "/rerank",
            {"query": "q", "texts": ["a"]},
            "label-2",
            "label-2 has 2 labels instead of one score",
        ),
        ("/v2/rerank", {"query": "q"}, "label-2", "label-2 has 2 labels instead of one score"),
    ],
)
async def test_a_model_that_cannot_do_it_is_not_asked(
    path: str, body: dict[str, Any], model: str, said: str
) -> None:
    """Nothing is loaded or tokenised for it."""
    backend = FakeBackend(*MODELS)
    response = await post(f"{path}?model={model}", body, backend)
    assert response.status_code in (400, 422)
    assert said in response.text
    assert not backend.requests


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/embed", "mini, mini-2"),
        ("/v1/embeddings", "mini, mini-2"),
        ("/azure-search", "mini, mini-2"),
        ("/predict", "label-2, rerank-1"),
        ("/tokenize", "label-2, mini, mini-2, rerank-1"),
        ("/decode", "label-2, mini, mini-2, rerank-1"),
    ],
)
async def test_an_unknown_model_is_answered_with_those_that_can(path: str, right: str) -> None:
    """Of the task that is asked for, and no others."""
    body = {"input": "a", "inputs": "a", "values": [{"recordId": "0"}]}
    response = await post(f"{path}?model=nope", body, FakeBackend(*MODELS))
    assert response.status_code == 404
    assert f"there is no model 'nope'; there are: {right}\"" in response.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bge-m3", "'bge-m3'"),
        ("a" * 5_000, f"'{'a' * 100}...'"),
        ("a\r\nb\x00\x1b[31m\u202e", "'a??b??[31m?'"),
        ("wei\u00df", "'wei\u00df'"),
    ],
)
async def test_a_name_is_repeated_so_that_it_is_safe(name: str, told: str) -> None:
    """On one line, and no longer than that."""
    response = await post("/v1/embeddings", {"model": name, "input": "a"})
    assert response.json()["error"]["message"] == f"there is no model {told}; there are: mini"
    assert repr(printable(name)) == told
    assert UnknownModel.among(["mini"], name).message.isprintable()
