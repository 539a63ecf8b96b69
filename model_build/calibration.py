"""Runs an FP32 graph over sample texts to measure its layers' inputs: their magnitudes and their rows.

It does not know how these are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from model_build.graphs import load_nodes, open_graph, reading_constants
from model_build.linears import linears
from model_build.odd_texts import ODD_TEXTS
from model_build.samples import Ranking, sample_rankings, sample_texts
from model_build.smoothing import Channels, choose_divisors
from model_build.source import SourceModel
from shared.contracts import Tokens
from shared.engines.base import pad
from shared.errors import InvalidInput
from shared.inference.steps import completed
from shared.inference.tokenization import Tokenizer
from shared.models.manifest import head_of
from shared.storage.regular_files import open_regular

_TEXTS = 40
_QUERIES = 6
_TRIED = 80
_PROVING_QUERIES = 12
_LONGEST = 512
"""Tokens per text. Longer texts show the same outlier channels, and attention cost is quadratic."""


_MOST_LINES = 300
_MOST_BYTES = 64 << 20
"""Of an operator's file."""


def find_divisors(graph: Path, source: SourceModel) -> dict[str, Channels]:
    """Name of a layer's input -> (K,) float32 divisors of its channels, applied before quantisation.

    graph: an FP32 graph from `export_onnx`.
    """
    largest = largest_inputs(graph, calibration_inputs(source))
    with reading_constants(graph) as model:
        return choose_divisors(model.graph, largest)


def head_layers(graph: Path, source: SourceModel) -> tuple[str, ...]:
    """Outputs of the linear layers that read one row of a text, not one per token, as a classifier does.

    graph: an FP32 graph from `export_onnx`. None where the graph ends at the tokens.
    """
    if head_of(source.task, source.pooling) != "labels":
        return ()
    model = load_nodes(graph)
    layers = linears(model.graph)
    inputs = sorted({layer.x for layer in layers})
    for x in inputs:  # (..., K) -> (rows, K) -> (2,)
        model.graph.node.append(helper.make_node("Flatten", [x], [f"{x}_flat"], axis=-1))
        model.graph.node.append(helper.make_node("Shape", [f"{x}_flat"], [f"{x}_shape"]))
        model.graph.output.append(helper.make_tensor_value_info(f"{x}_shape", TensorProto.INT64, [2]))
    session = open_graph(model, graph.parent)
    text = max(calibration_inputs(source), key=len)
    shapes = session.run([f"{x}_shape" for x in inputs], _feeds(session, text))
    rows = {x: int(shape[0]) for x, shape in zip(inputs, shapes, strict=True)}
    return tuple(layer.y for layer in layers if rows[layer.x] == 1)


def calibration_inputs(source: SourceModel, given: Path | None = None) -> list[Tokens]:
    """Tokenised calibration inputs: texts of every kind, or pairs for a cross-encoder.

    given: a file of an operator's own, UTF-8: a text a line; for a cross-encoder a query, a tab and a
    document. Raises InvalidInput (field "calibration") for a file that is not.
    """
    tokenizer = _tokenizer(source)
    if given is not None:
        return _tokenize_lines(_read_lines(given), source, tokenizer)
    if source.task == "cross-encoder":
        return _pairs(tokenizer, sample_rankings()[:_QUERIES])
    texts = [*sample_texts()[:_TEXTS], *(text for texts in ODD_TEXTS.values() for text in texts)]
    return _tokenised(source, tokenizer, texts)


def choosing_inputs(source: SourceModel) -> tuple[list[Tokens], list[int]]:
    """Tokenised inputs, and how many documents each query of a cross-encoder has (else none).

    For choosing layers. The gates' English texts are not among them, nor those of `proving_inputs`.
    """
    return _inputs(source, seed=1, queries=3, odd=slice(0, None, 2))


def proving_inputs(source: SourceModel) -> tuple[list[Tokens], list[int]]:
    """As `choosing_inputs`, for testing a choice: other texts, and more of them."""
    return _inputs(source, seed=2, queries=_PROVING_QUERIES, odd=slice(1, None, 2))


