"""Models whose queries take another way than their documents, against sentence-transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from tokenizers import Tokenizer
from transformers import BertModel

from functions.backend.build import build_inference
from model_build import routed
from model_build.routes import with_routes
from model_build.samples import sample_texts
from shared.cards import TextMemory
from shared.contracts import EmbedRequest, RerankRequest, TokenizeRequest
from shared.engines.cpu import capacity, open_cpu_engine
from shared.errors import InvalidInput
from shared.models.manifest import Manifest, decode_manifest
from shared.settings import Settings
from tests.model_build.command import CONFIG, Run, save_letters
from tests.tiny_torch import edit_json

WIDTH = CONFIG.hidden_size
TEXTS = ["a", "the quick brown fox jumps over the lazy dog", "Hello, World!"]


def _berts(folder: Path, count: int) -> list[Path]:
    torch.manual_seed(0)
    return [save_letters(BertModel(CONFIG), folder / f"bert{number}") for number in range(count)]


def _static(bert: Path) -> StaticEmbedding:
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    return StaticEmbedding(tokenizer, embedding_dim=WIDTH)


def _table_for_queries(folder: Path) -> list[Any]:
    (bert,) = _berts(folder, 1)
    documents = [Transformer(str(bert)), Pooling(WIDTH)]
    return [Router.for_query_document([_static(bert)], documents), Normalize()]


def _two_transformers(folder: Path) -> list[Any]:
    routes = [[Transformer(str(each)), Pooling(WIDTH)] for each in _berts(folder, 2)]
    return [Router.for_query_document(*routes, default_route="query")]


def _after_the_pooling(folder: Path) -> list[Any]:
    (bert,) = _berts(folder, 1)
    router = Router.for_query_document([Dense(WIDTH, 8)], [Dense(WIDTH, 6), Dense(6, 8)])
    return [Transformer(str(bert)), Pooling(WIDTH), router, Normalize()]


Make = Callable[[Path], list[Any]]
ROUTERS: dict[str, Make] = {
    "a table for queries": _table_for_queries,
    "two transformers": _two_transformers,
    "layers after the pooling": _after_the_pooling,
}


def _saved(folder: Path, make: Make, **settings: Any) -> Path:
    model = SentenceTransformer(modules=make(folder.parent / "parts"), device="cpu", **settings)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize("old", [False, True], ids=["Router", "Asym"])
@pytest.mark.parametrize("kind", ROUTERS)
def test_a_routes_folder_is_what_its_texts_go_through(kind: str, old: bool, tmp_path: Path) -> None:
    """sentence-transformers gives the same vectors for it as for the task; the default comes first."""
    folder = _saved(tmp_path / "model", ROUTERS[kind])
    theirs = SentenceTransformer(str(folder), device="cpu")
    if old:
        text = (folder / "modules.json").read_text()
        (folder / "modules.json").write_text(text.replace("base.modules.router.Router", "models.Asym"))
        place = next(path.parent for path in folder.rglob("router_config.json"))
        (place / "router_config.json").rename(place / "config.json")
    routes = with_routes(folder, tmp_path / "routes")
    default = SentenceTransformer(str(next(iter(routes.values()))), device="cpu")
    encodings = ((None, default), *((name, None) for name in ("query", "document")))
    for task, model in encodings:
        model = model or SentenceTransformer(str(routes[task]), device="cpu")  # type: ignore[index]
        expected = theirs.encode(TEXTS, show_progress_bar=False, **({"task": task} if task else {}))
        np.testing.assert_allclose(model.encode(TEXTS, show_progress_bar=False), expected, atol=1e-6)


def test_input_type_and_prompt_name_choose_the_route(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built, published and served: the vectors are encode_query's and encode_document's, and a rerank
    compares the one with the other."""
    # It takes a process for each route, and has tests of its own.
    monkeypatch.setattr(routed, "measure_memory", lambda folder, part: TextMemory(part.max_tokens, 0))
    folder = _saved(tmp_path / "model", _table_for_queries, prompts={"query": "q: "})
    store = f"file://{tmp_path / 'store'}"
    ran = run(folder, "--target", "cpu-fp32", "--name", "routed", "--push", store)
    assert ran.returncode == 0, ran.stderr
    assert "of prompt or input type query take another way (StaticEmbedding)" in ran.stdout
    theirs = SentenceTransformer(str(folder), device="cpu")
    queries, documents, plain = (
        encode(TEXTS, show_progress_bar=False)
        for encode in (theirs.encode_query, theirs.encode_document, theirs.encode)
    )
    texts = tuple(TEXTS)

    async def served() -> list[Any]:
        settings = Settings(model_store=store, threads=1)
        inference = build_inference(settings, "cpu", open_cpu_engine, capacity())
        requests: list[Any] = [
            EmbedRequest("routed", texts, input_type="query"),
            EmbedRequest("routed", texts, prompt_name="query"),
            EmbedRequest("routed", texts, input_type="document"),
            EmbedRequest("routed", texts, prompt_name="document"),
            EmbedRequest("routed", texts, input_type="clustering"),
            EmbedRequest("routed", texts),
            RerankRequest("routed", TEXTS[2], texts[:2]),
            TokenizeRequest("routed", ("a",), prompt_name="query"),
        ]
        try:
            return [await inference.run(request) for request in requests]
        finally:
            await inference.close()

    *embedded, reranked, spelled = anyio.run(served)
    manifest = decode_manifest(next((tmp_path / "store").rglob("manifest.json")).read_bytes())
    assert manifest.memory == TextMemory(8192, 0)  # the larger of both
    assert manifest.prompts == {"query": "q: ", "document": ""}
    for expected, result in zip(
        [queries, queries, documents, documents, plain, plain], embedded, strict=True
    ):
        np.testing.assert_allclose(result.vectors, expected, atol=1e-5)
    _assert_one_int8_range(manifest, theirs, {each.int8_range for each in embedded})
    assert "127 of int8 stands for" in next((tmp_path / "store").rglob("README.md")).read_text()
    np.testing.assert_allclose(reranked.scores, documents[:2] @ queries[2], atol=1e-5)
    assert reranked.token_counts[1] == embedded[2].token_counts[1]
    # The table's tokenizer adds no special tokens: q, :, a.
    assert (spelled.token_counts, embedded[0].token_counts[0]) == ((3,), 3)


