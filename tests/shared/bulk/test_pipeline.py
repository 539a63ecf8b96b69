"""A bulk job over a storage in memory: once in effect, whatever dies, comes twice or comes late."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import zstandard
from msgspec.structs import replace

from shared.bulk import control, jobs, pipeline
from shared.bulk.control import SPLIT
from shared.bulk.inputs import source
from shared.bulk.inputs.allowance import Limits
from shared.bulk.jobs import Counts, StepMessage
from shared.bulk.options import SIDECAR, JobOptions
from shared.bulk.steps import embedding, relay
from shared.bulk.steps.cutting import STALLED_S
from shared.bulk.steps.expiry import KEPT_S
from shared.bulk.steps.upkeep import MISSED_S, STUCK_S
from shared.cards import Device, Share, Staged
from shared.contracts import EmbedRequest, EmbedResult
from shared.errors import BackendFailed, BlitzError, InvalidInput
from shared.storage import shown_names
from shared.storage.blobs import BlobStat
from tests.fakes.catalogue import bulk_cards
from tests.fakes.embedder import bytes_vector
from tests.fakes.memory import Died, drain
from tests.shared.bulk.world import INPUT, KEY, ROWS, World, batch_line

pytestmark = pytest.mark.anyio


async def finished(**metadata: str) -> World:
    world = World()
    await world.put(INPUT, KEY, **metadata)
    await world.drain()
    return world


async def test_every_row_has_its_vector_and_its_own_fields() -> None:
    """In the input's order, with ids, fields and token counts; intermediates are gone."""
    world = await finished()
    table = world.table()
    assert table["id"].to_pylist() == [f"id-{row}" for row in range(ROWS)]
    assert table["fields"].to_pylist()[7] == '{"n":7}'
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, [bytes_vector(f"text {row}") for row in range(ROWS)])
    (manifest,) = world.manifests()
    assert manifest.status.status == "completed"
    assert manifest.status.request_counts == jobs.Counts(ROWS, ROWS, 0)
    assert manifest.tokens == 3 * ROWS
    folder = f"jobs/{manifest.job.id}/"
    left = {key.removeprefix(folder) for key in world.memory.out.blobs if key.startswith("jobs/")}
    assert left == {"job.json", "split.json", "status.json", "manifest.json"}
    assert not any(key.startswith("active/") for key in world.memory.out.blobs)


