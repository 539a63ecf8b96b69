"""A model's prompts, by every way that a caller has to ask for one: the real service, a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tests.patience import wait_until
from tests.server import http_post, running_service
from tests.tiny import Tiny, nearly, publish_all

TINY = Tiny("tiny", prompts={"query": "w300 w301 ", "passage": "w302 "})
TEXTS = ["w1 w2", "w3"]


def prompted(name: str) -> NDArray[np.float64]:
    """What the model makes of TEXTS with that prompt before each."""
    return TINY.vectors([TINY.prompts[name] + text for text in TEXTS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    store = f"file://{folder}/models"
    publish_all([TINY], store)
    with running_service(store) as url:
        yield url


def test_without_one_there_is_none(url: str) -> None:
    """This model has no default."""
    answer = http_post(f"{url}/embed", json={"inputs": TEXTS}).json()
    assert nearly(answer, TINY.vectors(TEXTS))


def test_tei_names_it(url: str) -> None:
    answer = http_post(f"{url}/embed", json={"inputs": TEXTS, "prompt_name": "query"}).json()
    assert nearly(answer, prompted("query"))


@pytest.mark.parametrize(
    ("input_type", "name"), [("search_query", "query"), ("search_document", "passage")]
)
def test_cohere_says_what_for(url: str, input_type: str, name: str) -> None:
    """Documents get what this model calls passages."""
    answer = http_post(f"{url}/v2/embed", json={"texts": TEXTS, "input_type": input_type}).json()
    assert nearly(answer["embeddings"]["float"], prompted(name))


@pytest.mark.parametrize(("input_type", "name"), [("query", "query"), ("document", "passage")])
def test_azure_search_says_it_in_the_url(url: str, input_type: str, name: str) -> None:
    """Skill and vectorizer have a URL each."""
    body = {"values": [{"recordId": text, "data": {"text": text}} for text in TEXTS]}
    answer = http_post(f"{url}/azure-search?input_type={input_type}", json=body).json()
    assert nearly([each["data"]["vector"] for each in answer["values"]], prompted(name))


def test_a_bulk_job_names_it_beside_its_input(url: str, folder: Path) -> None:
    """As does a blob's metadata in Azure."""
    inputs = folder / "bulk" / "bulk-in" / "tiny"
    inputs.mkdir(parents=True, exist_ok=True)
    (inputs / "rows.txt.job.json").write_text(json.dumps({"prompt_name": "passage"}))
    (folder / "rows.txt").write_text("\n".join(TEXTS))
    (folder / "rows.txt").rename(inputs / "rows.txt")  # whole from the first look at it
    output = folder / "bulk" / "bulk-out" / "tiny" / "rows.txt.parquet"
    wait_until(output.exists)
    assert nearly(pq.read_table(output)["vector"].to_pylist(), prompted("passage"))
