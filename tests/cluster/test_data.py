"""Bulk embedding with Ray Data, on a real Ray of this machine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow.fs import AzureFileSystem

from functions.bulk.steps import build_bulk
from functions.cluster.data import embed
from functions.cpu import create_inference
from functions.local.driver import Driver, Pace
from shared.settings import Settings
from shared.storage.connect import open_storage
from tests.azurite import ACCOUNT, KEY, Azurite, running_azurite
from tests.cluster.models import MODELS
from tests.patience import PATIENCE_S, wait_until
from tests.server import ROOT

MODEL = MODELS[0]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """Of three CPUs; yields its address, which the commands join."""
    options = {"address": "local", "num_cpus": 3, "include_dashboard": False}
    with ray.init(**options, log_to_driver=False) as context:
        os.environ["RAY_ADDRESS"] = context.address_info["address"]
        yield os.environ["RAY_ADDRESS"]
        del os.environ["RAY_ADDRESS"]


def _command(store: Path, source: Path, out: Path, *options: str) -> list[str]:
    options = ("--model-store", f"file://{store}", "--model", MODEL.name, *options)
    return [sys.executable, "-m", "functions.cluster.data", str(source), str(out), *options]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_dataset_gets_vectors(store_folder: Path) -> None:
    """Every row once, with its columns, and the reason where there is no vector; from Azure's storage
    to there, by Arrow's own client."""
    texts = [None if n % 50 == 7 else f"w{n % 400} w{n % 7}" for n in range(1000)]
    settings = Settings(model_store=f"file://{store_folder}")
    with running_azurite() as azurite, azurite.container() as container:
        storage = _arrow_storage(azurite)
        name = container.container_name
        for start in (0, 500):
            rows = {"id": range(start, start + 500), "text": texts[start : start + 500]}
            pq.write_table(pa.table(rows), f"{name}/in/{start}.parquet", filesystem=storage)
        dataset = ray.data.read_parquet(f"{name}/in", filesystem=storage)
        embedded = embed(dataset, model=MODEL.name, settings=settings, actors=(1, 2))
        embedded.write_parquet(f"{name}/out", filesystem=storage)
        table = pq.read_table(f"{name}/out", filesystem=storage).sort_by("id")
    assert table["id"].to_pylist() == list(range(1000))
    assert [error is None for error in table["error"].to_pylist()] == [bool(text) for text in texts]
    got = np.array([vector for vector in table["vector"].to_pylist() if vector])
    assert np.allclose(got, MODEL.vectors([text for text in texts if text]), atol=1e-6)


def _arrow_storage(azurite: Azurite) -> AzureFileSystem:
    authority = f"127.0.0.1:{azurite.port}"
    return AzureFileSystem(
        ACCOUNT,
        account_key=KEY,
        blob_storage_authority=authority,
        blob_storage_scheme="http",
        dfs_storage_authority=authority,
        dfs_storage_scheme="http",
    )


