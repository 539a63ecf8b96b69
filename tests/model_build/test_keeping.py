"""How much of a model may stay in FP32, without a model: the search and the builds are stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from model_build import keeping
from model_build.gates import gates_of, int8_aims
from model_build.keeping import keep_in_fp32
from model_build.sensitivity import Kept
from shared.models.manifest import Manifest, Quality
from tests.tiny import manifest_of

NEEDED = 0.2
"""Share of the multiplications with which the stand-in is close enough, and with less it is not."""


class Source:
    """As much of a source as the search needs to be chosen by."""

    def __init__(self, task: str) -> None:
        self.task = task


class Search:
    """A Sensitivity that finds one set, if so much may be kept."""

    def __init__(self, *_: object) -> None: ...

    def kept_sets(self, holds: object, most_share: float) -> Iterator[Kept]:
        if most_share >= NEEDED:
            yield Kept(("/model/layer/MatMul_output_0",), NEEDED)


def measured(task: Any, **figures: float) -> Manifest:
    quality = Quality(batch_max_abs_diff=0, load_s=0.1, inputs_per_s=10, **figures)  # type: ignore[arg-type]
    return msgspec.structs.replace(manifest_of("m", target="cpu-int8"), task=task, quality=quality)


def vectors(mean: float) -> Manifest:
    figures = {"cosine_p01": 0.993, "cosine_min": 0.992, "cosine_centred": 0.995}
    return measured("embedding", cosine_mean=mean, cosine_low_share=0.0, **figures)


def scores(agreement: float) -> Manifest:
    return measured("cross-encoder", rank_agreement_mean=agreement, score_max_abs_diff=0.1)


@pytest.mark.parametrize(
    ("built", "kept", "expected"),
    [
        (scores(0.97), scores(0.992), NEEDED),  # a quarter for the order of the scores
        (scores(0.97), scores(0.98), 0.0),  # which then must be reached
        (scores(0.94), scores(0.96), NEEDED),  # or the gate, if that was missed
        (vectors(0.9965), vectors(0.9985), 0.0),  # 6 % for the aim, which is too little here
        (vectors(0.995), vectors(0.9965), NEEDED),  # a quarter for the gate
    ],
)
def test_more_stays_in_fp32_for_scores_than_for_vectors(
    built: Manifest, kept: Manifest, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that passes its gates gives up little speed to be closer, a reranker up to a quarter."""
    monkeypatch.setattr(keeping, "Sensitivity", Search)
    monkeypatch.setattr(keeping, "_slowdown", lambda *_: 1.2)
    kept = msgspec.structs.replace(kept, files=())
    found = keep_in_fp32(
        tmp_path,
        built,
        (tmp_path / "fp32.onnx", tmp_path / "int8.onnx"),
        Source(built.task),  # type: ignore[arg-type]
        lambda folder, chosen: kept,
        int8_aims(),
        gates_of("cpu-int8", built.task),
    )
    assert found.quality is not None
    assert found.quality.kept_fp32_share == expected
