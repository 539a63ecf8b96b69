"""The official OpenAI SDK's files and batches, against a real service that works on them."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import numpy as np
import openai
import pytest
from openai import AzureOpenAI, OpenAI
from openai.types import Batch

from tests.patience import PATIENCE_S
from tests.server import running_service, started_service, wait_until_answered
from tests.tiny import Tiny, nearly, publish_all, some_text

TINY, OTHER = Tiny("tiny", dimensions=16), Tiny("other", dimensions=8)
ENDED = ("completed", "failed", "cancelled")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    store = f"file://{tmp_path_factory.mktemp('served') / 'models'}"
    publish_all([TINY, OTHER], store)
    with (
        running_service(store, environ={"BLITZ_MAX_FILE_BYTES": "1000000"}) as url,
        OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


def line(custom_id: str, input: object, **body: object) -> str:
    body = {"model": "tiny", "input": input, **body}
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}
    return json.dumps(request)


def upload(client: OpenAI, *lines: str, name: str = "requests.jsonl") -> str:
    content = "".join(f"{each}\n" for each in lines).encode()
    return client.files.create(file=(name, io.BytesIO(content)), purpose="batch").id


def begin(client: OpenAI, file_id: str, **metadata: str) -> Batch:
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h", metadata=metadata
    )


def ended(client: OpenAI, batch: Batch) -> Batch:
    deadline = time.monotonic() + PATIENCE_S
    while batch.status not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def read_lines(client: OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """By custom_id."""
    assert file_id is not None
    answers = [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
    return {answer["custom_id"]: answer for answer in answers}


def test_a_batch_comes_back_with_every_vector(client: OpenAI) -> None:
    """Requests of one text and of several, of fewer dimensions and as base64; the model is their own."""
    random = Random(1)
    texts = [some_text(random) for _ in range(700)]
    lines = [line(f"r{n}", text) for n, text in enumerate(texts)]
    several = [some_text(random) for _ in range(5)]
    lines += [line("several", several), line("short", texts[0], dimensions=4)]
    lines.append(line("packed", texts[1], encoding_format="base64"))

    file_id = upload(client, *lines)
    batch = begin(client, file_id, who="a test")
    assert (batch.object, batch.input_file_id, batch.metadata) == ("batch", file_id, {"who": "a test"})
    assert batch.status == "validating"
    batch = ended(client, batch)

    assert batch.status == "completed", batch
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 703, "completed": 703, "failed": 0}
    assert batch.model == "tiny"
    assert batch.error_file_id is None
    assert batch.completed_at is not None
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    ends = (batch.failed_at, batch.cancelling_at, batch.cancelled_at, batch.expired_at)
    assert ends == (None,) * 4
    answers = read_lines(client, batch.output_file_id)
    assert len(answers) == 703

    def vectors(custom_id: str) -> list[Any]:
        response = answers[custom_id]["response"]
        assert response["status_code"] == 200
        return [item["embedding"] for item in response["body"]["data"]]

    assert nearly([vectors(f"r{n}")[0] for n in range(700)], TINY.vectors(texts))
    assert nearly(vectors("several"), TINY.vectors(several))
    assert nearly(vectors("short"), TINY.vectors(texts[:1], 4))
    assert isinstance(vectors("packed")[0], str)
    tokens = sum(answer["response"]["body"]["usage"]["total_tokens"] for answer in answers.values())
    assert batch.usage is not None
    assert batch.usage.input_tokens == batch.usage.total_tokens == tokens


def test_bad_requests_are_in_the_error_file_and_the_rest_is_answered(client: OpenAI) -> None:
    """Counts are of requests, however many texts each has."""
    file_id = upload(
        client,
        line("good", ["w1", "w2", "w3"]),
        line("twice", "w1"),
        line("twice", "w2"),
        line("elsewhere", "w1", model="other"),
        "{",
        line("empty", ["w1", ""]),
        line("prompt", ["w1", "w2"], prompt_name="query"),
        line("long", ["w1", "w2 " * 600], truncate=False),
        line("cut", "w2 " * 600, truncate=True),
    )
    batch = ended(client, begin(client, file_id))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 9, "completed": 3, "failed": 6}
    assert read_lines(client, batch.output_file_id).keys() == {"good", "twice", "cut"}
    errors = client.files.content(batch.error_file_id or "").text.splitlines()
    found = [(error["custom_id"], error["error"]["code"]) for error in map(json.loads, errors)]
    assert "body.prompt_name: this model has no such prompt" in errors[4]
    assert "602 tokens, the model reads 512" in errors[5]
    assert found == [
        ("twice", "duplicate_custom_id"),
        ("elsewhere", "model_mismatch"),
        (None, "invalid_json_line"),
        ("empty", "empty_input"),
        ("prompt", "input_refused"),
        ("long", "input_refused"),
    ]


def test_a_batch_of_an_unknown_model_fails_and_says_why(client: OpenAI) -> None:
    """In `errors`, with the parameter."""
    batch = ended(client, begin(client, upload(client, line("a", "w1", model="nobody"))))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.output_file_id is None
    assert batch.errors is not None
    assert batch.errors.data is not None
    [error] = batch.errors.data
    assert error.param == "model"
    assert "other, tiny" in (error.message or "")


def test_a_batch_without_one_valid_request_fails(client: OpenAI) -> None:
    """The first line's reason is the batch's."""
    batch = ended(client, begin(client, upload(client, "no JSON", "{}")))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert "line 1" in (batch.errors.data[0].message or "")


def test_a_batch_without_an_answer_has_errors_and_no_output(client: OpenAI) -> None:
    """As at OpenAI; no empty file is left."""
    batch = ended(client, begin(client, upload(client, line("a", "w2 " * 600, truncate=False))))
    assert (batch.status, batch.output_file_id, batch.errors) == ("completed", None, None)
    assert list(read_lines(client, batch.error_file_id)) == ["a"]
    made = [file.id for file in client.files.list(purpose="batch_output") if batch.id[6:] in file.id]
    assert made == [batch.error_file_id]


def test_files_expire_when_their_caller_says(client: OpenAI) -> None:
    """The SDK's own parameters, for a file and for what a batch makes; 30 days where there are none."""
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    content = line("a", "w1").encode()
    file = client.files.create(file=content, purpose="batch", expires_after=expiry)
    assert file.expires_at == file.created_at + 3600
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/embeddings",
        completion_window="24h",
        output_expires_after=expiry,
    )
    batch = ended(client, batch)
    output = client.files.retrieve(batch.output_file_id or "")
    assert output.expires_at == output.created_at + 3600
    assert batch.expires_at == batch.created_at + 31 * 86_400
    kept = client.files.retrieve(upload(client, line("a", "w1")))
    assert kept.expires_at == kept.created_at + 30 * 86_400