def _assert_one_int8_range(manifest: Manifest, theirs: SentenceTransformer, told: set[float]) -> None:
    """A quarter more than the largest number of both routes' vectors, and told with every answer."""
    by_route = [
        float(np.abs(theirs.encode(sample_texts(120), task=name, show_progress_bar=False)).max())
        for name in ("query", "document")
    ]
    assert abs(by_route[0] - by_route[1]) > 0.01  # so that one of them alone would show
    assert manifest.int8_range() == pytest.approx(1.25 * max(by_route), abs=0.0051)
    assert told == {manifest.int8_range()}


def _edited(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / name, **values)


def _renamed(folder: Path) -> None:
    config = json.loads((folder / "router_config.json").read_text())
    config["structure"]["image"] = config["structure"].pop("query")
    (folder / "router_config.json").write_text(json.dumps(config))


def _outside(folder: Path) -> None:
    config = json.loads((folder / "router_config.json").read_text())
    config["structure"]["query"] = ["../secret"]
    (folder / "router_config.json").write_text(json.dumps(config))


def _narrow(folder: Path) -> list[Any]:
    (bert,) = _berts(folder, 1)
    documents = [Transformer(str(bert)), Pooling(WIDTH), Dense(WIDTH, 8)]
    return [Router.for_query_document([_static(bert)], documents)]


def _twice(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0], *modules]))


MAPPED = {"route_mappings": {"('query', 'text')": "query"}, "default_route": "document"}
REFUSED: dict[str, tuple[Make, Callable[[Path], None], tuple[str, ...], str]] = {
    "for the GPU": (_table_for_queries, lambda _: None, ("--target", "gpu-fp16"), "without routes"),
    "for tables": (_table_for_queries, lambda _: None, ("--target", "cpu-static"), "a route is a Bert"),
    "a pooling": (
        _table_for_queries,
        lambda _: None,
        ("--pooling", "mean", "--target", "cpu-fp32"),
        "leave --pooling out",
    ),
    "another route": (_table_for_queries, _renamed, (), "has the routes document, image; this"),
    "by modality": (
        _table_for_queries,
        _edited("router_config.json", parameters=MAPPED),
        (),
        "texts al",
    ),
    "two Routers": (_table_for_queries, _twice, (), "more than one Router"),
    "outside": (_table_for_queries, _outside, (), "outside the model"),
    "widths": (_narrow, lambda _: None, (), "cannot be compared: document gives 8 dimensions, query"),
    "a default prompt": (
        _table_for_queries,
        _edited(
            "config_sentence_transformers.json", prompts={"query": "q"}, default_prompt_name="query"
        ),
        (),
        "the default prompt is query, and the default route is another",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_router_that_cannot_be_served_is_refused(case: str, run: Run, tmp_path: Path) -> None:
    """Before anything is built, with what is wrong with it."""
    make, change, options, message = REFUSED[case]
    folder = _saved(tmp_path / "model", make)
    change(folder)
    ran = run(folder, *(options or ("--target", "cpu-fp32")))
    assert ran.returncode == 2
    assert message in ran.stderr


def test_a_router_outside_of_a_build_is_no_error_of_a_library(tmp_path: Path) -> None:
    """Its configuration is missing."""
    folder = _saved(tmp_path / "model", _table_for_queries)
    (folder / "router_config.json").unlink()
    with pytest.raises(InvalidInput, match=r"no router_config\.json"):
        with_routes(folder, tmp_path / "routes")
