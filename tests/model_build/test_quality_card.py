"""What a card says of a measured model, and that it does not change the revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from model_build.describe import CARD_FILE, card, file_of, revision_of, with_card, with_int8_ranges
from shared.models.manifest import File, Quality
from tests.tiny import manifest_of

FILES = (File("model.onnx", 1, "00"), File("tokenizer.json", 1, "11"), File(CARD_FILE, 1, "22"))
MODEL = manifest_of("m", files=FILES)


def measured(**fields: Any) -> Quality:
    usual = {"batch_max_abs_diff": 0.0, "load_s": 0.5, "inputs_per_s": 9.0}
    return Quality(**(usual | {"cosine_mean": 0.9981, "cosine_min": 0.991} | fields))


@pytest.mark.parametrize(
    ("quality", "told"),
    [
        (measured(), ["mean 0.9981, minimum 0.9910"]),
        (
            measured(outputs={"int8": 0.9985, "64 dimensions": 0.95, "binary": None}),
            ["| int8 | 0.9985 |", "| 64 dimensions | 0.9500 |", "| binary | - |"],
        ),
        (measured(evaluations={"sts spearman, int8": 0.8}), ["| sts spearman, int8 | 0.8000 |"]),
        (
            measured(kept_fp32=("layer.1", "layer.0"), kept_fp32_share=0.05, kept_fp32_time=1.09),
            ["(5.0% of the multiplications; 1.09 times", "- `layer.1`\n- `layer.0`"],
        ),
    ],
)
def test_a_card_says_what_was_measured(quality: Quality, told: list[str]) -> None:
    """Closeness, forms of the vectors, tasks and the layers in FP32; nothing of what there is not."""
    said = card(msgspec.structs.replace(MODEL, quality=quality))
    assert all(each in said for each in told)
    assert ("FP32" in said) == bool(quality.kept_fp32)
    assert ("Spearman" in said) == bool(quality.outputs)


def test_a_card_of_a_model_that_was_not_measured_says_nothing_of_it() -> None:
    assert "Quality" not in card(MODEL)


def test_figures_change_the_card_and_not_the_revision(tmp_path: Path) -> None:
    """Its file is listed as it is then; other int8 ranges are another revision."""
    before = revision_of(MODEL)
    told = with_card(tmp_path, msgspec.structs.replace(MODEL, quality=measured()))
    assert told.files[-1] == file_of(tmp_path / CARD_FILE)
    assert len(told.files) == len(FILES)
    assert revision_of(told) == before
    assert with_int8_ranges(MODEL, {16: 0.5}).revision != before
