"""A build that takes more memory than there is, is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_build import peaks
from model_build.locate import Located
from model_build.make import Asked, make
from model_build.progress import Progressing
from shared.errors import InvalidInput
from shared.models.manifest import Source, Target
from tests.tiny_torch import tiny_model

M3 = 566_706_176
"""Weights of bge-m3 without its pooler: 2.27 GB in FP32."""
SMALL = 127_831_040
"""511 MB in FP32."""


@pytest.mark.parametrize(
    ("elements", "target", "memory", "fits"),
    [
        # With GB that whole builds, or their conversion, took; see docs/measurements/int8-cpu.md.
        (M3, "cpu-int8", 8e9, True),
        (M3, "cpu-int8", 5.0e9, False),
        (SMALL, "cpu-int8", 4e9, True),
        (SMALL, "cpu-int8", 1.5e9, False),
        (SMALL, "cpu-fp32", 4e9, True),
        (SMALL, "cpu-fp32", 2.1e9, False),
        (SMALL, "cpu-bf16", 2.1e9, False),
        (SMALL, "gpu-fp16", 4e9, True),
        (SMALL, "gpu-fp16", 1.8e9, False),
        (0, "cpu-static", 1e6, True),
    ],
)
def test_memory_is_what_builds_took(
    elements: int, target: Target, memory: float, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with less than was measured is refused, one with some more is not."""
    monkeypatch.setattr(peaks, "usable_memory", lambda: int(memory))
    if fits:
        peaks.check_memory(elements, target)
        return
    with pytest.raises(InvalidInput, match=f"{int(memory)}$") as refused:
        peaks.check_memory(elements, target)
    assert refused.value.field == "model"
    assert str(peaks.peak_bytes(elements, target)) in refused.value.message


def test_nothing_is_written_for_a_machine_that_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is read, and then refused."""
    monkeypatch.setattr(peaks, "usable_memory", lambda: 100_000_000)
    folder, out = tiny_model(tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    asked = Asked(
        target="cpu-int8",
        name="m",
        pooling=None,
        prompts={},
        evaluations=[],
        min_cosine=None,
        min_worst_cosine=None,
        min_rank_agreement=None,
    )
    with pytest.raises(InvalidInput, match="a build for cpu-int8 takes 1000"):
        make(out, Located(folder, "m", Source("here", "1")), asked, Progressing(5))
    assert not list(out.iterdir())
