from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from openai import OpenAI

from functions.local import listen
from tests.server import ROOT, running_service

TEXTS = [f"text number {n} about " + "cats and the weather " * (n % 9) for n in range(32)]


@pytest.fixture(scope="module")
def service(minilm_store: Path) -> Iterator[str]:
    with running_service(f"file://{minilm_store}") as url:
        yield url


def test_a_vector_does_not_depend_on_its_batch_mates(service: str) -> None:
    """The same text alone and among 31 others, over HTTP with the real INT8 model."""
    with OpenAI(base_url=f"{service}/v1", api_key="none", max_retries=0) as client:
        together = client.embeddings.create(model="all-MiniLM-L6-v2", input=TEXTS)
        alone = [client.embeddings.create(model="all-MiniLM-L6-v2", input=text) for text in TEXTS[:8]]
    for row, answer in enumerate(alone):
        difference = np.subtract(answer.data[0].embedding, together.data[row].embedding)
        assert np.abs(difference).max() < 1e-6


def test_similar_texts_are_near_and_vectors_have_unit_length(service: str) -> None:
    """The service embeds meaning, not noise."""
    inputs = ["How do I reset my password?", "I forgot my login, help", "The recipe needs two eggs"]
    vectors = np.array(httpx.post(f"{service}/embed", json={"inputs": inputs}).json())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2]


def test_usage_counts_real_tokens(service: str) -> None:
    """[CLS] hello world [SEP] are four tokens of this model."""
    body = {"model": "all-MiniLM-L6-v2", "input": "hello world"}
    answer = httpx.post(f"{service}/v1/embeddings", json=body).json()
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_a_model_that_is_not_there_is_a_404_with_the_names_there_are(service: str) -> None:
    """Also for names that could leave the store."""
    for name in ("nope", "../etc", "sentence-transformers/all-MiniLM-L6-v2"):
        answer = httpx.post(f"{service}/v1/embeddings", json={"model": name, "input": "x"})
        assert answer.status_code == 404, name
        assert "all-MiniLM-L6-v2" in answer.json()["error"]["message"]


def test_the_printed_curl_line_works_as_it_is(minilm_store: Path) -> None:
    """What `make run` tells a newcomer to type gives a vector."""
    command = [sys.executable, "-m", "functions.local", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--model-store", f"file://{minilm_store}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("try:"))
        curl = shlex.split(line.removeprefix("try:"))
        url, body = curl[2], curl[-1]
        assert re.fullmatch(r"http://127.0.0.1:[1-9]\d+/v1/embeddings", url)
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(url, content=body, headers=headers, timeout=30)
        assert len(answer.json()["data"][0]["embedding"]) == 384
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio sets TCP_NODELAY only on sockets whose protocol is named."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-store", "file://{empty}"], "holds no model"),
        (["--model-store", "ftp://somewhere"], "must be file://FOLDER"),
        (["--port", "70000"], "--port"),
    ],
)
def test_a_start_that_cannot_work_says_why(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Exit code 2 and one clear line, no traceback."""
    arguments = [argument.format(empty=tmp_path) for argument in arguments]
    command = [sys.executable, "-m", "functions.local", *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
