"""Tables of static embeddings: rows counted by hand, and files that are no tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from shared.engines.static import StaticEngine
from shared.errors import InvalidArtefact
from tests.tiny import manifest_of

TABLE = np.array([[0, 0], [1, 2], [3, 4], [-5, 8]], np.float32)
SEQUENCES = [[1], [1, 2], [3, 3, 1], [], [0]]


def engine(folder: Path, **tensors: Any) -> StaticEngine:
    save_file(tensors, folder / "model.safetensors")
    return StaticEngine(folder, manifest_of("m", model_file="model.safetensors", target="cpu-static"))


MEANS: list[list[float]] = [[1, 2], [2, 3], [-3, 6], [0, 0], [0, 0]]
TABLES: dict[str, tuple[Mapping[str, Any], list[list[float]]]] = {
    "float32": ({"table": TABLE}, MEANS),
    "float16": ({"table": TABLE.astype(np.float16)}, MEANS),
    "int8": ({"table": TABLE.astype(np.int8)}, MEANS),
    "weights": (
        {"table": TABLE, "weights": np.array([1, 2, 0.5, 1], np.float32)},
        [[2, 4], [1.75, 3], [-8 / 3, 20 / 3], [0, 0], [0, 0]],
    ),
    # Ids 1 and 3 share row 1; id 2 counts for nothing, and so does not divide the sum either.
    "rows": (
        {"table": TABLE, "rows": np.array([3, 1, -1, 1], np.int32)},
        [[1, 2], [1, 2], [1, 2], [0, 0], [-5, 8]],
    ),
    "rows and weights": (
        {
            "table": TABLE.astype(np.int8),
            "rows": np.array([3, 1, -1, 1], np.int32),
            "weights": np.array([0.5, 1, 7, 4], np.float32),
        },
        [[1, 2], [1, 2], [3, 6], [0, 0], [-2.5, 4]],
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_text_is_the_mean_of_its_tokens_rows(case: str, tmp_path: Path) -> None:
    """Of any format of the table; a text without tokens is zeros, as is one of tokens left out."""
    tensors, expected = TABLES[case]
    table = engine(tmp_path, **tensors)
    rows = table.run(SEQUENCES)
    assert (rows.dtype.name, table.dimensions) == ("float32", 2)
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_a_long_text_is_summed_in_parts(tmp_path: Path) -> None:
    """Of 5,001 tokens, more than are read at once, each counts as much as any other."""
    table = engine(tmp_path, table=TABLE)
    np.testing.assert_allclose(table.run([[1] + [2] * 5_000]), [[15_001 / 5_001, 20_002 / 5_001]])


def test_a_static_row_is_the_same_bits_alone_and_among_others(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = engine(tmp_path, table=random.standard_normal((500, 64)).astype(np.float32))
    sequences = [random.integers(0, 500, n).tolist() for n in (1, 3, 40, 1_500, 0, 7)]
    together = table.run(sequences)
    for row, tokens in zip(together, sequences, strict=True):
        assert np.array_equal(table.run([tokens])[0], row)


BROKEN: dict[str, Mapping[str, Any]] = {
    "no table": {"other": TABLE},
    "a vector": {"table": TABLE[0]},
    "no rows": {"table": TABLE[:0]},
    "integers": {"table": TABLE.astype(np.int64)},
    "rows beyond the table": {"table": TABLE, "rows": np.array([0, 4], np.int32)},
    "rows of another type": {"table": TABLE, "rows": np.array([0, 1], np.int64)},
    "no token": {"table": TABLE, "rows": np.zeros(0, np.int32)},
    "weights of too few": {"table": TABLE, "weights": np.ones(3, np.float32)},
    "weights of too few rows": {
        "table": TABLE,
        "rows": np.zeros(4, np.int32),
        "weights": np.ones(3, np.float32),
    },
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_table_does_not_load(case: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArtefact, match=r"model\.safetensors is not a table of static"):
        engine(tmp_path, **BROKEN[case])


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_safetensors_is_no_table(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidArtefact, match="is not a table of static"):
        StaticEngine(tmp_path, manifest_of("m", model_file="model.safetensors", target="cpu-static"))
