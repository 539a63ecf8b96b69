"""Others' pipelines, text to vector, each as its documentation says, over the same weights.

Each has a part that writes what it needs, once, and a part that opens it: so its memory can be measured
in a process of its own. Texts are cut at the same number of tokens as ours.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.contracts import FloatMatrix
from shared.engines.base import pad
from shared.engines.cpus import usable_cpus
from shared.inference.schedule import plan_batches
from shared.vectors import finish, pool

Embed = Callable[[Sequence[str]], FloatMatrix]
Run = Callable[[Sequence[list[int]]], Any]
"""B texts' token ids -> token embeddings (B, T, H)."""

_TOKENS = 512
"""Of a micro-batch of OpenVINO driven by hand, as of our own engine over it."""
_COMPILED: list[Any] = []
"""Never freed: that waits for OpenVINO's threads, which may wait for Python's lock after a callback."""
BATCH = 32
"""sentence-transformers' default, and what each peer gets that has none of its own."""
CALIBRATION_TEXTS = 64


@dataclass(frozen=True, slots=True)
class Setting:
    """source: a sentence-transformers folder with mean pooling. fp32: its graph. work: scratch."""

    source: Path
    fp32: Path
    work: Path
    max_tokens: int


class Peer(NamedTuple):
    """prepare: writes what `open` reads, given texts to calibrate with."""

    open: Callable[[Setting], Embed]
    prepare: Callable[[Setting, Sequence[str]], None] = lambda setting, texts: None


def _sentence_transformers(setting: Setting) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(setting.source), device="cpu")
    model.max_seq_length = setting.max_tokens

    def embed(texts: Sequence[str]) -> FloatMatrix:
        torch.set_num_threads(usable_cpus())  # CTranslate2 sets one, for all of the process
        vectors = model.encode(list(texts), batch_size=BATCH, show_progress_bar=False)
        return np.asarray(vectors, np.float32)

    return embed


def write_dynamic(setting: Setting) -> None:
    """`dynamic_file`: ONNX Runtime's stock INT8."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(setting.fp32, dynamic_file(setting), extra_options={"DefaultTensorType": 1})


def dynamic_file(setting: Setting) -> Path:
    """What several peers read."""
    return setting.work / "dynamic.onnx"


def _onnxruntime(setting: Setting) -> Embed:
    """One session with all cores inside."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    session = ort.InferenceSession(
        str(dynamic_file(setting)), options, providers=["CPUExecutionProvider"]
    )

    def run(sequences: Sequence[list[int]]) -> Any:
        ids, mask = _padded(sequences)
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return _sorted_by_length(setting, run)


def _fastembed_folder(setting: Setting, texts: Sequence[str]) -> None:
    folder = setting.work / "fastembed"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(setting.source / name, folder)
    longest = {"model_max_length": setting.max_tokens, "max_length": setting.max_tokens}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | longest))
    shutil.copy(dynamic_file(setting), folder / "model.onnx")