@pytest.mark.anyio
async def test_files_get_the_vectors_of_our_bulk_jobs(store_folder: Path, tmp_path: Path) -> None:
    """To the bit; of all three formats, bad rows beside, and a second run computes nothing."""
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "more").mkdir(parents=True)
    texts = [f"w{n} w{n * 3 % 400}" for n in range(300)]
    pq.write_table(pa.table({"text": texts, "n": range(300)}), source / "a.parquet")
    lines = "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
    (source / "more" / "b.jsonl").write_text(lines + '{"id":"300","text":""}\n')
    (source / "c.csv").write_text("text,n\n" + "".join(f"{text},{n}\n" for n, text in enumerate(texts)))
    ran = _run(_command(store_folder, source, out, "--actors", "2"))
    assert ran.returncode == 1, ran.stderr  # one row has no text
    assert "900 rows with vectors, 1 without" in ran.stdout
    tables = {name: pq.read_table(out / name) for name in ("a.parquet", "more/b.jsonl", "c.csv")}
    assert tables["a.parquet"]["n"].to_pylist() == tables["c.csv"]["n"].to_pylist() == [*range(300)]
    (bad,) = pq.read_table(out / "_bad/more/b.jsonl").to_pylist()
    assert (bad["id"], bad["vector"]) == ("300", None)
    assert bad["error"]

    settings = Settings(model_store=f"file://{store_folder}", storage=f"file://{tmp_path / 'bulk'}")
    storage = open_storage(settings)
    storage.source.write(f"{MODEL.name}/b.jsonl", lines.encode())
    inference = create_inference(settings)
    bulk = build_bulk(settings, storage, inference)
    driver = Driver(bulk, storage, "cpu", Pace(poll_s=0.05))
    jobs_vectors = await _vectors_of_job(driver, tmp_path / "bulk")
    await inference.close()
    for table in tables.values():
        assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), jobs_vectors)

    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert _run(_command(store_folder, source, out)).returncode == 1
    assert written == {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}


async def _vectors_of_job(driver: Driver, folder: Path) -> np.ndarray:
    """Of the one file that is in the storage."""
    working = asyncio.create_task(driver.run())
    try:
        await asyncio.to_thread(wait_until, lambda: list(folder.rglob("manifest.json")))
    finally:
        working.cancel()
        await asyncio.wait([working])
    table = pq.read_table(folder / "bulk-out" / MODEL.name / "b.jsonl.parquet")
    return np.array(table["vector"].to_pylist(), np.float32)


def test_a_job_whose_driver_died_goes_on(store_folder: Path, tmp_path: Path) -> None:
    """Units that were done stay as they are; in the end every row is there once."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(30):
        texts = [f"w{number} w{n % 400}" for n in range(2000)]
        pq.write_table(pa.table({"text": texts}), source / f"{number:02}.parquet")
    driver = subprocess.Popen(
        _command(store_folder, source, out),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def done() -> dict[Path, int]:
        markers = (out / "_done").rglob("*.json") if out.exists() else ()
        return {path: path.stat().st_mtime_ns for path in markers if not path.name.startswith(".")}

    wait_until(lambda: len(done()) >= 2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = done()
    assert len(before) < 30
    ran = _run(_command(store_folder, source, out))
    assert ran.returncode == 0, ran.stderr
    assert "60,000 rows with vectors, 0 without" in ran.stdout
    after = done()
    assert len(after) == 30
    assert {path: after[path] for path in before} == before
    assert pq.read_table(out / "17.parquet")["text"][1999].as_py() == "w17 w399"


def test_a_store_that_goes_away_is_said(store_folder: Path, tmp_path: Path) -> None:
    """In one sentence, with exit code 4; the job goes on when it is back."""
    store, out = tmp_path / "store", tmp_path / "out"
    shutil.copytree(store_folder, store)
    (tmp_path / "a.csv").write_text("text\nw1\n")
    command = _command(store, tmp_path / "a.csv", out)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: (out / "_job.json").exists())  # its model is known, and not loaded
        store.rename(tmp_path / "away")
        _, told = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 4
    # The driver's sentence; what the workers log is forwarded with their names before it, at any time.
    said = f"the model {MODEL.name}@cpu-fp32 did not load"
    assert any(line.startswith(said) for line in told.splitlines())
    assert "Traceback" not in told
    (tmp_path / "away").rename(store)
    assert _run(command).returncode == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model", "nope"), "there is no model 'nope'"),
        (("--text-column", "body"), "there is no column body; there are: text"),
    ],
)
def test_what_cannot_be_is_said(
    store_folder: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    """In a sentence, with exit code 2."""
    (tmp_path / "a.csv").write_text("text\nw1\n")
    ran = _run(_command(store_folder, tmp_path / "a.csv", tmp_path / "out", *options))
    assert ran.returncode == 2
    assert told in ran.stderr
    assert "Traceback" not in ran.stderr
