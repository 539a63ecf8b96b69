"""`python -m functions.bulk`: what it sends, how it follows, what it says and how it exits."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from functions.bulk.__main__ import app
from functions.bulk.progress import PATIENCE_S, Following, wait_for
from shared.bulk.control import SPLIT
from shared.bulk.jobs import Counts, State, Status
from shared.errors import StoreUnavailable
from shared.settings import Settings
from shared.storage.blobs import Storage
from shared.storage.connect import local_storage, open_storage
from tests.functions.api.forms import bulk_of, drain, take
from tests.server import free_port, running_service
from tests.tiny import Tiny, nearly, publish_all

TINY = Tiny("tiny")


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BLITZ_STORAGE", "BLITZ_STORAGE_CONNECTION_STRING", "BLITZ_MODEL_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model store of a service that works on what is sent."""
    url = f"file://{tmp_path_factory.mktemp('served') / 'models'}"
    publish_all([TINY], url)
    with running_service(url, environ={"BLITZ_MODEL_ALIASES": "org/tiny=tiny"}):
        yield url


@pytest.fixture
def served(store: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Its bulk storage, which the command line finds as the service does."""
    monkeypatch.setenv("BLITZ_MODEL_STORE", store)
    return open_storage(local_storage(Settings(model_store=store)))


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage that nobody works on but the test."""
    (tmp_path / "bulk" / "bulk-in").mkdir(parents=True)
    return f"file://{tmp_path / 'bulk'}"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": n, "text": f"w{n}"}) + "\n" for n in range(30)))
    return path


def test_a_file_is_sent_followed_and_fetched(served: Storage, rows: Path, tmp_path: Path) -> None:
    """Into the folder of the model, with the options; then every vector is in the fetched file."""
    done = cli("submit", rows, "--model", "tiny", "--dimensions", 8, "--wait")
    assert done.exit_code == 0, done.output
    assert "30 of 30 rows, 0 failed" in done.stdout
    assert "bulk-out/tiny/rows.jsonl.parquet" in done.stdout
    assert "completed: 30/30 rows" in done.stderr

    job = done.stdout.partition(":")[0]
    fetched = cli("fetch", job, "--out", tmp_path / "here")
    assert fetched.exit_code == 0, fetched.output
    table = pq.read_table(tmp_path / "here" / "rows.jsonl.parquet")
    assert table["id"].to_pylist() == [str(n) for n in range(30)]
    assert nearly(table["vector"].to_pylist(), TINY.vectors([f"w{n}" for n in range(30)], 8))
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["rows.jsonl.parquet"]
    for name in (job, "tiny/rows.jsonl", "bulk-in/tiny/rows.jsonl"):
        assert json.loads(cli("status", name, "--json").stdout)["id"] == job


def test_a_model_may_be_named_by_an_alias(served: Storage, rows: Path) -> None:
    """Of the service's settings, which this process does not know; its slashes are folders."""
    done = cli("submit", rows, "--model", "org/tiny", "--wait", "--json")
    assert done.exit_code == 0, done.output
    status = json.loads(done.stdout)
    assert (status["source"], status["model"]) == ("org/tiny/rows.jsonl", "tiny")
    assert served.out.stat("org/tiny/rows.jsonl.parquet")


def test_failed_rows_have_an_exit_code_of_their_own(served: Storage, tmp_path: Path, rows: Path) -> None:
    """The job is complete, and not all is well."""
    rows.write_text(rows.read_text() + "{\n")
    rows = rows.rename(tmp_path / "some.jsonl")
    done = cli("submit", rows, "--model", "tiny", "--format", "npy", "--wait", "--json")
    assert done.exit_code == 1, done.output
    status = json.loads(done.stdout)
    assert status["request_counts"] == {"total": 31, "completed": 30, "failed": 1}
    fetched = cli("fetch", status["id"], "--out", tmp_path / "here", "--json")
    assert fetched.exit_code == 1
    names = {Path(each).name for each in json.loads(fetched.stdout)["files"]}
    assert names == {"some.jsonl.npy", "some.jsonl.ids.jsonl", "some.jsonl.errors.jsonl"}


def test_a_job_that_fails_says_why(served: Storage, rows: Path) -> None:
    """Exit code 3, with the job's own message."""
    done = cli("submit", rows, "--model", "nobody", "--wait")
    assert done.exit_code == 3, done.output
    assert "there are: org/tiny, tiny" in done.stdout
    assert "options: model nobody" in done.stdout


def test_what_is_sent_has_the_options_as_metadata(url: str, rows: Path) -> None:
    """Those that were given, and no others."""
    options = ["--dtype", "int8", "--text-column", "body", "--id-column", "key"]
    options += ["--prompt-name", "document", "--no-truncate"]
    done = cli("submit", rows, "--to", url, *options, "--json")
    assert json.loads(done.stdout) == {"input": "bulk-in/rows.jsonl"}
    sent = open_storage(Settings(storage=url)).source.stat("rows.jsonl")
    assert sent is not None
    assert sent.metadata == {
        "blitz_dtype": "int8",
        "blitz_text_column": "body",
        "blitz_id_column": "key",
        "blitz_prompt_name": "document",
        "blitz_truncate": "false",
    }
    assert sent.size == rows.stat().st_size


def test_an_empty_prompt_name_is_sent_and_none_is_not(url: str, rows: Path) -> None:
    """It switches the model's default prompt off, as over HTTP."""
    source = open_storage(Settings(storage=url)).source
    for options, metadata in (((), {}), (("--prompt-name", ""), {"blitz_prompt_name": '""'})):
        assert cli("submit", rows, "--to", url, *options).exit_code == 0
        sent = source.stat("rows.jsonl")
        assert sent is not None
        assert sent.metadata == metadata


@pytest.mark.anyio
async def test_a_job_is_followed_cancelled_and_listed(url: str, rows: Path, tmp_path: Path) -> None:
    """From before it has begun, to its end."""
    done = cli("submit", rows, "--to", url)
    assert f"python -m functions.bulk status rows.jsonl --to {url}" in done.stdout
    waiting = cli("status", "rows.jsonl", "--to", url)
    assert (waiting.exit_code, waiting.stderr) == (2, "error: no job has begun for rows.jsonl yet\n")

    storage = open_storage(Settings(storage=url))
    bulk, sent = bulk_of(storage), storage.source.stat("rows.jsonl")
    assert sent is not None
    await bulk.notice(sent.key, sent.etag)
    await bulk.split(take(storage, SPLIT) or b"")
    begun = cli("status", "rows.jsonl", "--to", url)
    assert begun.exit_code == 0
    assert "in_progress, 0 of 30 rows, 0 failed" in begun.stdout
    assert "options: model mini; there was no sidecar" in begun.stdout
    early = cli("fetch", "rows.jsonl", "--to", url, "--out", tmp_path / "here")
    assert (early.exit_code, early.stderr) == (2, "error: the job has not ended yet\n")

    assert "cancelling" in cli("cancel", "rows.jsonl", "--to", url).stdout
    await drain(storage, bulk)
    ended = cli("status", "rows.jsonl", "--to", url, "--json")
    assert ended.exit_code == 3
    status = json.loads(ended.stdout)
    assert status["status"] == "cancelled"
    assert json.loads(cli("list", "--to", url, "--json").stdout) == [status]
    [head, line] = cli("list", "--to", url).stdout.splitlines()
    assert head.split() == ["JOB", "STATUS", "ROWS", "FAILED", "MODEL", "INPUT"]
    assert line.split() == [status["id"], "cancelled", "0", "0", "mini", "rows.jsonl"]


@pytest.mark.anyio
async def test_an_output_that_a_later_job_wrote_is_not_taken_for_this_ones(
    url: str, rows: Path, tmp_path: Path
) -> None:
    """Its hash differs; nothing is left in the folder."""
    cli("submit", rows, "--to", url)
    storage = open_storage(Settings(storage=url))
    sent = storage.source.stat("rows.jsonl")
    assert sent is not None
    bulk = bulk_of(storage)
    await bulk.notice(sent.key, sent.etag)
    await drain(storage, bulk)
    storage.out.write("rows.jsonl.parquet", b"of another job")
    done = cli("fetch", "rows.jsonl", "--to", url, "--out", tmp_path / "here")
    assert done.exit_code == 2
    assert "a later one wrote it" in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", "nowhere.jsonl"),
        ("submit", __file__, "--model", "no//name"),
        ("submit", __file__, "--text-column", "naïve"),
        ("submit", __file__, "--dimensions", "0"),
        ("status", "nowhere.jsonl"),
        ("status", "0" * 24),
        ("cancel", "0" * 24),
        ("cancel", "../x"),
        ("fetch", "0" * 24, "--out", "here"),
    ],
)
def test_bad_input_is_told(url: str, arguments: tuple[str, ...]) -> None:
    """Exit code 2 and a message; as JSON too."""
    done = cli(*arguments, "--to", url)
    assert done.exit_code == 2, done.output
    assert done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (".hidden.txt", "is a hidden file: it would be passed over"),
        ("a.csv.part", "is not whole yet, by its name"),
        ("n" * 239 + ".txt", "the file's name is too long"),
        ("a\nb.txt", "no backslashes or control characters"),
    ],
)
def test_a_file_that_would_not_be_embedded_is_not_sent(
    url: str, tmp_path: Path, name: str, why: str
) -> None:
    """To wait for its job would be for ever."""
    file = tmp_path / name
    file.write_bytes(b"w1")
    result = cli("submit", file, "--to", url)
    assert result.exit_code == 2
    assert why in result.stderr
    assert not list(open_storage(Settings(storage=url)).source.list(""))


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", __file__),
        ("status", "0" * 24),
        ("cancel", "0" * 24),
        ("fetch", "0" * 24, "--out", "here"),
        ("list",),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_no_storage_is_told_and_stays_as_it_is(
    tmp_path: Path, arguments: tuple[str, ...], there: bool
) -> None:
    """A mistyped one must not pass for a storage without jobs."""
    wrong = tmp_path / "wrong"
    if there:
        wrong.mkdir()
    done = cli(*arguments, "--to", f"file://{wrong}")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{wrong} is no bulk storage" in done.stderr
    assert wrong.exists() == there
    assert not there or list(wrong.iterdir()) == []


