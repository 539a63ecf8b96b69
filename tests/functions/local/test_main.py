"""The local runner as processes of its own: in one, in three, as a backend, and when it cannot start."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from openai import OpenAI

from functions.local.server import listen
from shared.contracts import EmbedRequest, EmbedResult
from shared.wire.messages import pack_request, unpack_result
from tests.patience import PATIENCE_S
from tests.server import (
    ROOT,
    children_of,
    free_port,
    http_get,
    http_post,
    is_running,
    running_service,
    started_service,
    wait_until_answered,
    wait_until_ready,
)
from tests.tiny import Tiny, nearly, publish_all

SECRET = "a secret of this test"
MODEL = Tiny("a")
BOTH = importlib.util.find_spec("torch") is not None
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
    vectors = np.array(http_post(f"{service}/embed", json={"inputs": inputs}).json())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2]


def test_usage_counts_real_tokens(service: str) -> None:
    """[CLS] hello world [SEP] are four tokens of this model."""
    body = {"model": "all-MiniLM-L6-v2", "input": "hello world"}
    answer = http_post(f"{service}/v1/embeddings", json=body).json()
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_a_model_that_is_not_there_is_a_404_with_the_names_there_are(service: str) -> None:
    """Also for names that could leave the store."""
    for name in ("nope", "../etc", "sentence-transformers/all-MiniLM-L6-v2"):
        answer = http_post(f"{service}/v1/embeddings", json={"model": name, "input": "x"})
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
        answer = http_post(url, content=body, headers=headers)
        assert len(answer.json()["data"][0]["embedding"]) == 384
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


@dataclass(frozen=True)
class Separate:
    """The URLs of the three, and the process of the router, which started the other two."""

    router: str
    cpu: str
    gpu: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"file://{tmp_path_factory.mktemp('local') / 'models'}"
    publish_all([MODEL], url, "cpu-fp32", "gpu-fp16")
    return url


@pytest.fixture(scope="module")
def separate(tiny_store: str) -> Iterator[Separate]:
    port = free_port(3)
    environ = {"BLITZ_BACKEND_SECRET": SECRET}
    with started_service(tiny_store, "--separate", environ=environ, port=port) as (url, process):
        wait_until_ready(url, process)
        backends = f"http://127.0.0.1:{port + 1}", f"http://127.0.0.1:{port + 2}"
        yield Separate(url, *backends, process)


def ask_for(service: str, *texts: str) -> httpx.Response:
    return http_post(f"{service}/embed", json={"model": "a", "inputs": texts})


def test_separate_processes_answer_together(separate: Separate) -> None:
    """One text by the CPU's process, twelve by the GPU's: the same vectors, through the same router."""
    assert len(children_of(separate.process.pid)) == 1 + BOTH
    texts = [f"w{n} w{n + 1}" for n in range(12)]
    few, many = ask_for(separate.router, texts[0]), ask_for(separate.router, *texts)
    assert nearly(few.json(), MODEL.vectors(texts[:1]))
    assert nearly(many.json(), MODEL.vectors(texts))
    assert few.headers["x-compute-type"] == "cpu"
    assert many.headers["x-compute-type"] == ("gpu" if BOTH else "cpu")


def test_separate_backends_serve_nobody_but_the_router(separate: Separate) -> None:
    """401 without the secret that they share; with it they answer; /health is open."""
    body = pack_request(EmbedRequest("a", ("w1",)))
    headers = {"content-type": "application/msgpack"}
    for url in (separate.cpu, separate.gpu)[: 1 + BOTH]:
        assert http_get(f"{url}/health").status_code == 200
        for path in ("/ready", "/metrics"):
            assert http_get(f"{url}{path}").status_code == 401
        for secret in ({}, {"authorization": "Bearer another"}):
            answer = http_post(f"{url}/embed", content=body, headers=headers | secret)
            assert answer.status_code == 401
        headers_of_router = headers | {"authorization": f"Bearer {SECRET}"}
        assert http_post(f"{url}/embed", content=body, headers=headers_of_router).status_code == 200


def test_a_separate_backend_that_dies_is_started_again(separate: Separate) -> None:
    """A new process answers on the same port, with the same secret."""
    before = children_of(separate.process.pid)
    port = separate.cpu.rpartition(":")[2]
    (dead,) = (pid for pid, command in before.items() if f"--port {port}" in command)
    os.kill(dead, signal.SIGKILL)
    while is_running(dead):
        time.sleep(0.01)
    wait_until_answered(f"{separate.cpu}/health", separate.process, PATIENCE_S, anything=False)
    assert ask_for(separate.router, "w1").status_code == 200
    after = children_of(separate.process.pid)
    assert dead not in after
    assert len(after) == len(before)


def test_a_role_makes_the_process_a_backend(tiny_store: str) -> None:
    """BLITZ_ROLE=cpu: it speaks the wire and none of the clients' dialects."""
    with running_service(tiny_store, environ={"BLITZ_ROLE": "cpu"}) as url:
        body = pack_request(EmbedRequest("a", ("w1 w2",)))
        answer = http_post(f"{url}/embed", content=body, headers={"content-type": "application/msgpack"})
        vectors = unpack_result(answer.content, EmbedResult).vectors
        assert nearly(vectors, MODEL.vectors(["w1 w2"]))
        assert http_post(f"{url}/embed", json={"inputs": "w1"}).status_code == 415
        assert http_post(f"{url}/v1/embeddings", json={"input": "w1"}).status_code == 404


