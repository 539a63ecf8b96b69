"""shared/bulk/passed_over.py: which names are of no input, and lines that are safe and not too many."""

from __future__ import annotations

import pytest

from shared.bulk.passed_over import is_input, why_no_input
from shared.storage import shown_names
from shared.storage.shown_names import shown, tell


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("m/a.txt.job.json", "a sidecar"),
        ("m/.a.txt", "a hidden file"),
        (".cache/a.txt", "in a hidden folder, or one of the system's"),
        ("m/$RECYCLE.BIN/a.txt", "in a hidden folder, or one of the system's"),
        ("m/THUMBS.DB", "a file of the system's"),
        ("m/Icon\r", "a file of the system's"),
        ("m/Unconfirmed 1.crdownload", "not whole yet, by its name"),
        ("m/a.csv.filepart", "not whole yet, by its name"),
        ("m/a.csv.tmp", "not whole yet, by its name"),
        ("m/a.csv~", "an editor's own file"),
        ("m/~lock.a.csv#", "an editor's own file"),
        *((key, None) for key in ("a", "m/part", "m/partial.csv", "m/tmp", "m/a.b.csv", "m/lock.txt")),
    ],
)
def test_why_a_name_is_of_no_input(key: str, why: str | None) -> None:
    """Whatever the case of its letters."""
    assert why_no_input(key) == why
    assert is_input(key) == (why is None)


def test_a_line_for_each_and_no_more_than_a_thousand(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may drop files must not fill the log; one line says that there are more."""
    monkeypatch.setattr(shown_names, "_told", set())
    for _ in range(2):
        for number in range(1500):
            is_input(f"m/.{number}")
    is_input("m/a.txt.job.json")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == 'bulk: "m/.0" is a hidden file, and is passed over'
    assert len(lines) == 1001
    assert lines[-1] == "bulk: more files are passed over, which are not logged"


def test_a_name_is_shown_so_that_nothing_obeys_it(caplog: pytest.LogCaptureFixture) -> None:
    """As JSON in ASCII, and not all of a long one."""
    assert shown('a"\n\x1b[31m\udcff\u202eü\\') == 'a\\"\\n\\u001b[31m\\udcff\\u202e\\u00fc\\\\'
    tell("here", "x" * 5000, "is long")
    assert len(caplog.records[-1].getMessage()) < 250