@pytest.mark.parametrize("missed", range(4))
async def test_a_job_that_ends_while_it_is_looked_at_has_its_tokens_too(
    missed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever read is the first to find its manifest: completed is never told without them."""
    world = await finished()
    (manifest,) = world.manifests()
    out = world.memory.out
    really_read, left = out.read, missed

    def read(key: str) -> bytes | None:
        nonlocal left
        if key.endswith("/manifest.json") and left:
            left -= 1
            return None
        return really_read(key)

    monkeypatch.setattr(out, "read", read)
    progress = control.read_progress(out, manifest.job.id)
    assert progress.status
    assert (progress.status.status == "completed") == (progress.tokens == 3 * ROWS)


async def test_the_revision_is_pinned_when_the_job_is_made() -> None:
    """A model published in the middle does not get half of the rows."""
    world = World()
    await world.begin()
    world.catalogue.listed = bulk_cards(revision="r2")
    await world.drain()
    assert {request.model for request in world.backend.requests} == {"mini@r1"}


async def test_a_staged_revision_gets_no_row() -> None:
    """Whatever its share: a job has one revision, the current one, and so has the file it leaves."""
    world = World()
    share = Share(revision="r2", beside="r1", percent=100)
    world.catalogue.listed = [
        replace(card, staged=Staged(replace(card, revision="r2"), share)) for card in bulk_cards()
    ]
    await world.begin()
    await world.drain()
    assert {request.model for request in world.backend.requests} == {"mini@r1"}


async def test_bad_and_refused_rows_go_to_the_error_file_and_the_rest_goes_on() -> None:
    """By line, with code and reason, and never the text."""
    world = World()
    world.backend.refuses = {"text 5": InvalidInput("this model does not read that")}
    await world.put(INPUT + b"not json\n" + b'{"id": "z"}\n')
    await world.drain()
    errors = [json.loads(line) for line in world.outputs()[f"{KEY}.errors.jsonl"].splitlines()]
    assert [(e["line"], e["code"]) for e in errors] == [
        (6, "input_refused"),
        (ROWS + 1, "invalid_json_line"),
        (ROWS + 2, "missing_text"),
    ]
    assert "text 5" not in json.dumps(errors)
    assert world.table().num_rows == ROWS - 1
    (manifest,) = world.manifests()
    assert manifest.status.request_counts == jobs.Counts(ROWS + 2, ROWS - 1, 3)


async def test_a_chunk_that_always_fails_becomes_failed_rows_and_the_job_ends() -> None:
    """Five tries, then its rows are in the error file; the other chunks have their vectors."""
    world = World()
    world.backend.refuses = {"text 5": BackendFailed("broken")}
    await world.put()
    await world.drain()
    assert world.table().num_rows == ROWS - 512
    assert len(world.outputs()[f"{KEY}.errors.jsonl"].splitlines()) == 512
    (manifest,) = world.manifests()
    assert manifest.status.status == "completed"
    assert manifest.status.request_counts == jobs.Counts(ROWS, ROWS - 512, 512)


async def test_an_overloaded_backend_is_waited_for() -> None:
    """More often than a message has tries: it is no failure."""
    world = World()
    world.backend.overloaded = 12
    await world.put()
    await world.drain()
    assert world.table().num_rows == ROWS


@pytest.mark.parametrize(
    ("key", "data", "metadata", "reason"),
    [
        ("nope/texts.jsonl", INPUT, {}, "there are: mini"),
        ("ranker/texts.jsonl", INPUT, {}, "is a cross-encoder"),
        (KEY, INPUT, {"blitz_dimensions": "9"}, "dimensions must be at most 4"),
        (KEY, INPUT, {"blitz_dtype": "int4"}, "the option dtype must be one of float32, float16, int8"),
        (
            KEY,
            INPUT,
            {"blitz_kind": "xml"},
            "the option kind must be one of jsonl, batch, csv, tsv, parquet, text",
        ),
        (KEY, INPUT, {"blitz_colour": "red"}, "there is no option colour; there are: model, dim"),
        (KEY, INPUT, {"blitz_dimensions": "x"}, "dimensions must be a whole number from 1 to"),
        (KEY, INPUT, {"blitz_truncate": "x"}, "option truncate must be true or false, not a text"),
        (KEY, INPUT, {"blitz_prompt_name": "passage"}, "it has: document, query"),
        (KEY, b"[1]", {}, "JSON array"),
        *(
            (f"{folder}/texts.jsonl", INPUT, {"blitz_model": "mini"}, f"{folder} is the service's own")
            for folder in ("active", "batches", "events", "files", "jobs", "warmup")
        ),
    ],
)
async def test_an_input_that_cannot_be_a_job_fails_with_the_reason(
    key: str, data: bytes, metadata: dict[str, str], reason: str
) -> None:
    """Once; nothing is embedded, and nothing is tried again."""
    world = World()
    status = await world.rejected(data, key, **metadata)
    assert reason in str(status.error)
    assert world.backend.requests == []
    world.now += MISSED_S + 1
    await world.bulk().reconcile()
    assert world.memory.queue(SPLIT).depth() == 0


ALIASES = {"BAAI/bge-m3": "mini", "BAAI": "third", "small": "mini", "cross": "ranker", "other": "mini"}
ASKS = b'{"custom_id":"%b","method":"POST","url":"/v1/embeddings","body":{"model":"%b","input":"x"}}\n'


@pytest.mark.parametrize(
    ("key", "metadata", "sidecar", "default", "model"),
    [
        ("small/a.txt", {}, None, "", "mini"),
        ("BAAI/bge-m3/a.txt", {}, None, "", "mini"),
        ("BAAI/bge-m3/2026/a.txt", {}, None, "", "mini"),
        ("BAAI/bge-m3.txt", {}, None, "", "third"),
        ("BAAI/bge/a.txt", {}, None, "", "third"),
        ("mini/small/a.txt", {}, None, "", "mini"),
        ("other/a.txt", {}, None, "", "mini"),  # there is such a model as well
        ("third/a.txt", {"blitz_model": "BAAI/bge-m3"}, None, "", "mini"),
        ("third/a.txt", {}, b'{"model": "BAAI/bge-m3"}', "", "mini"),
        ("a.txt", {"blitz_model": "small"}, b'{"model": "BAAI"}', "", "third"),
        ("a.txt", {}, None, "BAAI/bge-m3", "mini"),
        ("a.txt", {}, None, "third", "third"),
    ],
)
async def test_an_alias_is_a_name_wherever_an_input_names_a_model(
    key: str, metadata: dict[str, str], sidecar: bytes | None, default: str, model: str
) -> None:
    """Its slashes are folders; the longest that fits counts. The job has the model's own name."""
    world = World()
    world.catalogue.listed = bulk_cards("third", "other")
    world.aliases, world.default_model = ALIASES, default
    if sidecar is not None:
        world.memory.source.write(key + SIDECAR, sidecar)
    await world.put(b"one\ntwo\n", key, **metadata)
    await world.drain()
    (manifest,) = world.manifests()
    assert (manifest.status.status, manifest.status.model) == ("completed", model)
    assert {request.model for request in world.backend.requests} == {f"{model}@r1"}
    assert f"{key}.parquet" in world.outputs()


@pytest.mark.parametrize("folder", ["", "mini/", "BAAI/bge-m3/"])
async def test_lines_of_a_batch_may_name_the_model_by_any_of_its_names(folder: str) -> None:
    """They are of one model; each answer names it as its line did."""
    world = World()
    world.catalogue.listed, world.aliases = bulk_cards("third"), ALIASES
    asked = [(b"a", b"BAAI/bge-m3"), (b"b", b"mini"), (b"c", b"small"), (b"d", b"third")]
    await world.put(b"".join(ASKS % each for each in asked), f"{folder}a.jsonl")
    await world.drain()
    answers = [json.loads(line) for line in world.outputs()[f"{folder}a.jsonl.jsonl"].splitlines()]
    named = {each["custom_id"]: each["response"]["body"]["model"] for each in answers}
    assert named == {"a": "BAAI/bge-m3", "b": "mini", "c": "small"}
    assert b"all lines of a batch use one model" in world.outputs()[f"{folder}a.jsonl.errors.jsonl"]


@pytest.mark.parametrize(
    ("key", "metadata", "reason"),
    [
        (
            "BAAI/bge-m4/a.txt",
            {},
            "model 'BAAI'; there are: BAAI/bge-m3, jobs/x, mini, other",
        ),
        ("a.txt", {"blitz_model": "org/nope"}, "no embedding model 'org/nope'; there are: BAAI/bge-m3"),
        ("cross/a.txt", {}, "ranker is a cross-encoder, which has no vectors"),
        ("lost/a.txt", {}, "no embedding model 'gone'; there are: BAAI/bge-m3, jobs/x"),
        ("jobs/x/a.txt", {}, "the folder jobs is the service's own"),
    ],
)
async def test_what_is_no_name_is_refused_with_all_names(
    key: str, metadata: dict[str, str], reason: str
) -> None:
    """Aliases among them, but for those of models that are not there, or embed nothing."""
    world = World()
    world.catalogue.listed = bulk_cards("other")
    world.aliases = {"BAAI/bge-m3": "mini", "small": "mini", "cross": "ranker", "lost": "gone"}
    world.aliases["jobs/x"] = "mini"
    assert reason in str((await world.rejected(b"one\n", key, **metadata)).error)


@pytest.mark.parametrize(
    ("data", "key", "first", "lines"),
    [
        (b"one\n", "mini/a.txt", False, 1),
        (b"one\n", "mini/a.txt", True, 0),
        (b"one\n", "nope/a.txt", False, 1),  # a job that failed, and would not have with its sidecar
        (None, "mini/a.txt", True, 0),
    ],
)
async def test_a_sidecar_that_comes_after_its_file_is_told_of(
    data: bytes | None,
    key: str,
    first: bool,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, however often its event comes; one that was there before is read, and so is no news."""
    monkeypatch.setattr(shown_names, "_told", set())
    world = World()
    if first:
        world.memory.source.write(key + SIDECAR, b'{"dtype": "int8"}')
    if data is not None:
        await world.put(data, key)
        await world.bulk().notice(key, world.memory.source.blobs[key][1].etag)
        await world.drain()
    if not first:
        world.memory.source.write(key + SIDECAR, b'{"model": "mini"}')
    for _ in range(2):
        await world.bulk().notice(key + SIDECAR, "any")
    said = [record.message for record in caplog.records if SIDECAR in record.message]
    assert len(said) == lines
    assert all(f'"{key}{SIDECAR}" came after its file, whose job was made' in line for line in said)
    assert world.memory.queue(SPLIT).depth() == 0


CUT_GZIP = gzip.compress(INPUT, mtime=0)[:-2000]
OPEN_QUOTE = b"id,text\n" + b"".join(
    b"%d,%brow number %d\n" % (n, b'"' if n == 10 else b"", n) for n in range(1, 3000)
)


@pytest.mark.parametrize(
    ("key", "data", "reason"),
    [
        ("mini/texts.jsonl.gz", CUT_GZIP, "ends too early or is damaged in line "),
        ("mini/a.csv", OPEN_QUOTE, "the quote that opens in line 11 is never closed"),
        (KEY, INPUT[:-9], f"ends in the middle of line {ROWS}, it is cut off"),
        ("mini/a.csv", b"SQLite format 3\0" + bytes(500), "the file is an SQLite database"),
        ("mini/a.txt", b"GIF89a\x01\0\x01\0", "the file is a GIF image"),
    ],
)
async def test_a_job_whose_rows_cannot_be_accounted_for_fails(
    key: str, data: bytes, reason: str
) -> None:
    """With the reason, also if chunks of it were written before; no output passes for a whole one."""
    world = World()
    status = await world.rejected(data, key)
    assert reason in str(status.error)
    assert world.outputs() == {}
    folder = f"jobs/{status.id}/"
    left = {key.removeprefix(folder) for key in world.memory.out.blobs if key.startswith(folder)}
    assert left == {"job.json", "status.json", "manifest.json"}


@pytest.mark.parametrize(
    ("key", "data"),
    [
        (KEY, INPUT + b'{"id": "z"}\nno JSON\n\n{"text": ""}\n{"text": "x", "id": true}\n{"text": "y"}'),
        ("mini/a.csv", b'id,text\n1,a\n2\n3,b,c\n4,"d\ne"\n5,"f\ng",h\n6,\n\n7,\xff\n8,i'),
        ("mini/a.tsv", b'sep=;\r\nid;text\r\n1;a\r\n2\r\n3;"x;y"\r\n'),
        ("mini/a.txt", b"one\n\n \ntwo\nth\xffree\n\x00four, with a zero byte\nfive"),
        ("mini/a.jsonl.gz", gzip.compress(INPUT + b"[]\n")),
        ("mini/b.jsonl", b"".join(b'{"custom_id": "%d", "body": {}}\n' % n for n in range(3)) * 2),
    ],
)
async def test_rows_in_are_rows_out_and_rows_in_the_error_file(key: str, data: bytes) -> None:
    """Counted with other means than the readers': lines by splitting them, CSV by Python's module."""
    world = World()
    await world.put(data, key, blitz_model="mini", **({"blitz_kind": "jsonl"} if "b.js" in key else {}))
    await world.drain()
    [manifest] = world.manifests()
    assert manifest.status.status == "completed"
    plain = gzip.decompress(data) if key.endswith(".gz") else data
    if key.endswith((".csv", ".tsv")):
        text = plain.decode("latin-1").removeprefix("sep=;\r\n")
        delimiter = ";" if text != plain.decode("latin-1") else ","
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
        there = len(rows) - 1
    else:
        there = sum(1 for line in plain.split(b"\n") if line.strip())
    outputs = world.outputs()
    errors = outputs.get(f"{key}.errors.jsonl", b"").splitlines()
    table = world.table(f"{key}.parquet")
    assert table.num_rows + len(errors) == there
    counts = manifest.status.request_counts
    assert (counts.total, counts.completed, counts.failed) == (there, table.num_rows, len(errors))
    lines = [json.loads(error)["line"] for error in errors]
    assert len(set(lines)) == len(lines)


async def test_an_input_that_names_no_model_gets_the_only_one() -> None:
    """As a request does; where there are several, it is told how to name one of them."""
    world = World()
    await world.put(b'{"text": "a"}\n', "texts.jsonl")
    await world.drain()
    assert world.table("texts.jsonl.parquet").num_rows == 1
    world.catalogue.listed = bulk_cards("other")
    await world.put(b'{"text": "a"}\n', "more.jsonl")
    await world.put(batch_line("a", "a"), "batch.jsonl")
    await world.drain()
    errors = {m.job.source: str(m.status.error) for m in world.manifests() if m.status.error}
    assert set(errors) == {"more.jsonl", "batch.jsonl"}
    assert "put the file into a folder of the model's name" in errors["more.jsonl"]
    assert "more.jsonl.job.json before the file; there are: mini, other" in errors["more.jsonl"]
    assert "set body.model in the requests" in errors["batch.jsonl"]


@pytest.mark.parametrize("data", [b"\n", b"no JSON\n"])
async def test_a_batch_without_a_valid_request_fails(data: bytes) -> None:
    """Whether it has other lines or none, with the reason."""
    status = await World().rejected(data, "batch.jsonl", blitz_kind="batch")
    reason = "line 1: the line is not a JSON object" if data.strip() else "the file has no request"
    assert reason in str(status.error)


@pytest.mark.parametrize(
    ("key", "data", "metadata", "options"),
    [
        ("nope/a.csv", b"text\na\n", {}, JobOptions("nope")),
        ("mini/a.pdf", b"%PDF-1.7", {"blitz_dtype": "int8"}, JobOptions("mini", dtype="int8")),
        ("a.jsonl", b"[1]", {}, JobOptions()),
        ("mini/a.csv", b"text\na\n", {"blitz_dtype": "int4"}, JobOptions()),
    ],
)
async def test_a_rejected_input_s_status_tells_what_was_found_of_it(
    key: str, data: bytes, metadata: dict[str, str], options: JobOptions
) -> None:
    """Model and options; no model, where none was found or the options are wrong."""
    status = await World().rejected(data, key, **metadata)
    assert (status.model, status.options) == (options.model or None, options)


@pytest.mark.parametrize("there", [True, False])
async def test_the_status_tells_the_options_and_whether_there_was_a_sidecar(there: bool) -> None:
    """So that one that came after its file is missed; while the job runs and when it has ended."""
    world = World()
    sidecar = b'{"dtype": "int8"}'
    if there:
        world.memory.source.write(f"{KEY}.job.json", sidecar)
    id_ = await world.begin()
    world.memory.source.write(f"{KEY}.job.json", sidecar)
    options = {"model": "mini", **({"dtype": "int8"} if there else {})}
    for _ in range(2):
        status = json.loads(world.memory.out.read(f"jobs/{id_}/status.json") or b"")
        assert (status["sidecar"], status["options"]) == (there, options)
        await world.drain()
    assert status["status"] == "completed"


@pytest.mark.parametrize(
    ("sidecar", "reason", "field"),
    [
        (b"", f"{KEY}.job.json is not a JSON object", None),
        (b"[1]", f"{KEY}.job.json is JSON, but no object", None),
        (b'{"colour": "red"}', "there are: model, dimensions, dtype", "colour"),
        (b'{"dtype": "int4"}', "one of float32, float16, int8", "dtype"),
        (b'{"dimensions": 0}', "a whole number from 1", "dimensions"),
    ],
)
async def test_a_sidecar_that_cannot_be_read_is_told_of(
    sidecar: bytes, reason: str, field: str | None
) -> None:
    """Which file it is, which option, and what there is to choose from."""
    world = World()
    world.memory.source.write(f"{KEY}.job.json", sidecar)
    await world.put()
    await world.drain()
    (manifest,) = world.manifests()
    assert reason in str(manifest.status.error)
    assert manifest.status.field == field


async def test_the_status_for_people_is_in_progress_once_all_was_read() -> None:
    """With the total, before any chunk is done."""
    world = World()
    id_ = await world.begin()
    data = world.memory.out.read(f"jobs/{id_}/status.json")
    assert data
    status = jobs.decode(data, jobs.Status)
    assert (status.status, status.request_counts) == ("in_progress", jobs.Counts(ROWS, 0, 0))


async def test_reconcile_leaves_alone_what_is_no_job() -> None:
    """Somebody else's blob does not keep jobs behind it from being looked at."""
    world = World()
    world.memory.out.write("active/a.parquet", b"PAR1")
    world.memory.out.write("active/z", jobs.encode(StepMessage(job="z", key=KEY, container="source")))
    world.now += MISSED_S + 1
    await world.bulk().reconcile()
    assert world.memory.queue(SPLIT).depth() == 1


async def test_options_come_from_sidecar_metadata_and_path_in_that_order() -> None:
    """The nearest to the file wins; a sidecar is no input of its own."""
    world = World()
    sidecar = f"other/texts.jsonl{SIDECAR}"
    world.memory.source.write(sidecar, b'{"model": "mini", "format": "jsonl", "dtype": "int8"}')
    stat = world.memory.source.stat(sidecar)
    assert stat
    await world.bulk().submit(sidecar, stat.etag)
    assert world.memory.queue(SPLIT).depth() == 0
    await world.put(key="other/texts.jsonl", blitz_model="nope", blitz_dimensions="2")
    await world.drain()
    line = json.loads(world.outputs()["other/texts.jsonl.jsonl"].splitlines()[0])
    assert len(line["embedding"]) == 2
    assert "scale" in line  # int8


async def test_a_numpy_file_comes_with_its_ids() -> None:
    """Row i of the matrix is line i of the ids."""
    world = await finished(blitz_format="npy", blitz_dtype="float16")
    vectors = np.load(io.BytesIO(world.outputs()[f"{KEY}.npy"]))
    assert (vectors.shape, vectors.dtype) == ((ROWS, 4), np.float16)
    ids = [json.loads(line)["id"] for line in world.outputs()[f"{KEY}.ids.jsonl"].splitlines()]
    assert ids == [f"id-{row}" for row in range(ROWS)]


async def test_openai_batch_lines_get_openais_answers() -> None:
    """A line may hold several texts; the answer has them in order."""
    world = World()
    lines = [
        {
            "custom_id": f"c{n}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "mini", "input": x},
        }
        for n, x in enumerate(["one", ["two", "three"]])
    ]
    await world.put(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    await world.drain()
    answers = [json.loads(line) for line in world.outputs()[f"{KEY}.jsonl"].splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["c0", "c1"]
    data = answers[1]["response"]["body"]["data"]
    assert [item["embedding"] for item in data] == [bytes_vector(x).tolist() for x in ("two", "three")]


async def answered(world: World, *lines: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vectors and errors of a batch, by custom_id."""
    await world.put(b"".join(lines))
    await world.drain()
    files = [world.outputs().get(f"{KEY}.{end}", b"").splitlines() for end in ("jsonl", "errors.jsonl")]
    answers, errors = (
        {answer["custom_id"]: answer for answer in map(json.loads, file)} for file in files
    )
    vectors = {
        id: [item["embedding"] for item in answer["response"]["body"]["data"]]
        for id, answer in answers.items()
    }
    return vectors, {id: answer["error"] for id, answer in errors.items()}


async def test_each_request_of_a_batch_is_read_with_its_own_prompt() -> None:
    """Mixed ones keep their order; a prompt that the model lacks is that request's error."""
    vectors, errors = await answered(
        World(),
        batch_line("a", "a", prompt_name="query"),
        batch_line("b", ["b", "bb"]),
        batch_line("c", ["c", "cc"], prompt_name="nobody's"),
        batch_line("d", ["d", "dd"], prompt_name="query"),
        batch_line("e", "e", prompt_name="document"),
        batch_line("f", "f", prompt_name=""),
    )
    expected = {
        "a": ["aquery"],
        "b": ["b", "bb"],
        "d": ["dquery", "ddquery"],
        "e": ["edocument"],
        "f": ["f(none)"],
    }
    assert vectors == {
        id: [bytes_vector(text).tolist() for text in texts] for id, texts in expected.items()
    }
    assert list(vectors) == list(expected)
    assert list(errors) == ["c"]
    assert errors["c"]["line"] == 3
    assert "body.prompt_name: no such prompt" in errors["c"]["message"]


async def test_a_request_of_a_batch_may_forbid_to_cut_its_texts() -> None:
    """Then one that is too long is an error; others are cut."""
    long = "x" * 50
    vectors, errors = await answered(
        World(),
        batch_line("cut", long),
        batch_line("refused", ["short", long], truncate=False),
        batch_line("short", "short", truncate=False),
    )
    assert list(vectors) == ["cut", "short"]
    assert {id: error["message"] for id, error in errors.items()} == {"refused": "too many tokens"}


async def test_a_job_s_prompt_and_truncation_are_those_of_all_rows() -> None:
    """As its metadata or sidecar say."""
    world = World()
    rows = [{"text": "a"}, {"text": "x" * 50}]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    await world.put(data, blitz_prompt_name="document", blitz_truncate="false")
    await world.drain()
    table = world.table()
    assert table["text"].to_pylist() == ["a"]
    assert table["vector"].to_pylist() == [bytes_vector("adocument").tolist()]
    (error,) = world.outputs()[f"{KEY}.errors.jsonl"].splitlines()
    assert json.loads(error)["message"] == "too many tokens"


@pytest.mark.parametrize(
    ("sidecar", "metadata"), [(b'{"prompt_name": ""}', {}), (None, {"blitz_prompt_name": '""'})]
)
async def test_a_job_may_switch_the_default_prompt_off(
    sidecar: bytes | None, metadata: dict[str, str]
) -> None:
    """With an empty name, as a request may; a blob's metadata cannot be empty, and quote it."""
    world = World()
    if sidecar is not None:
        world.memory.source.write(f"{KEY}{SIDECAR}", sidecar)
    await world.put(b'{"text": "a"}\n', **metadata)
    await world.drain()
    assert world.table()["vector"].to_pylist() == [bytes_vector("a(none)").tolist()]


async def test_options_that_are_not_given_leave_a_job_s_id_as_it_was() -> None:
    """So that a newer service goes on with the jobs of an older one."""
    stat = BlobStat("k", 1, "e", 0.0, {})
    content = b'["source","k","e",{"model":"mini"},"r1"]'
    plain = jobs.job_id("source", stat, JobOptions("mini"), "r1")
    assert plain == sha256(content).hexdigest()[:24]
    assert jobs.job_id("source", stat, JobOptions("mini", prompt_name="query"), "r1") != plain
    assert jobs.job_id("source", stat, JobOptions("mini", truncate=False), "r1") != plain


async def test_an_output_without_a_row_has_the_input_s_columns() -> None:
    """All rows were refused by the model."""
    world = World()
    world.backend.refuses = {text: InvalidInput("not that") for text in ("a", "b")}
    await world.put(b"text,price,embedding\na,1,x\nb,2,y\n", "mini/texts.csv")
    await world.drain()
    table = world.table("mini/texts.csv.parquet")
    assert table.num_rows == 0
    names = ["row", "id", "text", "price", "input_embedding", "tokens", "truncated", "vector"]
    assert table.column_names == names
    errors = world.outputs()["mini/texts.csv.errors.jsonl"].splitlines()
    assert {error["code"] for error in map(json.loads, errors)} == {"input_refused"}
    (manifest,) = world.manifests()
    assert manifest.status.request_counts == jobs.Counts(2, 0, 2)


@pytest.mark.parametrize("name", ["texts.csv", "texts.jsonl"])
@pytest.mark.parametrize("format", ["parquet", "jsonl", "npy"])
async def test_an_output_of_an_input_without_one_readable_row_can_be_read(
    name: str, format: str
) -> None:
    """It has no row, and the service's columns alone: what the input's rows have nobody knows."""
    world = World()
    bad = b'{"text": ""}\n' * 3 if name == "texts.jsonl" else b"text,price\n,1\n,2\n"
    await world.put(bad + b"\xff,1\n\xff,2\n", f"mini/{name}", blitz_format=format)
    await world.drain()
    (manifest,) = world.manifests()
    assert manifest.status.status == "completed"
    assert manifest.status.request_counts.failed >= 2
    output = f"mini/{name}.{format}"
    assert manifest.status.output == output
    match format:
        case "parquet":
            table = world.table(output)
            assert table.num_rows == 0
            assert table.column_names == ["row", "id", "text", "tokens", "truncated", "vector"]
        case "npy":
            assert np.load(io.BytesIO(world.outputs()[output])).shape == (0, 4)
            assert world.outputs()[f"mini/{name}.ids.jsonl"] == b""
        case _:
            assert world.outputs()[output] == b""


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_batch_without_an_answer_has_no_output_file(cancelled: bool) -> None:
    """Cancelled before any vector, or with failed requests alone: as at OpenAI."""
    world = World()
    world.backend.refuses = {"a": InvalidInput("not that")}
    id_ = await world.begin(batch_line("a", "a"))
    if cancelled:
        control.cancel_job(world.memory.storage, id_)
    await world.drain()
    (manifest,) = world.manifests()
    status = manifest.status
    assert (status.status, status.output) == ("cancelled" if cancelled else "completed", None)
    assert status.errors == (None if cancelled else f"{KEY}.errors.jsonl")
    assert [output.key for output in manifest.outputs] == ([status.errors] if status.errors else [])
    assert list(world.outputs()) == [output.key for output in manifest.outputs]


@pytest.mark.parametrize(("devices", "queue"), [(("cpu",), "bulk-cpu"), (("cpu", "gpu"), "bulk-gpu")])
async def test_large_jobs_go_to_the_gpu_where_there_is_one(
    devices: tuple[Device, ...], queue: str
) -> None:
    """The routing policy decides; a job stays on one device."""
    world = World(devices)
    await world.begin()
    assert {name for name, q in world.memory.queues.items() if q.depth()} == {queue}


async def test_events_that_come_twice_late_or_in_any_order_change_nothing() -> None:
    """The same event three times, newest messages first, and once more at the end: the same bytes."""
    expected = (await finished()).outputs()
    world = World()
    etag = await world.put()
    for _ in range(2):
        await world.bulk().submit(KEY, etag)
    await world.drain(newest_first=True)
    await world.bulk().submit(KEY, etag)
    await world.drain()
    assert world.outputs() == expected
    assert len(world.manifests()) == 1


async def test_an_old_event_of_a_changed_input_does_nothing() -> None:
    """The new version has an event of its own."""
    world = World()
    await world.put(b'{"text": "old"}\n')
    await world.put(b'{"text": "new"}\n')
    await world.drain()
    assert world.table()["text"].to_pylist() == ["new"]
    assert len(world.manifests()) == 1


async def test_an_older_version_that_ends_last_does_not_overwrite_the_newer_output() -> None:
    """It fails, and says why."""
    world = World()
    await world.begin(b'{"text": "old"}\n')
    late = world.take("bulk-cpu")
    await world.put(b'{"text": "new"}\n')
    await world.drain()
    await world.bulk().embed(late)
    await world.drain()
    assert world.table()["text"].to_pylist() == ["new"]
    assert sorted(m.status.status for m in world.manifests()) == ["completed", "failed"]


async def test_an_input_that_changes_while_it_is_read_fails_that_job_only() -> None:
    """No output holds rows of both versions."""
    world = World()
    await world.put()
    read_range = world.memory.source.read_range
    reads = 0

    def changing(key: str, start: int, length: int, *, etag: str) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 2:  # the first is the head
            world.memory.source.write(KEY, b'{"text": "new"}\n')
        return read_range(key, start, length, etag=etag)

    world.memory.source.read_range = changing  # type: ignore[method-assign]
    await world.drain()
    (manifest,) = world.manifests()
    assert manifest.status.status == "failed"
    world.now += MISSED_S + 1
    await world.bulk().reconcile()
    await world.drain()
    assert world.table()["text"].to_pylist() == ["new"]


@pytest.mark.parametrize("in_flight", [relay.IN_FLIGHT, 1])
async def test_a_process_may_die_at_any_operation(
    in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every operation of a whole run: dead there, then redelivered: the same bytes, one manifest."""
    monkeypatch.setattr(relay, "IN_FLIGHT", in_flight)
    done = await finished()
    expected, operations = done.outputs(), done.memory.fuse.used
    for operation in range(operations):
        world = World()
        world.memory.source.write(KEY, INPUT)
        stat = world.memory.source.stat(KEY)
        assert stat
        world.memory.fuse.left = operation
        try:
            await world.bulk().submit(KEY, stat.etag)
            await world.drain()
        except Died:
            pass
        world.memory.kill()
        await world.drain()
        for _ in range(4):  # where a message was never sent, time has to pass
            world.now += MISSED_S + STUCK_S
            await world.bulk().reconcile()
            await world.drain()
        assert world.outputs() == expected, operation
        assert [m.status.status for m in world.manifests()] == ["completed"], operation
        assert not any(key.startswith("active/") for key in world.memory.out.blobs), operation


async def test_cancelling_ends_a_job_with_what_has_vectors() -> None:
    """Chunks not begun are dropped; the status says so; messages that come later do nothing."""
    world = World()
    job_id = await world.begin()
    chunk = world.take("bulk-cpu")
    await world.bulk().embed(chunk)
    control.cancel_job(world.memory.storage, job_id)
    status = control.read_status(world.memory.out, job_id)
    assert status
    assert status.status == "cancelling"
    world.memory.queue("bulk-cpu").send(chunk)
    await world.drain()
    status = control.read_status(world.memory.out, job_id)
    assert status
    assert status.status == "cancelled"
    assert world.table().num_rows == 512
    assert len(world.backend.requests) == 1


LINE = b'{"text": "x"}\n'


@pytest.mark.parametrize(
    ("limits", "name", "data", "reason"),
    [
        (Limits(10**9, 1000), KEY, LINE * 1001, "more than 1000 rows"),
        (Limits(10**9, 1000), KEY, b"{}\n" * 1001, "more than 1000 rows"),
        (Limits(10_000, 10**9), KEY, LINE * 1000, "more than 10000 bytes as it is"),
        (Limits(100_000, 10**9), KEY, gzip.compress(LINE * 9000), "more than 100000 bytes unpacked"),
        (Limits(100_000, 10**9), "mini/a.txt", b"x\n" * 9000, "100000 bytes cut into chunks"),
    ],
    ids=["rows", "bad rows", "size", "unpacked", "chunks"],
)
async def test_a_job_over_a_limit_fails_with_the_limit_and_leaves_nothing(
    limits: Limits, name: str, data: bytes, reason: str
) -> None:
    """Also if it is found after chunks were written; the setting is named."""
    world = World()
    world.limits = limits
    status = await world.rejected(data, name)
    assert status.error
    assert reason in status.error
    assert "BLITZ_MAX_JOB_" in status.error
    assert not [key for key in world.memory.out.blobs if "/chunks/" in key or "/bad/" in key]
    assert not [key for key in world.memory.out.blobs if key.startswith("active/")]


async def test_what_grows_a_thousand_times_is_refused_whatever_the_limit() -> None:
    """No text does; a small file may."""
    world = World()
    world.limits = Limits(10**9, 10**9, free_bytes=1_000_000)
    status = await world.rejected(zstandard.ZstdCompressor().compress(LINE * 100_000), KEY)
    assert status.error
    assert "more than 1000000 bytes unpacked, which is more than 1000 times its size" in status.error


def slow_reads(world: World, seconds: float, then: Callable[[int], None] = lambda reads: None) -> None:
    """Each block of the input takes so long by the world's clock."""
    read_range, reads = world.memory.source.read_range, 0

    def slow(key: str, start: int, length: int, *, etag: str) -> bytes:
        nonlocal reads
        reads += 1
        world.now += seconds
        then(reads)
        return read_range(key, start, length, etag=etag)

    world.memory.source.read_range = slow  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "line", [b"\n", LINE, b"x"], ids=["blank lines", "rows", "a line without an end"]
)
async def test_a_job_that_is_cancelled_while_it_is_read_is_read_no_further(
    line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to its end, whatever there is to be read: the next block is the last."""
    monkeypatch.setattr(source, "BLOCK_BYTES", 1000)
    world = World()
    await world.put(line * (10_000 // len(line)))
    seen: list[int] = []

    def cancel(reads: int) -> None:
        seen.append(reads)
        if reads == 2:  # the first is the head
            (job,) = [key for key in world.memory.out.blobs if key.endswith("job.json")]
            world.memory.out.create(job.replace("job.json", "cancel"), b"")

    slow_reads(world, 3, cancel)
    await world.bulk().split(world.take(SPLIT))
    assert seen[-1] <= 3
    assert not any(key.endswith("split.json") for key in world.memory.out.blobs)


async def test_an_input_without_progress_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes without a chunk, whatever the reason, are told."""
    monkeypatch.setattr(source, "BLOCK_BYTES", 1000)
    world = World()
    await world.put(b"\n" * 10_000)
    slow_reads(world, STALLED_S / 3)
    await world.drain()
    (manifest,) = world.manifests()
    assert manifest.status.error == "the file is given up: no row could be read for 600 s"


async def test_a_chunk_under_way_stops_when_its_job_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The backend is left, and the message is done with."""
    monkeypatch.setattr(pipeline, "REPORT_S", 0.01)
    world, begun, left = World(), asyncio.Event(), asyncio.Event()

    async def embed(request: EmbedRequest) -> EmbedResult:
        begun.set()
        try:
            return await asyncio.Future()
        finally:
            left.set()

    world.backend.embed = embed  # type: ignore[method-assign]
    job_id = await world.begin()
    step = asyncio.create_task(world.bulk().embed(world.take("bulk-cpu")))
    async with asyncio.timeout(60):
        await begun.wait()
        control.cancel_job(world.memory.storage, job_id)
        await step
    assert left.is_set()


async def test_a_chunk_that_takes_for_ever_is_a_failed_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are failed ones in the end, and the other jobs go on."""
    monkeypatch.setattr(embedding, "ANSWER_S", 0.001)
    world = World()

    async def embed(request: EmbedRequest) -> EmbedResult:
        return await asyncio.Future()

    world.backend.embed = embed  # type: ignore[method-assign]
    await world.put(LINE)
    await world.drain()
    (manifest,) = world.manifests()
    assert manifest.status.request_counts == Counts(1, 0, 1)


async def test_the_state_of_a_job_is_deleted_a_month_after_its_end() -> None:
    """Its output stays; a mark stays while its input does, which else would be a new one."""
    world = await finished()
    outputs = world.outputs()
    world.now += KEPT_S - 10
    await world.bulk().reconcile()
    assert world.manifests()
    world.now += 20
    await world.bulk().reconcile()
    assert not any(key.startswith("jobs/") for key in world.memory.out.blobs)
    assert any(key.startswith("events/") for key in world.memory.out.blobs)
    await world.drain()
    assert world.outputs() == outputs
    world.memory.source.delete(KEY)
    await world.bulk().reconcile()
    assert world.memory.out.blobs.keys() == outputs.keys()


async def test_a_job_that_is_not_there_cannot_be_cancelled() -> None:
    """And has no status; a message of it is dropped."""
    world = World()
    with pytest.raises(BlitzError):
        control.cancel_job(world.memory.storage, "nope")
    assert control.read_status(world.memory.out, "nope") is None
    for step in (world.bulk().embed, world.bulk().give_up, world.bulk().finish):
        await step(jobs.encode(StepMessage(job="nope", chunk="000000-1.arrow")))


async def test_reconcile_leaves_a_job_alone_that_makes_progress() -> None:
    """Only after STUCK_S without any are messages sent again."""
    world = World()
    await world.begin()
    before = world.memory.queue("bulk-cpu").depth()
    world.now += STUCK_S - 1
    await world.bulk().reconcile()
    assert world.memory.queue("bulk-cpu").depth() == before
    world.now += 2
    await world.bulk().reconcile()
    assert world.memory.queue("bulk-cpu").depth() == before  # it waits behind others, and lost nothing
    world.take("bulk-cpu")  # lost
    await world.bulk().reconcile()
    assert world.memory.queue("bulk-cpu").depth() == before - 1
    world.now += STUCK_S + 1
    await world.bulk().reconcile()
    assert world.memory.queue("bulk-cpu").depth() == 2 * before - 1
    await world.drain()
    assert world.table().num_rows == ROWS


@pytest.mark.parametrize("bad", [0, 3], ids=["rows", "chunks without rows between"])
async def test_a_large_job_s_chunks_do_not_stand_before_a_small_one_s(
    bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many are in the queue at a time; each that is done sends for one, until all are done."""
    monkeypatch.setattr(relay, "IN_FLIGHT", 2)
    world = World()
    lines = (LINE * 512 + b"bad\n" * 512 * bad) * 6
    await world.put(lines, "mini/large.jsonl")
    await world.bulk().split(world.take(SPLIT))
    queue = world.memory.queue("bulk-cpu")
    assert queue.depth() == 2
    await world.put(LINE, "mini/small.jsonl")
    await world.bulk().split(world.take(SPLIT))
    before = queue.depth()
    for _ in range(before):
        await world.bulk().embed(world.take("bulk-cpu"))
    assert world.memory.queue("bulk-finish").depth() == 1
    await world.drain()
    assert world.table("mini/small.jsonl.parquet").num_rows == 1
    assert world.table("mini/large.jsonl.parquet").num_rows == 6 * 512
    assert len(world.backend.requests) == 7


async def test_a_chunk_that_is_given_up_sends_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the job would stand still until it is missed."""
    monkeypatch.setattr(relay, "IN_FLIGHT", 1)
    world = World()
    world.backend.refuses["text 0"] = BackendFailed("broken")
    await world.put()
    await world.drain()
    (manifest,) = world.manifests()
    assert manifest.status.request_counts == Counts(ROWS, ROWS - 512, 512)


async def test_workers_side_by_side_finish_a_job_once() -> None:
    """Three processes over one storage: every row once."""
    expected = (await finished()).outputs()
    world = World()
    await world.put()
    await asyncio.gather(*(drain(world.memory, world.bulk()) for _ in range(3)))
    await world.drain()
    assert world.outputs() == expected