def test_bad_input_is_told_to_machines(url: str) -> None:
    """One JSON object, as any answer is."""
    done = cli("status", "nowhere", "--to", url, "--json")
    assert json.loads(done.stdout) == {
        "error": "there is neither a job nor a file nowhere",
        "param": "JOB",
        "exit_code": 2,
    }


def test_a_storage_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, rows: Path) -> None:
    """Exit code 4, soon."""
    closed = f"http://127.0.0.1:{free_port()}/a"
    key = "AccountName=a;AccountKey=a2V5;BlobEndpoint={0};QueueEndpoint={0}"
    monkeypatch.setenv("BLITZ_STORAGE_CONNECTION_STRING", key.format(closed))
    done = cli("submit", rows)
    assert done.exit_code == 4, done.output
    assert "did not answer" in done.stderr


def following(clock: Any) -> tuple[Following, io.StringIO]:
    shown, written = Following("a.jsonl", clock), io.StringIO()
    shown.console = Console(file=written, width=200)
    return shown, written


def status_of(state: State, *counts: int) -> Status:
    return Status("j", state, "a.jsonl", "m", 0, Counts(*counts))


def test_lines_tell_rows_speed_and_time_left() -> None:
    """When the state changes, and else now and then: a log is read by people too."""
    seconds = iter(range(0, 1000, 4))
    shown, written = following(lambda: next(seconds))
    shown.show(None)
    shown.show(status_of("validating", 0, 100))
    for done in (200, 300, 400, 500):
        shown.show(status_of("in_progress", 2000, done, 100))
    shown.show(status_of("completed", 2000, 1900, 100))
    assert written.getvalue().splitlines() == [
        "waiting to begin",
        "validating: 100/? rows",
        "in_progress: 300/2,000 rows, 50 rows/s, 34 s left",
        "in_progress: 600/2,000 rows, 31 rows/s, 45 s left",
        "completed: 2,000/2,000 rows, 95 rows/s",
    ]


def test_waiting_outlives_a_storage_that_is_gone_for_a_while() -> None:
    """And says so; only when it stays away is that the end."""
    answers: list[Any] = [StoreUnavailable("away")] * 20
    answers += ["job", StoreUnavailable("away"), status_of("completed", 1, 1)]

    def answer(*_: str) -> Any:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    shown, written = following(lambda: 0.0)
    assert wait_for(answer, answer, shown, sleep=lambda _: None).status == "completed"
    assert "waiting for it" in written.getvalue()
    answers = [StoreUnavailable("away")] * 1000
    with pytest.raises(StoreUnavailable):
        wait_for(answer, answer, shown, sleep=lambda _: None)
    assert len(answers) == pytest.approx(1000 - PATIENCE_S, abs=2)
