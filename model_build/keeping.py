"""Keeps layers of an INT8 model in FP32 until it is as close to the original as it should be.

It does not know how layers are ranked, nor how a model is built, described or measured.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from model_build.calibration import proving_inputs
from model_build.evaluate import rank_agreements
from model_build.fidelity import compare_vectors, fidelity_shortfalls
from model_build.gates import Gates, distances
from model_build.sensitivity import Holds, Kept, Sensitivity
from model_build.serving import probabilities
from model_build.source import SourceModel
from shared.cards import Task
from shared.contracts import FloatMatrix
from shared.engines.cpu import open_cpu_engine
from shared.models.manifest import Manifest, Quality

GATE_SHARE = 0.25
"""Share of the linear layers' multiplications that may stay in FP32 for the gate. With more a model is
hardly faster than in FP32."""
AIM_SHARE: Mapping[Task, float] = {"embedding": 0.06, "cross-encoder": GATE_SHARE}
"""... and for the aim. Of an embedding model about 10 % of speed; of a cross-encoder as much as for the
gate, since the order of its scores is all that it gives."""
_ROUNDS = 5
_TIMED = 32

Rebuild = Callable[[Path, Kept], Manifest]
"""Builds into a folder with these layers in FP32; the measured manifest."""


def keep_in_fp32(
    folder: Path,
    built: Manifest,
    graphs: tuple[Path, Path],
    source: SourceModel,
    rebuild: Rebuild,
    aims: Gates,
    gates: Gates,
) -> Manifest:
    """The manifest of what is in `folder` afterwards: the same as `built`, or with layers in FP32.

    built: all in INT8, measured, and short of `aims`. graphs: in FP32 and INT8, before they were
    optimised. If the aims take more than AIM_SHARE, only the gates are tried for, with GATE_SHARE.
    """
    sensitivity = Sensitivity(*graphs, source)
    for goal, (wanted, share) in enumerate(((aims, AIM_SHARE[source.task]), (gates, GATE_SHARE))):
        if not _misses(built, wanted):
            break
        for number, kept in enumerate(sensitivity.kept_sets(_holds(source, wanted), share)):
            tried = folder / f"kept-{goal}-{number}"
            tried.mkdir()
            manifest = rebuild(tried, kept)
            if not _misses(manifest, wanted):
                slower = _slowdown((folder, built), (tried, manifest), source)
                for file in manifest.files:
                    shutil.copyfile(tried / file.name, folder / file.name)
                return _with_cost(manifest, kept, slower)
    return built


def _misses(manifest: Manifest, wanted: Gates) -> bool:
    return bool(distances(_quality(manifest), wanted))


def _quality(manifest: Manifest) -> Quality:
    assert manifest.quality is not None
    return manifest.quality


def _with_cost(manifest: Manifest, kept: Kept, slower: float) -> Manifest:
    quality = msgspec.structs.replace(
        _quality(manifest),
        kept_fp32=kept.names,
        kept_fp32_share=round(kept.share, 4),
        kept_fp32_time=round(slower, 3),
    )
    return msgspec.structs.replace(manifest, quality=quality)


def _holds(source: SourceModel, wanted: Gates) -> Holds:
    def vectors_hold(rows: FloatMatrix, exact: FloatMatrix, _: Sequence[int]) -> bool:
        found = compare_vectors(rows, exact, wanted.cosine)
        return not fidelity_shortfalls(found, wanted.cosine)

    def scores_hold(rows: FloatMatrix, exact: FloatMatrix, counts: Sequence[int]) -> bool:
        off = np.abs(probabilities(rows) - probabilities(exact)).max()
        agreement = float(np.mean(rank_agreements(rows, exact, counts)))
        return agreement >= wanted.rank_agreement and off <= wanted.score_difference

    return vectors_hold if source.task == "embedding" else scores_hold


def _slowdown(before: tuple[Path, Manifest], after: tuple[Path, Manifest], source: SourceModel) -> float:
    """How many times as long the second takes as the first, in turns over the same texts."""
    sequences = proving_inputs(source)[0][:_TIMED]
    engines = [open_cpu_engine(*each) for each in (before, after)]
    ratios = []
    for _ in range(_ROUNDS):
        took = []
        for engine in engines:
            started = time.perf_counter()
            for tokens in sequences:
                engine.run([tokens])
            took.append(time.perf_counter() - started)
        ratios.append(took[1] / took[0])
    for engine in engines:
        engine.close()
    return median(ratios)
