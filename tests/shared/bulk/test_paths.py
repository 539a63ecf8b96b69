"""shared/bulk/paths.py, and the words in state blobs: running jobs have them during an update."""

from __future__ import annotations

import pytest

from shared.bulk import jobs, paths
from shared.bulk.paths import JobPaths
from shared.bulk.steps.finishing import Final

P = JobPaths("0a1b")


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        (P.job, "jobs/0a1b/job.json"),
        (P.split, "jobs/0a1b/split.json"),
        (P.cancel, "jobs/0a1b/cancel"),
        (P.status, "jobs/0a1b/status.json"),
        (P.final, "jobs/0a1b/final.json"),
        (P.manifest, "jobs/0a1b/manifest.json"),
        (P.active, "active/0a1b"),
        (P.chunk(paths.chunk_name(7, 512)), "jobs/0a1b/chunks/000007-512.arrow"),
        (P.chunks_numbered(7), "jobs/0a1b/chunks/000007-"),
        (P.embedded_chunk("000007-512.arrow"), "jobs/0a1b/parts/000007-512.arrow"),
        (P.bad_rows(3), "jobs/0a1b/bad/000003.jsonl"),
        (P.failed_rows("000007-512.arrow", 3), "jobs/0a1b/failed/000007-3.jsonl"),
    ],
)
def test_state_lies_where_it_always_lay(key: str, stored: str) -> None:
    """Another key would lose the jobs that run while a service is updated."""
    assert key == stored


def test_a_job_is_told_by_the_keys_of_its_ends() -> None:
    """Other blobs of a job, and other folders, are no jobs."""
    assert paths.job_of_status("jobs/0a1b/status.json") == "0a1b"
    assert paths.job_of_manifest("jobs/0a1b/manifest.json") == "0a1b"
    for key in ("jobs/0a1b/manifest.json", "m/status.json", "jobs/0a1b/xstatus.json"):
        assert paths.job_of_status(key) is None
    assert paths.rows_of("jobs/0a1b/parts/000007-512.arrow") == 512
    assert paths.index_of("000007-512.arrow") == 7


def test_state_blobs_keep_their_words() -> None:
    """`parts` is what earlier versions wrote for embedded chunks."""
    assert jobs.encode(jobs.Split(3, 2, 700, 100)) == b'{"chunks":3,"parts":2,"rows":700,"bad":100}'
    final = Final(["a"], [], ["b"], False, 1.5)
    assert jobs.encode(final) == b'{"parts":["a"],"bad":[],"failed":["b"],"cancelled":false,"begun":1.5}'
