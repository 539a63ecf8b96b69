"""Runs an FP32 graph over sample texts to measure the magnitudes of its layers' inputs.

It does not know how the magnitudes are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from model_build.linears import linears
from model_build.odd_texts import ODD_TEXTS
from model_build.samples import sample_rankings, sample_texts
from model_build.smoothing import Channels, choose_divisors
from model_build.source import SourceModel
from shared.contracts import Tokens
from shared.engines.base import pad
from shared.inference.steps import completed
from shared.inference.tokenization import Tokenizer

_TEXTS = 40
_QUERIES = 6
_LONGEST = 512
"""Tokens per text. Longer texts show the same outlier channels, and attention cost is quadratic."""


def find_divisors(graph: Path, source: SourceModel) -> dict[str, Channels]:
    """Name of a layer's input -> (K,) float32 divisors of its channels, applied before quantisation.

    graph: an FP32 graph from `export_onnx`.
    """
    largest = largest_inputs(graph, calibration_inputs(source))
    return choose_divisors(onnx.load(graph).graph, largest)


def calibration_inputs(source: SourceModel) -> list[Tokens]:
    """Tokenised calibration inputs: texts of every kind, or pairs for a cross-encoder."""
    tokenizer = Tokenizer(
        source.tokenizer_json, min(source.max_tokens, _LONGEST), template=source.template
    )
    if source.task == "cross-encoder":
        return [
            pair
            for each in sample_rankings()[:_QUERIES]
            for pair in completed(tokenizer.encode_pairs(each.query, each.documents))
        ]
    texts = [*sample_texts()[:_TEXTS], *(text for texts in ODD_TEXTS.values() for text in texts)]
    prefix = source.prompts.get(source.default_prompt or "", "")
    # A tokenizer without special tokens gives no tokens for white space.
    return [ids for ids in completed(tokenizer.encode(texts, prefix=prefix)) if ids]


def largest_inputs(graph: Path, sequences: Sequence[Tokens]) -> dict[str, Channels]:
    """Name of a layer's input -> (K,) float32 largest magnitude per channel over all `sequences`."""
    model = onnx.load(graph)
    inputs = sorted({layer.x for layer in linears(model.graph)})
    for x in inputs:  # (..., K) -> (rows, K) -> (K,), so that no large tensor leaves the graph
        model.graph.node.append(helper.make_node("Abs", [x], [f"{x}_magnitudes"]))
        model.graph.node.append(helper.make_node("Flatten", [f"{x}_magnitudes"], [f"{x}_flat"], axis=-1))
        model.graph.node.append(
            helper.make_node("ReduceMax", [f"{x}_flat"], [f"{x}_largest"], axes=[0], keepdims=0)
        )
        model.graph.output.append(helper.make_tensor_value_info(f"{x}_largest", TensorProto.FLOAT, None))
    session = _open(model.SerializeToString())
    names = [f"{x}_largest" for x in inputs]
    largest: dict[str, Channels] = {}
    for tokens in sequences:
        for x, value in zip(inputs, session.run(names, _feeds(session, tokens)), strict=True):
            largest[x] = np.maximum(largest[x], value) if x in largest else value
    return largest


def _open(model: bytes) -> ort.InferenceSession:
    """A session without graph optimisation: it runs only a few texts."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _feeds(session: ort.InferenceSession, tokens: Tokens) -> dict[str, NDArray[np.int64]]:
    """One sequence as the inputs of an exported graph."""
    batch = pad([tokens], 0)
    return {each.name: getattr(batch, each.name) for each in session.get_inputs()}