@pytest.fixture(scope="module")
def two_clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OpenAI, OpenAI]]:
    """Two callers of one service, each with a key of its own."""
    keys = ("key-of-a-first-caller", "key-of-another-caller")
    hashes = ",".join(hashlib.sha256(key.encode()).hexdigest() for key in keys)
    store = f"file://{tmp_path_factory.mktemp('guarded') / 'models'}"
    publish_all([TINY], store)
    environ = {"BLITZ_API_KEY_HASHES": hashes, "BLITZ_KEY_FILES": "4"}
    with started_service(store, environ=environ) as (url, process):
        wait_until_answered(f"{url}/health", process, 60, anything=False)
        first, second = (OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in keys)
        with first, second:
            yield first, second


def test_each_key_has_its_own(two_clients: tuple[OpenAI, OpenAI]) -> None:
    """What one made, the other neither sees nor reads, deletes, embeds or cancels."""
    mine, others = two_clients
    batch = ended(mine, begin(mine, upload(mine, line("a", "w1"))))
    assert read_lines(mine, batch.output_file_id).keys() == {"a"}
    refused: list[Callable[[], object]] = [
        lambda: others.batches.retrieve(batch.id),
        lambda: others.batches.cancel(batch.id),
        lambda: begin(others, batch.input_file_id),
    ]
    refused += [
        partial(operation, file_id)
        for file_id in (batch.input_file_id, batch.output_file_id or "")
        for operation in (others.files.retrieve, others.files.content, others.files.delete)
    ]
    for ask in refused:
        with pytest.raises(openai.NotFoundError):
            ask()
    assert [list(others.files.list()), list(others.batches.list())] == [[], []]
    assert {file.id for file in mine.files.list()} == {batch.input_file_id, batch.output_file_id}


def test_a_full_quota_is_no_error_to_repeat(two_clients: tuple[OpenAI, OpenAI]) -> None:
    """The SDK would send the file three times."""
    _, others = two_clients
    files = [upload(others, line("a", "w1")) for _ in range(4)]
    with pytest.raises(openai.PermissionDeniedError, match="4 files, and has 4") as caught:
        upload(others.with_options(max_retries=2), line("a", "w1"))
    assert caught.value.code == "quota_exceeded"
    for file in files:
        others.files.delete(file)


