"""Calibration inputs from an operator's file: read as texts or as pairs, or refused with the reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from model_build.calibration import calibration_inputs
from model_build.source import inspect_source
from shared.contracts import TokenPair
from shared.errors import InvalidInput

PAIRED = "a\tb c\nd\te\n"


def test_a_line_is_a_text(tiny: Path, tmp_path: Path) -> None:
    """Blank lines count for nothing; of very many, some from all of the file are taken."""
    source, file = inspect_source(tiny), tmp_path / "texts"
    file.write_text("a b\n\n  \nc\n")
    assert [len(each) for each in calibration_inputs(source, file)] == [4, 3]
    file.write_text("a\n" * 400 + "a b\n" * 400)
    taken = [len(each) for each in calibration_inputs(source, file)]
    assert len(taken) <= 300
    assert {taken.count(3), taken.count(4)} == {len(taken) // 2, len(taken) - len(taken) // 2}


def test_a_line_is_a_pair_for_a_cross_encoder(tiny: Path, tmp_path: Path) -> None:
    """A query, a tab, a document."""
    file = tmp_path / "pairs"
    file.write_text(PAIRED)
    source = dataclasses.replace(inspect_source(tiny), task="cross-encoder")
    first, second = calibration_inputs(source, file)
    assert isinstance(first, TokenPair)
    assert (len(first), len(second)) == (6, 5)


@pytest.mark.parametrize(
    ("task", "content", "why"),
    [
        ("embedding", b"\n \n", "a text a line"),
        ("embedding", b"\xff\xfe", "UTF-8"),
        ("embedding", None, "UTF-8"),
        ("cross-encoder", b"no tab\n", "a query, a tab and a document"),
        ("cross-encoder", b"a\tb\tc\n", "a query, a tab and a document"),
        ("cross-encoder", b"a\t\n", "a query, a tab and a document"),
    ],
)
def test_what_is_no_calibration_is_refused(
    tiny: Path, tmp_path: Path, task: str, content: bytes | None, why: str
) -> None:
    """None: there is no such file."""
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    source = dataclasses.replace(inspect_source(tiny), task=task)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=why) as refused:
        calibration_inputs(source, file)
    assert refused.value.field == "calibration"
