"""Whole pipelines, text to vector, side by side: ours and the peers', same texts, same longest input."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shared.contracts import EmbedRequest, FloatMatrix
from shared.engines.cpu import open_cpu_engine
from shared.engines.onnx import capacity
from shared.inference.batcher import Batcher
from shared.inference.model import Model, load_model
from shared.inference.schedule import plan_batches
from shared.inference.steps import completed
from shared.models.manifest import MANIFEST_FILE, Manifest, Target, decode_manifest
from shared.vectors import finish, pool
from tests.benchmarks.turns import Turns, take_turns

Embed = Callable[[list[str]], FloatMatrix]


def ours(folder: Path, manifest: Manifest) -> tuple[Embed, Model]:
    """The engine as the server drives it: tokenise, batch over all cores, pool, normalise."""
    limits = capacity()
    model = load_model(folder, manifest, open_cpu_engine)
    batcher = Batcher(
        threads=limits.threads,
        budget_tokens=limits.batch_tokens,
        max_texts=limits.batch_texts,
        max_bytes=sys.maxsize,
        max_wait_s=0,
        max_queue_tokens=10_000_000,
        max_queue_s=1e9,
    )

    def embed(texts: list[str]) -> FloatMatrix:
        sequences = completed(model.tokenize(EmbedRequest(manifest.name, tuple(texts))))
        with batcher.reserve(0) as reservation:
            batched = asyncio.run(batcher.submit(model, sequences, reservation))
        return finish(batched.rows, None, True)

    return embed, model


def alone(folder: Path, manifest: Manifest) -> Embed:
    """The engine called directly: tokenise, run, normalise; no batcher and no other thread."""
    model = load_model(folder, manifest, open_cpu_engine)

    def embed(texts: list[str]) -> FloatMatrix:
        tokens = completed(model.tokenize(EmbedRequest(manifest.name, tuple(texts))))
        return finish(model.run(tokens), None, True)

    return embed


def ours_on_openvino(source: Path, target: Target, work: Path) -> Embed:
    """The second engine, over a model that is built and measured first."""
    out = work / target
    command = [sys.executable, "-m", "model_build", str(source), "--name", target, "--target", target]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    return ours(out, decode_manifest((out / MANIFEST_FILE).read_bytes()))[0]


def sentence_transformers(source: Path, max_tokens: int) -> Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(source), device="cpu")
    model.max_seq_length = max_tokens
    return lambda texts: np.asarray(model.encode(texts, batch_size=32, show_progress_bar=False))


def quantize_dynamic(fp32: Path, work: Path, ours_: Model, intra_threads: int) -> Embed:
    """ORT's stock INT8 at batch 32, length-sorted, one session with all cores inside."""
    import onnxruntime as ort
    from onnxruntime.quantization import quantize_dynamic as quantize

    path = work / "dynamic.onnx"
    quantize(fp32, path, extra_options={"DefaultTensorType": 1})
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(ids: Any, mask: Any) -> Any:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return _batched(run, ours_, 32)


def fastembed(source: Path, model_file: Path, max_tokens: int, work: Path) -> Embed:
    """fastembed's own defaults over its INT8 kind of file (quantize_dynamic)."""
    import json

    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    folder = work / "fastembed"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"model_max_length": max_tokens, "max_length": max_tokens})
    )
    shutil.copy(model_file, folder / "model.onnx")
    TextEmbedding.add_custom_model(
        model="bench/minilm",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="bench/minilm"),
        dim=384,
        model_file="model.onnx",
    )
    model = TextEmbedding("bench/minilm", specific_model_path=str(folder))
    return lambda texts: np.stack(list(model.embed(texts)))


def openvino_static(source: Path, ours_: Model, texts: list[str]) -> Embed:
    """OpenVINO with NNCF's static INT8, transformer preset, throughput hint."""
    import nncf
    import openvino as ov
    import torch
    from transformers import AutoModel

    logging.getLogger("nncf").setLevel(logging.ERROR)
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    converted = ov.convert_model(AutoModel.from_pretrained(source).eval(), example_input=example)

    def feeds(batch: list[str]) -> dict[str, Any]:
        sequences = completed(ours_.tokenize(EmbedRequest("m", tuple(batch))))
        ids, mask = _padded(sequences)
        return {"input_ids": ids, "attention_mask": mask}

    calibration = nncf.Dataset(texts[:64], lambda text: feeds([text]))
    quantized = nncf.quantize(
        converted, calibration, model_type=nncf.ModelType.TRANSFORMER, subset_size=64
    )
    compiled = ov.Core().compile_model(quantized, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})

    def embed(batch: list[str]) -> FloatMatrix:
        sequences = completed(ours_.tokenize(EmbedRequest("m", tuple(batch))))
        plan = plan_batches([len(ids) for ids in sequences], budget_tokens=384, max_texts=128)
        vectors = np.empty((len(batch), 384), np.float32)
        queue = ov.AsyncInferQueue(compiled)

        def done(request: Any, rows: list[int]) -> None:
            hidden = request.get_output_tensor(0).data
            vectors[rows] = pool(hidden, [len(sequences[row]) for row in rows], "mean")

        queue.set_callback(done)
        for rows in plan:
            ids, mask = _padded([sequences[row] for row in rows])
            queue.start_async({"input_ids": ids, "attention_mask": mask}, rows)
        queue.wait_all()
        return finish(vectors, None, True)

    return embed


def rate_of(embed: Embed, texts: list[str]) -> Callable[[], float]:
    """Texts a second, measured anew at each call; warmed up here."""
    embed(texts[:32])

    def measure() -> float:
        started = time.perf_counter()
        embed(texts)
        return len(texts) / (time.perf_counter() - started)

    return measure


def compare(contenders: dict[str, Embed], texts: list[str]) -> tuple[Turns, dict[str, dict[str, float]]]:
    """Texts a second, taken in turns, and cosines against the first contender."""
    turns = take_turns({name: rate_of(embed, texts) for name, embed in contenders.items()})
    vectors = {name: embed(texts) for name, embed in contenders.items()}
    reference = next(iter(vectors.values()))
    table = {}
    for name in contenders:
        cosines = (vectors[name] * reference).sum(axis=1)
        alone = np.vstack([contenders[name]([text]) for text in texts[:40]])
        table[name] = {
            "texts/s": turns.of(name).median,
            "cos mean": float(cosines.mean()),
            "cos min": float(cosines.min()),
            "self-cos min": float((alone * vectors[name][:40]).sum(axis=1).min()),
        }
    return turns, table


def _batched(run: Callable[[Any, Any], Any], model: Model, size: int) -> Embed:
    def embed(texts: list[str]) -> FloatMatrix:
        sequences = completed(model.tokenize(EmbedRequest("m", tuple(texts))))
        order = sorted(range(len(texts)), key=lambda row: -len(sequences[row]))
        vectors = np.empty((len(texts), model.manifest.dimensions), np.float32)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            hidden = run(*_padded([sequences[row] for row in rows]))
            vectors[rows] = pool(hidden, [len(sequences[row]) for row in rows], "mean")
        return finish(vectors, None, True)

    return embed


def _padded(sequences: list[list[int]]) -> tuple[Any, Any]:
    from shared.engines.base import pad

    batch = pad(sequences, 0)
    return batch.input_ids, batch.attention_mask