def test_every_batch_is_its_own(client: OpenAI) -> None:
    """To cancel one does not cancel the next over the same file, nor does it end one that has ended."""
    texts = [f"w{n % 400} w{n // 400}" for n in range(5000)]
    file_id = upload(client, *(line(str(n), text) for n, text in enumerate(texts)))
    for _ in range(10):  # until one is cancelled before it has ended
        cancelled, other = begin(client, file_id), begin(client, file_id)
        cancelled = client.batches.cancel(cancelled.id)
        if cancelled.status != "completed":
            break
    assert cancelled.status in ("cancelling", "cancelled")
    assert cancelled.cancelling_at is not None
    cancelled, other = ended(client, cancelled), ended(client, other)
    assert cancelled.status == "cancelled"
    assert cancelled.cancelled_at is not None
    assert other.status == "completed"
    assert other.request_counts is not None
    assert other.request_counts.completed == 5000
    assert client.batches.cancel(other.id).status == "completed"


def test_batches_are_listed_newest_first_in_pages(client: OpenAI) -> None:
    """The SDK goes on from page to page by itself."""
    file_id = upload(client, line("a", "w1"))
    begun = [ended(client, begin(client, file_id)) for _ in range(3)]
    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == [begun[2].id, begun[1].id]
    assert page.has_more
    assert page.data[0] == begun[2]
    everything = [batch.id for batch in client.batches.list(limit=2)]
    assert everything[:3] == [batch.id for batch in reversed(begun)]
    assert len(everything) == len(set(everything))


def test_files_are_kept_listed_and_deleted(client: OpenAI) -> None:
    """With their names and sizes; what was deleted is gone."""
    content = (line("a", "w1") + "\n").encode()
    made = client.files.create(file=("Anfragen für heute.jsonl", content), purpose="batch")
    assert (made.bytes, made.filename, made.purpose, made.object) == (
        len(content),
        "Anfragen für heute.jsonl",
        "batch",
        "file",
    )
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == content
    assert client.files.list().data[0] == made

    batch = ended(client, begin(client, made.id))
    output = client.files.retrieve(batch.output_file_id or "")
    assert output.purpose == "batch_output"
    assert output.id in [file.id for file in client.files.list(purpose="batch_output")]
    assert made.id not in [file.id for file in client.files.list(purpose="batch_output")]

    for file in (made, output):
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError) as caught:
        begin(client, made.id)
    assert caught.value.param == "input_file_id"


def test_what_cannot_be_is_refused_with_its_parameter(client: OpenAI) -> None:
    """As OpenAI does it, so that the SDK's exceptions say the same."""
    file_id = upload(client, line("a", "w1"))
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
    assert caught.value.param == "endpoint"
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=b"x", purpose="fine-tune")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_of_mine")
    with pytest.raises(openai.APIStatusError) as too_large:
        client.files.create(file=b"x" * 1_000_001, purpose="batch")
    assert too_large.value.status_code == 413
    assert np.all([file.bytes <= 1_000_000 for file in client.files.list(purpose="batch")])


def azure(url: str) -> OpenAI:
    return AzureOpenAI(azure_endpoint=url, api_key="any", api_version="2024-10-21", max_retries=0)


def azure_v1(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/openai/v1/", api_key="any", max_retries=0)


@pytest.mark.parametrize("endpoint", ["/embeddings", "/v1/embeddings"])
@pytest.mark.parametrize("open_client", [azure, azure_v1])
def test_azure_s_clients_do_the_same_at_azure_s_paths(
    client: OpenAI, open_client: Callable[[str], OpenAI], endpoint: Any
) -> None:
    """Files and batches, from the upload to the end; lines name either URL, the batch its own again."""
    texts = ["w1 w2", "w3"]
    lines = [line(str(n), text) for n, text in enumerate(texts)]
    lines[0] = lines[0].replace("/v1/embeddings", "/embeddings")
    lines.append(lines[0].replace("/embeddings", "/chat/completions").replace('"0"', '"x"'))
    with open_client(str(client.base_url).removesuffix("/v1/")) as other:
        file_id = upload(other, *lines)
        batch = other.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h")
        batch = ended(other, batch)
        assert (batch.status, batch.endpoint) == ("completed", endpoint)
        answers = read_lines(other, batch.output_file_id)
        found = [answers[key]["response"]["body"]["data"][0]["embedding"] for key in ("0", "1")]
        assert nearly(found, TINY.vectors(texts))
        [error] = read_lines(other, batch.error_file_id).values()
        assert error["error"]["message"] == "url must be /v1/embeddings or /embeddings"
        assert batch.id in [each.id for each in other.batches.list(limit=5)]
        assert other.batches.cancel(batch.id).status == "completed"
        assert client.batches.retrieve(batch.id) == batch  # the same files and batches
        assert other.files.retrieve(file_id).filename == "requests.jsonl"
        assert other.files.delete(file_id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file_id)
        wrong: Any = "/chat/completions"
        with pytest.raises(openai.BadRequestError) as caught:
            other.batches.create(input_file_id=file_id, endpoint=wrong, completion_window="24h")
        assert caught.value.param == "endpoint"
