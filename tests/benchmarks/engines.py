"""Whole pipelines, text to vector, side by side: ours and the peers', same texts, same longest input."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from shared.contracts import EmbedRequest, FloatMatrix
from shared.engines.cpu import capacity, open_cpu_engine
from shared.inference.batcher import Batcher
from shared.inference.model import load_model
from shared.inference.steps import completed
from shared.models.manifest import MANIFEST_FILE, Manifest, Target, decode_manifest
from shared.vectors import finish
from tests.benchmarks.peers import PEERS, Embed, Setting
from tests.benchmarks.turns import ROUNDS, Turns, take_turns

TRUTH = "sentence-transformers FP32, batch 32"
OURS = "BlitzEmbedding INT8"
TARGETS: Mapping[str, Target] = {
    OURS: "cpu-int8",
    "BlitzEmbedding static INT8, OpenVINO": "cpu-int8-static",
    "BlitzEmbedding BF16, OpenVINO": "cpu-bf16",
}
ALONE = 40
"""Texts that are also embedded one by one."""


def ours(folder: Path, manifest: Manifest) -> Embed:
    """The engine as the server drives it: tokenise, batch over all cores, pool, normalise."""
    limits = capacity()
    model = load_model(
        folder, manifest, open_cpu_engine, batch_tokens=limits.tokens_for(manifest.target)
    )
    batcher = Batcher(
        threads=limits.threads,
        budget_tokens=limits.batch_tokens,
        max_texts=limits.batch_texts,
        max_bytes=sys.maxsize,
        max_wait_s=0,
        max_queue_tokens=10_000_000,
        max_queue_s=1e9,
    )

    def embed(texts: Sequence[str]) -> FloatMatrix:
        sequences = completed(model.tokenize(EmbedRequest(manifest.name, tuple(texts))))
        with batcher.reserve(0) as reservation:
            batched = asyncio.run(batcher.submit(model, sequences, reservation))
        return finish(batched.rows, None, True)

    return embed


def alone(folder: Path, manifest: Manifest) -> Embed:
    """The engine called directly: tokenise, run, normalise; no batcher and no other thread."""
    model = load_model(folder, manifest, open_cpu_engine)

    def embed(texts: Sequence[str]) -> FloatMatrix:
        tokens = completed(model.tokenize(EmbedRequest(manifest.name, tuple(texts))))
        return finish(model.run(tokens), None, True)

    return embed


def build(source: Path, target: Target, out: Path) -> tuple[Path, Manifest]:
    """A model, measured by its gates."""
    command = [sys.executable, "-m", "model_build", str(source), "--name", target, "--target", target]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    return out, decode_manifest((out / MANIFEST_FILE).read_bytes())


@dataclass(frozen=True, slots=True)
class Contenders:
    """Everything that is compared, by name; the first is what the others' vectors should be like.

    built: our models by name, folder and manifest of each.
    """

    setting: Setting
    built: Mapping[str, tuple[Path, Manifest]]

    @property
    def names(self) -> list[str]:
        return [TRUTH, *self.built, *(name for name in PEERS if name != TRUTH)]

    def prepare(self, texts: Sequence[str]) -> None:
        """Write what the peers open. texts: to calibrate with."""
        for peer in PEERS.values():
            peer.prepare(self.setting, texts)

    def open(self, name: str) -> Embed:
        """Loaded anew."""
        return ours(*self.built[name]) if name in self.built else PEERS[name].open(self.setting)

    def peak_mib(self, name: str, texts: Sequence[str]) -> float:
        """The most memory of a process of its own that opens it and embeds `texts`. Linux only."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(_peak_mib, self, name, texts).result()


def _peak_mib(contenders: Contenders, name: str, texts: Sequence[str]) -> float:
    contenders.open(name)(texts)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def rate_of(embed: Embed, texts: Sequence[str], at_once: int = sys.maxsize) -> Callable[[], float]:
    """Texts a second, `at_once` a call, measured anew at each call; warmed up here."""
    calls = [texts[start : start + at_once] for start in range(0, len(texts), min(at_once, len(texts)))]
    embed(texts[:32])

    def measure() -> float:
        started = time.perf_counter()
        for call in calls:
            embed(call)
        return len(texts) / (time.perf_counter() - started)

    return measure


def race(contenders: Mapping[str, Embed], texts: Sequence[str], rounds: int = ROUNDS) -> Turns:
    """Texts a second of each, taken in turns."""
    return take_turns({name: rate_of(embed, texts) for name, embed in contenders.items()}, rounds)


def fidelity(contenders: Mapping[str, Embed], texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """By name: cosines with the first one's vectors, and of a text alone with itself among others."""
    vectors = {name: embed(texts) for name, embed in contenders.items()}
    reference = next(iter(vectors.values()))
    table = {}
    for name, embed in contenders.items():
        cosines = (vectors[name] * reference).sum(axis=1)
        own = [float(embed([text])[0] @ vectors[name][row]) for row, text in enumerate(texts[:ALONE])]
        table[name] = {
            "cos mean": float(cosines.mean()),
            "cos min": float(cosines.min()),
            "self-cos min": min(own),
        }
    return table
