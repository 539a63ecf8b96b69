"""How the engine puts inputs together, by a graph that tells it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from shared.engines.onnx import SHORT_TOKENS, TILE_ROWS, OnnxEngine
from tests.tiny import manifest_of

GRAPH = """
<ir_version: 9, opset_import: ["": 17]>
padded (int64[b, t] input_ids, int64[b, t] attention_mask) => (float[b, t, 1] token_embeddings) {
  last = Constant <value = int64[1] {2}> ()
  shape = Shape (input_ids)
  one = Constant <value = int64 {1}> ()
  tokens = Gather (shape, one)
  wide = Expand (tokens, shape)
  counted = Unsqueeze (wide, last)
  token_embeddings = Cast <to = 1> (counted)
}
"""
"""Each token's embedding is T."""


@pytest.mark.parametrize(
    ("short", "tile", "lengths", "padded"),
    [
        (0, 0, [3, 9, 5], [9, 9, 9]),
        (8, 0, [3, 9, 5], [5, 9, 5]),
        (8, 0, [3, 8, 5], [8, 8, 8]),
        (8, 0, [10, 9], [10, 10]),
        (8, 7, [8, 5, 15], [8, 8, 16]),
        (0, 7, [8, 5], [9, 9]),
    ],
    ids=["one sort", "both", "short ones", "long ones", "no short one becomes long", "no limit"],
)
def test_a_short_input_is_not_padded_to_a_long_one(
    short: int, tile: int, lengths: list[int], padded: list[int], tmp_path: Path
) -> None:
    """The graph would compute it in another way, and nobody could say which bits its vector has."""
    model = parser.parse_model(GRAPH)
    stated = {SHORT_TOKENS: short, TILE_ROWS: tile}
    helper.set_model_props(model, {name: str(size) for name, size in stated.items() if size})
    onnx.save(model, tmp_path / "model.onnx")
    engine = OnnxEngine(tmp_path, manifest_of("m"))
    rows = engine.run([[5] * length for length in lengths])
    np.testing.assert_array_equal(np.round(rows[:, 0]), padded)
    engine.close()
