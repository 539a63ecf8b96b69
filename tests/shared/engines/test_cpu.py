"""Which engine a target gets, and what is said where that engine is not installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from functions.backend.build import build_inference
from shared.contracts import EmbedRequest, Tokens
from shared.engines.base import Capacity, Engine, Rows
from shared.engines.cpu import capacity, open_cpu_engine
from shared.errors import Misconfigured, ModelLoadFailed
from shared.models.manifest import OPENVINO_TARGETS, Manifest
from shared.settings import Settings
from tests.tiny import Tiny, manifest_of, nearly, publish_all

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package is not installed, which is the usual case."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "shared.engines.openvino", raising=False)


@pytest.mark.parametrize("target", sorted(OPENVINO_TARGETS))
def test_a_missing_engine_is_named(target: str) -> None:
    """With the model, the target, and what to do."""
    with pytest.raises(Misconfigured, match=r"m is built for .*OpenVINO.* not installed") as refused:
        open_cpu_engine(Path(), manifest_of("m", target=target))
    assert target in refused.value.message
    assert "requirements-openvino.txt" in refused.value.message
    assert "CPU_OPENVINO=true" in refused.value.message


async def test_other_models_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The start logs which model lacks its engine; its requests and /ready's states have the reason."""
    store = f"file://{tmp_path / 'store'}"
    needy, plain = Tiny("needy"), Tiny("plain")
    publish_all([needy], store, "cpu-bf16")
    publish_all([plain], store, "cpu-fp32")
    settings = Settings(
        model_store=store, cache_dir=tmp_path / "cache", threads=1, warm_models=("needy", "plain")
    )
    inference = build_inference(settings, "cpu", open_cpu_engine, capacity())
    try:
        result = await inference.run(EmbedRequest("plain", ("w1 w2",)))
        assert nearly(result.vectors, plain.vectors(["w1 w2"]))
        with pytest.raises(ModelLoadFailed, match="OpenVINO"):
            await inference.run(EmbedRequest("needy", ("w1",)))
        states = {state.name: state for state in await inference.states()}
    finally:
        await inference.close()
    assert (states["needy"].state, states["plain"].state) == ("failed", "warm")
    assert "OpenVINO" in (states["needy"].reason or "")
    assert "needy did not load: needy is built for cpu-bf16, which OpenVINO runs" in caplog.text


@pytest.mark.parametrize(("asked", "most"), [(0, 16), (8, 8)])
async def test_a_target_runs_as_much_at_once_as_is_best_for_it(
    asked: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless BLITZ_BATCH_TOKENS says another number, for all models."""
    ran = []

    def open_engine(folder: Path, manifest: Manifest) -> Engine:
        engine = open_cpu_engine(folder, manifest)
        run = engine.run

        def counted(sequences: Sequence[Tokens]) -> Rows:
            ran.append(sum(map(len, sequences)))
            return run(sequences)

        monkeypatch.setattr(engine, "run", counted)
        return engine

    store = f"file://{tmp_path / 'store'}"
    publish_all([Tiny("m")], store, "cpu-fp32")
    settings = Settings(model_store=store, cache_dir=tmp_path / "cache", batch_tokens=asked)
    limits = Capacity(threads=1, batch_tokens=4, batch_texts=99, target_tokens={"cpu-fp32": 16})
    inference = build_inference(settings, "cpu", open_engine, limits)
    try:
        await inference.run(EmbedRequest("m", ("w1 w2",) * 20))
    finally:
        await inference.close()
    assert max(ran) == most
