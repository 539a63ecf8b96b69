"""The command line for people: where texts come from, what is written, with which code it ends.

Called in this process; only one test starts Python anew, to see what `python -m` gives.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from functions.embed.__main__ import app
from shared.models.store import open_store_url
from tests.apps import router_app
from tests.fakes.backend import FakeBackend, vector_of
from tests.server import ROOT
from tests.sockets import serving
from tests.tiny import Tiny

TEXTS = ["w1 w2", "w3", "w2 w4 w1"]
KEY = "sesame"
TINY = Tiny("tiny", prompts={"query": "w9 "})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A router that asks for a key."""
    keyed = {"api_key_hashes": (hashlib.sha256(KEY.encode()).hexdigest(),), "max_inputs": 40}
    with serving(router_app(FakeBackend("mini"), **keyed)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("embed")
    address = f"file://{folder / 'models'}"
    models = open_store_url(address, cache_dir=folder / "cache", cache_disk_bytes=10**8)
    TINY.publish(models)
    Tiny("ranker", task="cross-encoder").publish(models)
    return address


def _run(*arguments: str, typed: str | bytes | None = None, key: str = KEY, bar: bool = False) -> Result:
    """bar: as on a terminal."""
    environ = {"EMBED_KEY": key, "FORCE_COLOR": "1" if bar else None}
    return CliRunner().invoke(app, list(arguments), input=typed, env=environ)


def _rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def _sources(tmp_path: Path) -> dict[str, tuple[list[str], str | None]]:
    """Name -> arguments and what comes through the pipe; each gives TEXTS."""
    lines, objects = tmp_path / "lines.txt", tmp_path / "rows.jsonl"
    lines.write_text("\ufeff" + "\n\n".join(TEXTS[1:]), "utf-8")
    objects.write_text("".join(json.dumps({"n": 1, "t": text}) + "\n" for text in TEXTS))
    return {
        "arguments": (TEXTS, None),
        "a pipe": ([], "\ufeff" + "\r\n".join([*TEXTS, ""])),
        "a pipe of objects": (["--field", "t"], objects.read_text()),
        "a file of objects": (["--file", str(objects), "--field", "t"], None),
        "an argument and a file": ([TEXTS[0], "-f", str(lines)], None),
    }


@pytest.mark.parametrize("batch", ["1", "2", "128"])
@pytest.mark.parametrize(
    "source",
    ["arguments", "a pipe", "a pipe of objects", "a file of objects", "an argument and a file"],
)
def test_texts_come_from_everywhere(url: str, tmp_path: Path, source: str, batch: str) -> None:
    """In order, each with its vector, whatever is sent at once."""
    arguments, typed = _sources(tmp_path)[source]
    rows = _rows(_run(*arguments, "--url", url, "--batch", batch, typed=typed))
    assert [row["text"] for row in rows] == TEXTS
    wanted = np.stack([vector_of(text, 8) for text in TEXTS])
    assert np.allclose([row["embedding"] for row in rows], wanted, atol=1e-6)


@pytest.mark.parametrize("prompt", [None, "query"])
def test_a_model_in_this_process_gives_the_same(store: str, prompt: str | None) -> None:
    """The only embedding model of a store needs no name, and nothing else is on stdout."""
    more = [] if prompt is None else ["--prompt-name", prompt]
    rows = _rows(_run(*TEXTS, "--model-store", store, "--dimensions", "8", *more))
    before = TINY.prompts[prompt] if prompt else ""
    wanted = TINY.vectors([before + text for text in TEXTS], 8)
    assert np.allclose([row["embedding"] for row in rows], wanted, atol=1e-6)


@pytest.mark.parametrize("to_file", [True, False])
def test_an_array_is_numpys(url: str, tmp_path: Path, to_file: bool) -> None:
    out = tmp_path / "vectors.npy"
    where = ["--out", str(out)] if to_file else []
    result = _run(*TEXTS, "--url", url, "--format", "npy", "--batch", "2", *where)
    assert result.exit_code == 0, result.stderr
    if to_file:
        assert f"3 vectors in {out}" in result.stderr
        assert result.stdout_bytes == b""
    array = np.load(out if to_file else io.BytesIO(result.stdout_bytes), allow_pickle=False)
    assert array.dtype == np.float32
    assert np.allclose(array, np.stack([vector_of(text, 8) for text in TEXTS]), atol=1e-6)


def test_a_table_is_read_by_people(url: str) -> None:
    """Cosines with two digits; a long text is cut, and one of wide signs stays in its column."""
    texts = ["short", "a text that is longer than a label can be, by far", "\N{WOLF FACE}" * 30]
    result = _run(*texts, "--url", url, "--format", "table")
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["1", "2", "3"]
    rows = np.stack([vector_of(text, 8) for text in texts])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    told = np.array([line.split()[-3:] for line in lines], float)
    assert np.abs(told - rows @ rows.T).max() < 0.0051
    assert "a text that is longer than a la\N{HORIZONTAL ELLIPSIS}" in lines[1]
    assert "\N{WOLF FACE}" * 15 + "\N{HORIZONTAL ELLIPSIS}" in lines[2].replace(" ", "")


@pytest.mark.parametrize(
    ("arguments", "typed", "code", "message"),
    [
        (["a", "--url", "{url}", "--model", "nope"], None, 2, "there is no model 'nope'"),
        (["a", "--url", "ftp://x"], None, 2, "--url: use http://HOST:PORT"),
        (["a", "--url", "{url}", "--model-store", "file://x"], None, 2, "leave --model-store out"),
        (["a", "--url", "http://127.0.0.1:1"], None, 4, "does not answer"),
        (["", "--url", "{url}"], None, 2, "TEXTS: a text is empty"),
        (["--url", "{url}"], "\n \n", 2, "there is no text"),
        (["--url", "{url}", "-f", "no-such-file"], None, 2, "no-such-file cannot be read"),
        (["--url", "{url}", "--field", "t"], '{"t": "a"}\n{"u": 1}\n', 2, "line 2 of stdin is no JSON"),
        (["--url", "{url}"], "a\n" * 41, 2, "at most 40"),
        (["--url", "{url}", "--format", "table", "--batch", "9"], "a\n" * 51, 2, "at most 50 texts"),
        (["a", "--url", "{url}", "--out", "no/such/folder"], None, 2, "cannot be written"),
        (["a", "--model-store", "{store}", "--model", "nope"], None, 2, "there is no model 'nope'"),
        (["a", "--model-store", "{store}", "--dimensions", "99"], None, 2, "16"),
        (["a", "--model-store", "file:///no/such/store"], None, 4, "model store's files cannot"),
        (["--completion", "tcsh"], None, 2, "use one of: bash, zsh, fish"),
    ],
)
def test_what_is_wrong_is_named(
    url: str, store: str, arguments: list[str], typed: str | None, code: int, message: str
) -> None:
    result = _run(*(each.format(url=url, store=store) for each in arguments), typed=typed)
    assert message in result.stderr
    assert result.exit_code == code
    assert result.stdout == ""


def test_a_key_is_needed_where_the_service_asks_for_one(url: str) -> None:
    """In the environment, where no other user of the machine sees it."""
    result = _run("a", "--url", url, key="")
    assert result.exit_code == 2
    assert "EMBED_KEY=KEY" in result.stderr


def test_help_has_examples_and_fits_a_terminal() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    for part in ("Examples:", "--format table", "| ", "EMBED_KEY"):
        assert part in result.stdout


def test_a_fifo_is_read_once(url: str, tmp_path: Path) -> None:
    """A progress bar, which is shown as on a terminal, counts no texts that come but once."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor() as pool:
        pool.submit(fifo.write_text, "\n".join(TEXTS))
        rows = _rows(_run("--file", str(fifo), "--url", url, bar=True))
    assert [row["text"] for row in rows] == TEXTS


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (["--model", "nope"], 2),
        (["--file", "no-such-file"], 2),
        (["--format", "table", "--batch", "60"], 2),
        (["--url", "http://127.0.0.1:1"], 4),
    ],
)
@pytest.mark.parametrize("where", ["url", "store"])
def test_what_is_refused_costs_no_result(
    url: str, store: str, where: str, wrong: list[str], code: int, tmp_path: Path
) -> None:
    """A file keeps what it has until there is something else; and then has nothing of it."""
    out = tmp_path / "out"
    out.write_text("precious" * 2000)
    place = {"url": ["--url", url], "store": ["--model-store", store, "--model", TINY.name]}[where]
    if "--url" in wrong:
        place = []
    typed = "\n".join(TEXTS * 20)
    assert _run("--out", str(out), *place, *wrong, typed=typed).exit_code == code
    assert out.read_text() == "precious" * 2000
    assert _run("--out", str(out), "--url", url, "w1").exit_code == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["w1"]


@pytest.mark.parametrize("format", ["jsonl", "npy", "table"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk here that is always full")
def test_a_full_disk_is_told(url: str, format: str) -> None:
    result = _run("a", "--url", url, "--format", format, "--out", "/dev/full")
    assert result.exit_code == 2
    assert "--out: /dev/full cannot be written: No space left" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "typed", "message"),
    [
        (["\udcff"], None, "TEXTS: a text is not UTF-8"),
        ([], b"a\n\xff\n", "TEXTS: stdin is not UTF-8 text"),
        (["--file", "{file}"], None, "--file: {file} is not UTF-8 text"),
        (["--field", "t"], b'{"t": "\\ud800"}', "--field t: line 1 of stdin is no JSON object"),
    ],
)
def test_what_is_no_text_is_named(
    url: str, arguments: list[str], typed: bytes | None, message: str, tmp_path: Path
) -> None:
    """Bytes that are no UTF-8, wherever they come from."""
    (tmp_path / "latin").write_bytes("na\xefve".encode("latin-1"))
    given = [each.format(file=tmp_path / "latin") for each in arguments]
    result = _run(*given, "--url", url, typed=typed)
    assert result.exit_code == 2
    assert message.format(file=tmp_path / "latin") in result.stderr


def test_it_runs_as_a_module_and_needs_no_engine_for_a_url(url: str) -> None:
    """Half a second less, and no model's memory."""
    code = (
        "import sys; from functions.embed.__main__ import app\n"
        f"app(['a', '--url', '{url}', '--key', '{KEY}'], standalone_mode=False)\n"
        "print({'onnxruntime', 'tokenizers', 'torch'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "set()"
