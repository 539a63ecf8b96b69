"""Rows of a table get their vectors."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from functions.cluster.rows import HowToEmbed, RowEmbedder
from shared.errors import InvalidInput, UnknownModel
from shared.models.store import open_store
from shared.settings import Settings
from tests.tiny import Tiny

MODEL = Tiny("m", dimensions=8, broken=("w9",))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(model_store=f"file://{tmp_path_factory.mktemp('store')}")
    MODEL.publish(open_store(settings))
    return settings


def _embed(
    settings: Settings, table: pa.Table, dimensions: int = 8, revision: str = "cpu-fp32", **how: Any
) -> pa.Table:
    how_to = HowToEmbed("m", revision, dimensions, **how)
    with closing(RowEmbedder(settings, "cpu", 1, how_to)) as embedder:
        return embedder(table)


def test_rows_keep_their_columns_and_get_vectors(settings: Settings) -> None:
    """Those without one have nulls and a reason; a column of one of our names is renamed."""
    texts = ["w1 w2", None, "", "w3 w9", "w4"]
    table = pa.table({"text": texts, "tokens": [1, 2, 3, 4, 5]})
    got = _embed(settings, table)
    assert got.column_names == ["text", "input_tokens", "vector", "tokens", "truncated", "error"]
    assert got["input_tokens"].to_pylist() == [1, 2, 3, 4, 5]
    vectors = got["vector"].to_pylist()
    assert np.allclose(vectors[0], MODEL.vectors(["w1 w2"])[0], atol=1e-6)
    assert np.allclose(vectors[4], MODEL.vectors(["w4"])[0], atol=1e-6)
    assert vectors[1:4] == [None] * 3
    errors = got["error"].to_pylist()
    assert [error is None for error in errors] == [True, False, False, False, True]
    assert "holds no text" in errors[1]
    assert not any("w9" in (error or "") for error in errors)


def test_dimensions_and_truncation_are_the_jobs(settings: Settings) -> None:
    table = pa.table({"text": ["w1", "w1 " * 600]})
    got = _embed(settings, table, dimensions=4)
    assert [len(vector) for vector in got["vector"].to_pylist()] == [4, 4]
    assert got["truncated"].to_pylist() == [False, True]
    got = _embed(settings, table, truncate=False)
    assert got["vector"].to_pylist()[1] is None


def test_what_is_wrong_with_all_rows_is_raised(settings: Settings) -> None:
    """Not a reason in each."""
    table = pa.table({"text": ["w1"]})
    with pytest.raises(InvalidInput, match="there is no column body; there are: text"):
        _embed(settings, table, text_column="body")
    with pytest.raises(UnknownModel):
        _embed(settings, table, revision="no-such-revision")