def _inputs(
    source: SourceModel, *, seed: int, queries: int, odd: slice
) -> tuple[list[Tokens], list[int]]:
    tokenizer = _tokenizer(source)
    if source.task == "cross-encoder":
        rankings = sample_rankings(seed)[:queries]
        return _pairs(tokenizer, rankings), [len(each.documents) for each in rankings]
    odd_texts = [text for texts in ODD_TEXTS.values() for text in texts][odd]
    return _tokenised(source, tokenizer, [*sample_texts(_TRIED, seed), *odd_texts]), []


def _tokenizer(source: SourceModel) -> Tokenizer:
    return Tokenizer(source.tokenizer_json, min(source.max_tokens, _LONGEST), template=source.template)


def _pairs(tokenizer: Tokenizer, rankings: Iterable[Ranking]) -> list[Tokens]:
    return [
        pair
        for each in rankings
        for pair in completed(tokenizer.encode_pairs(each.query, each.documents))
    ]


def _tokenised(source: SourceModel, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    prefix = source.prompts.get(source.default_prompt or "", "")
    # A tokenizer without special tokens gives no tokens for white space.
    return [ids for ids in completed(tokenizer.encode(texts, prefix=prefix)) if ids]


def _read_lines(path: Path) -> list[str]:
    """The file's lines that are not blank, evenly over the file if there are more than are used."""
    try:
        with open_regular(path) as stream:
            content = stream.read(_MOST_BYTES + 1)
        lines = [line for line in content.decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            "the calibration file is not a file of UTF-8 text", field="calibration"
        ) from error
    if not lines or len(content) > _MOST_BYTES:
        raise InvalidInput(
            f"give a calibration file of 1 byte to {_MOST_BYTES >> 20} MiB, a text a line",
            field="calibration",
        )
    return lines[:: math.ceil(len(lines) / _MOST_LINES)]


def _tokenize_lines(lines: list[str], source: SourceModel, tokenizer: Tokenizer) -> list[Tokens]:
    if source.task != "cross-encoder":
        return _tokenised(source, tokenizer, lines)
    pairs = [tuple(line.split("\t")) for line in lines]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise InvalidInput(
            "a cross-encoder's calibration file has a query, a tab and a document on each line",
            field="calibration",
        )
    return [
        each
        for query, document in pairs
        for each in completed(tokenizer.encode_pairs(query, (document,)))
    ]


def largest_inputs(graph: Path, sequences: Sequence[Tokens]) -> dict[str, Channels]:
    """Name of a layer's input -> (K,) float32 largest magnitude per channel over all `sequences`."""
    model = load_nodes(graph)
    inputs = sorted({layer.x for layer in linears(model.graph)})
    for x in inputs:  # (..., K) -> (rows, K) -> (K,), so that no large tensor leaves the graph
        model.graph.node.append(helper.make_node("Abs", [x], [f"{x}_magnitudes"]))
        model.graph.node.append(helper.make_node("Flatten", [f"{x}_magnitudes"], [f"{x}_flat"], axis=-1))
        model.graph.node.append(
            helper.make_node("ReduceMax", [f"{x}_flat"], [f"{x}_largest"], axes=[0], keepdims=0)
        )
        model.graph.output.append(helper.make_tensor_value_info(f"{x}_largest", TensorProto.FLOAT, None))
    session = open_graph(model, graph.parent)
    names = [f"{x}_largest" for x in inputs]
    largest: dict[str, Channels] = {}
    for tokens in sequences:
        for x, value in zip(inputs, session.run(names, _feeds(session, tokens)), strict=True):
            largest[x] = np.maximum(largest[x], value) if x in largest else value
    return largest


def _feeds(session: ort.InferenceSession, tokens: Tokens) -> dict[str, NDArray[np.int64]]:
    """One sequence as the inputs of an exported graph."""
    batch = pad([tokens], 0)
    return {each.name: getattr(batch, each.name) for each in session.get_inputs()}
