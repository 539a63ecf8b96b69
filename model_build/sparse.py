"""Reads what makes a masked language model a sparse encoder (SPLADE), and exports its last layer.

It does not know tokenizers, graphs of transformers or the model store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from model_build.configuration import SentenceBert, SentenceTransformers, Splade
from model_build.folder import fields_of, read_json, refused
from shared.models.manifest import SparseHead

SPARSE_MODULES = ("MLMTransformer", "SpladePooling")
PLAIN = "splade"
"""What --pooling says of a transformers folder that is a sparse encoder."""

_OPSET = 17


def is_sparse(modules: list[tuple[str, Path]], pooling: str | None) -> bool:
    """Whether the modules are a sparse encoder's, or the operator says so of a plain folder."""
    return any(name in SPARSE_MODULES for name, _ in modules) or (len(modules) == 1 and pooling == PLAIN)


def read_sparse(
    modules: list[tuple[str, Path]],
    transformer: Path,
    architecture: str,
    stated: SentenceTransformers,
) -> SparseHead:
    """The head that the folder describes; of a plain one, sentence-transformers' default.

    Raises InvalidInput (field "model") for modules that are no masked language model with SpladePooling.
    """
    kinds = [name for name, _ in modules]
    if not architecture.endswith("ForMaskedLM"):
        raise refused(f"a sparse encoder is a ...ForMaskedLM, and config.json says {architecture}")
    head = SparseHead(most=stated.max_active_dims or 0)
    if len(modules) == 1 and kinds == ["Transformer"]:
        return head
    name = "sentence_bert_config.json"
    task = fields_of(read_json(transformer / name) or {}, SentenceBert, name).transformer_task
    if (
        len(kinds) != 2
        or kinds[1] != "SpladePooling"
        or kinds[0] not in ("MLMTransformer", "Transformer")
        or (task or ("fill-mask" if kinds[0] == "MLMTransformer" else None)) != "fill-mask"
    ):
        raise refused(
            "a sparse encoder's modules are an MLMTransformer, or a Transformer whose transformer_task "
            "is fill-mask, and a SpladePooling"
        )
    name = "SpladePooling's config.json"
    splade = fields_of(read_json(modules[1][1] / "config.json") or {}, Splade, name)
    return SparseHead(splade.pooling_strategy, splade.activation_function, most=head.most)


def export_head(decoder: Any, out: Path) -> None:
    """Write a torch Linear as a graph: `hidden` (N, H) float32 -> `logits` (N, V) float32."""
    matrix = decoder.weight.detach().to(torch.float32).T.contiguous().numpy()
    width, words = matrix.shape
    nodes = [helper.make_node("MatMul", ["hidden", "words"], ["product"])]
    constants = [numpy_helper.from_array(matrix, "words")]
    if decoder.bias is not None:
        bias = decoder.bias.detach().to(torch.float32).numpy()
        nodes.append(helper.make_node("Add", ["product", "bias"], ["logits"]))
        constants.append(numpy_helper.from_array(bias, "bias"))
    else:
        nodes[0].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["tokens", width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["tokens", words])],
        constants,
    )
    opset = helper.make_opsetid("", _OPSET)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), out)