@pytest.mark.parametrize("role", ["cpu", "gpu"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_a_backend_that_others_reach_needs_a_secret(role: str, host: str, tiny_store: str) -> None:
    """Exit code 2, before it listens or loads anything; with one, what is wrong is the address."""
    command = [sys.executable, "-m", "functions.local", "--port", "0", "--model-store", tiny_store]
    environ = {**os.environ, "BLITZ_ROLE": role}
    command += ["--host", host]
    refused = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "needs BLITZ_BACKEND_SECRET" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_backend_with_a_secret_may_be_reached(tiny_store: str) -> None:
    """From any address; who does not know it gets 401."""
    environ = {"BLITZ_ROLE": "cpu", "BLITZ_BACKEND_SECRET": SECRET}
    with started_service(tiny_store, "--host", "0.0.0.0", environ=environ) as (url, process):
        wait_until_answered(f"{url}/health", process, 60, anything=False)
        assert httpx.get(f"{url}/ready").status_code == 401


def test_the_model_to_warm_is_one_that_this_process_can_load(tmp_path: Path) -> None:
    """The first model is the GPU's alone: a router without one gets ready with the second."""
    store = f"file://{tmp_path / 'models'}"
    publish_all([Tiny("a")], store, "gpu-fp16")
    publish_all([Tiny("b")], store)
    with running_service(store) as url:
        states = {each["name"]: each["state"] for each in http_get(f"{url}/ready").json()["models"]}
        assert states == {"b": "warm"}


def test_a_default_model_that_is_not_there_is_a_warning(tiny_store: str) -> None:
    """With the names there are; it may be published later, so the service starts."""
    command = [sys.executable, "-m", "functions.local", "--port", "0", "--model-store", tiny_store]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "BLITZ_DEFAULT_MODEL": "nope"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            line = process.stderr.readline()
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    assert line.startswith("warning: BLITZ_DEFAULT_MODEL is nope, which is not in the store")
    assert line.endswith("there are: a\n")


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio sets TCP_NODELAY only on sockets whose protocol is named."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-store", "file://{empty}"], "--model-store file://{empty} holds no model"),
        (
            ["--model-store", "file://{empty}/x"],
            "--model-store file://{empty}/x is not a readable folder",
        ),
        (["--model-store", "ftp://somewhere"], "must be file://FOLDER"),
        (["--port", "70000"], "--port"),
        (["--port", "65535", "--separate", "--model-store", "{store}"], "65536 is none"),
        (["--host", "192.0.2.1", "--model-store", "{store}"], "cannot listen on 192.0.2.1"),
    ],
)
def test_a_start_that_cannot_work_says_why(
    tmp_path: Path, tiny_store: str, arguments: list[str], message: str
) -> None:
    """Exit code 2 and one clear line, no traceback."""
    arguments = [argument.format(empty=tmp_path, store=tiny_store) for argument in arguments]
    command = [sys.executable, "-m", "functions.local", *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert finished.returncode == 2
    assert message.format(empty=tmp_path) in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(("taken", "arguments"), [(0, ()), (1, ("--separate",)), (2, ("--separate",))])
def test_a_port_in_use_is_named(tiny_store: str, taken: int, arguments: tuple[str, ...]) -> None:
    """The router's own, and those that it needs for its backends."""
    port = free_port(3)
    with socket.create_server(("127.0.0.1", port + taken)):
        command = [sys.executable, "-m", "functions.local", "--port", str(port), *arguments]
        command += ["--model-store", tiny_store]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert finished.returncode == 2
    assert f"port {port + taken}" in finished.stderr
    assert "in use" in finished.stderr
    assert "--port" in finished.stderr
    assert "Traceback" not in finished.stderr