def _fastembed(setting: Setting) -> Embed:
    """Its own defaults."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="bench/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="bench/model"),
        dim=384,
        model_file="model.onnx",
    )
    model = TextEmbedding("bench/model", specific_model_path=str(setting.work / "fastembed"))
    return lambda texts: np.stack(list(model.embed(list(texts)))).astype(np.float32)


def _convert_to_ctranslate2(setting: Setting, texts: Sequence[str]) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(setting.source)).convert(
        str(setting.work / "ctranslate2"), quantization="int8"
    )


def _ctranslate2(setting: Setting) -> Embed:
    """A worker a core, each with a thread of its own: its advice for throughput."""
    import ctranslate2

    encoder = ctranslate2.Encoder(
        str(setting.work / "ctranslate2"),
        device="cpu",
        compute_type="int8",
        inter_threads=usable_cpus(),
        intra_threads=1,
    )

    def run(sequences: Sequence[list[int]]) -> Any:
        return np.asarray(encoder.forward_batch(sequences).last_hidden_state)

    return _sorted_by_length(setting, run, ThreadPoolExecutor(usable_cpus()).map)


def _openvino_static_file(setting: Setting, texts: Sequence[str]) -> None:
    """NNCF's static INT8 with its preset for transformers."""
    import nncf
    import openvino as ov

    logging.getLogger("nncf").setLevel(logging.ERROR)
    tokenize = tokenizer_of(setting)

    def feeds(text: str) -> dict[str, Any]:
        ids, mask = _padded(tokenize([text]))
        return {"input_ids": ids, "attention_mask": mask}

    quantized = nncf.quantize(
        _openvino_model(setting),
        nncf.Dataset(list(texts[:CALIBRATION_TEXTS]), feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=CALIBRATION_TEXTS,
    )
    ov.save_model(quantized, setting.work / "static.xml")


def _openvino_weights_file(setting: Setting, texts: Sequence[str]) -> None:
    """INT8 weights; activations stay for OpenVINO to quantise."""
    import nncf
    import openvino as ov

    logging.getLogger("nncf").setLevel(logging.ERROR)
    ov.save_model(nncf.compress_weights(_openvino_model(setting)), setting.work / "weights.xml")


def _openvino_model(setting: Setting) -> Any:
    import openvino as ov
    import torch
    from transformers import AutoModel

    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    model = AutoModel.from_pretrained(setting.source).eval()
    return ov.convert_model(model, example_input=example)


def _openvino(file: str, config: dict[str, Any]) -> Callable[[Setting], Embed]:
    """Driven by hand: throughput hint, our micro-batches, asynchronous requests."""

    def open_(setting: Setting) -> Embed:
        import openvino as ov

        options = {"PERFORMANCE_HINT": "THROUGHPUT", **config}
        compiled = ov.Core().compile_model(setting.work / file, "CPU", options)
        _COMPILED.append(compiled)
        tokenize = tokenizer_of(setting)

        def embed(texts: Sequence[str]) -> FloatMatrix:
            sequences = tokenize(texts)
            vectors = np.empty(
                (len(texts), compiled.output(0).partial_shape[2].get_length()), np.float32
            )
            queue = ov.AsyncInferQueue(compiled)

            def done(request: Any, rows: list[int]) -> None:
                hidden = request.get_output_tensor(0).data
                vectors[rows] = pool(hidden, [len(sequences[row]) for row in rows], "mean")

            queue.set_callback(done)
            for rows in plan_batches(
                [len(ids) for ids in sequences], budget_tokens=_TOKENS, max_texts=128
            ):
                ids, mask = _padded([sequences[row] for row in rows])
                queue.start_async({"input_ids": ids, "attention_mask": mask}, rows)
            queue.wait_all()
            return finish(vectors, None, True)

        return embed

    return open_


def tokenizer_of(setting: Setting) -> Callable[[Sequence[str]], list[list[int]]]:
    """Texts -> token ids, by the tokenizers library."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(setting.source / "tokenizer.json"))
    tokenizer.enable_truncation(setting.max_tokens)
    tokenizer.no_padding()
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]


def _sorted_by_length(setting: Setting, run: Run, each: Callable[..., Iterable[Any]] = map) -> Embed:
    """each: as `map`, which runs a batch after the other."""
    tokenize = tokenizer_of(setting)

    def embed(texts: Sequence[str]) -> FloatMatrix:
        sequences = tokenize(texts)

        def pooled(rows: Sequence[int]) -> Any:
            batch = [sequences[row] for row in rows]
            return pool(run(batch), [len(ids) for ids in batch], "mean")

        batches = _batches(sequences)
        vectors = np.concatenate(list(each(pooled, batches)))
        order = np.concatenate(batches)
        return finish(vectors[np.argsort(order)], None, True)

    return embed


def _batches(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows in batches of BATCH, longest first."""
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def _padded(sequences: Sequence[list[int]]) -> tuple[Any, Any]:
    batch = pad(sequences, 0)
    return batch.input_ids, batch.attention_mask


PEERS = {
    "sentence-transformers FP32, batch 32": Peer(_sentence_transformers),
    "ORT quantize_dynamic, batch 32": Peer(_onnxruntime),
    "fastembed on that file, its defaults": Peer(_fastembed, _fastembed_folder),
    "CTranslate2 INT8, batch 32": Peer(_ctranslate2, _convert_to_ctranslate2),
    "OpenVINO, INT8 weights, activations per token": Peer(
        _openvino("weights.xml", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}), _openvino_weights_file
    ),
    "OpenVINO static INT8 (NNCF)": Peer(_openvino("static.xml", {}), _openvino_static_file),
}
"""`dynamic_file` is there when they are prepared."""
