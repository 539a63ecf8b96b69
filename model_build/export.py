"""Exports a source's transformer as an FP32 ONNX graph for the CPU.

It does not know folders, quantisation, evaluation or the model store.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from onnx import ModelProto, helper
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from torch.jit._trace import TracerWarning

from model_build import torch_attention
from model_build.describe import HEAD_FILE
from model_build.disentangled import write_disentangled
from model_build.folder import refused, refusing
from model_build.graphs import load_constants, load_graph, reading_constants, save_graph, save_whole
from model_build.masked_keys import mask_keys, tile_rows
from model_build.nearby import write_nearby
from model_build.own_operators import DOMAIN
from model_build.position_bias import fused_mpnet
from model_build.source import SourceModel
from model_build.sparse import export_head
from model_build.torch_disentangled import fuse_deberta
from model_build.traced_weights import weights_beside
from model_build.tracing import masks_without_vmap
from model_build.weights import auto_class, check_numbers
from shared.engines.onnx import SHORT_TOKENS, TILE_ROWS
from shared.engines.torch_tokens import split_decoder
from shared.models.manifest import head_of

OPSET = 17
_CONTRIBUTED = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

# Architectures whose attention onnxruntime's BERT optimiser knows. Others run the same graph unfused.
_FUSED_ATTENTION = {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"}

# Architectures whose attention is that of transformers' interface, with nothing added to scores.
_OWN_ATTENTION = {
    *("albert", "eurobert", "gte", "jina_embeddings_v3", "modernbert", "nomic_bert"),
    *("gemma", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"),
}


def export_onnx(source: SourceModel, out: Path) -> None:
    """Write the FP32 graph, with attention and GELU fused where supported; `optimize_offline` follows.

    Inputs `input_ids`, `attention_mask` (B, T) int64; output `token_embeddings` (B, T, H) float32, token
    types folded in as zeros. A cross-encoder with token types has the input `token_type_ids` (B, T)
    int64 too; its output is `logits` (B, L) float32. A sparse model's last layer is not in the graph: it
    is written beside it, as HEAD_FILE. Raises InvalidInput if the architecture does not
    export, and InvalidArtefact if a weight is NaN or infinite.
    """
    with tempfile.TemporaryDirectory() as scratch:
        traced = Path(scratch) / "traced.onnx"
        width = _trace(source, traced, out.with_name(HEAD_FILE), fused=True)
        with refusing(f"onnxruntime cannot optimise the graph of {source.architecture}"):
            model = _fuse(source, traced)
            # The optimiser's objects refer to each other, and to copies of the graph.
            gc.collect()
            load_constants(model, traced.parent)
            mask_keys(model)
            write_disentangled(model)
            sizes = {TILE_ROWS: tile_rows(model.graph), SHORT_TOKENS: write_nearby(model)}
    if any(sizes.values()):
        helper.set_model_props(model, {name: str(size) for name, size in sizes.items() if size})
    _state_width(model, width)
    save_graph(model, out)


def export_plain(source: SourceModel, out: Path) -> None:
    """As `export_onnx`, without onnxruntime's own operators: for runtimes that fuse by themselves."""
    with tempfile.TemporaryDirectory() as scratch:
        traced = Path(scratch) / "traced.onnx"
        width = _trace(source, traced, out.with_name(HEAD_FILE), fused=False)
        model = load_graph(traced)
    for constant in model.graph.initializer:
        constant.ClearField("data_location")  # states that it is here, as without it
    _state_width(model, width)
    save_whole(model, out)


def optimize_offline(src: Path, out: Path) -> None:
    """Optimise once with ONNX Runtime at build time; the server loads the result without optimising.

    The level is EXTENDED, the highest whose result does not depend on this machine's processor.
    Two fusions are left out: on the CPU SkipLayerNormalization is four times slower than Add and
    LayerNormalization, and BiasGelu 1.2 times slower than Add and Gelu, with the same bits.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole.onnx"
        # ONNX Runtime leaves constants in the file beside the graph, which is not published.
        save_whole(load_graph(src), whole)
        ort.InferenceSession(
            str(whole),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion", "BiasGeluFusion"],
        )


class _Traced(torch.nn.Module):
    """The transformer with an engine's inputs and its single output."""

    def __init__(self, model: torch.nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        result: torch.Tensor = getattr(self.model(**inputs), self.output)
        return result


@contextmanager
def _third_party_warnings() -> Iterator[None]:
    """Silence warnings of torch and transformers about tracing, which is deliberate.

    The TorchScript exporter is deprecated, but its successor's graphs are not fused: attention would
    stay a dozen operators. TracerWarnings, and the one on advanced indexing, concern shapes that
    `dynamic_axes` covers; the evaluation compares the result with torch on other shapes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.onnx\.")
        warnings.filterwarnings("ignore", "Exporting aten::index operator", UserWarning)
        warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)  # DeBERTa's
        yield


def _trace(source: SourceModel, out: Path, head: Path, *, fused: bool) -> int:
    """Write the graph, its large weights beside it, and of a sparse model `head`. The output's width.

    fused: attention may be an operator of onnxruntime's or of ours, where a trace writes it.
    """
    own = fused and source.model_type in _OWN_ATTENTION
    biased = fused and source.model_type == "mpnet"
    model = _load(source, torch_attention.NAME if own else "eager")
    apart = fused and source.model_type == "deberta-v2" and fuse_deberta(model)
    has_labels = head_of(source.task, source.pooling) == "labels"
    width = source.dimensions if has_labels else source.hidden_size
    ids = torch.full((2, 7), 0 if source.pad_token_id else 1, dtype=torch.int64)  # no padding
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # an all-ones mask would be constant-folded
    inputs = {"input_ids": ids, "attention_mask": mask}
    sizes = {0: "batch", 1: "sequence"}
    axes = dict.fromkeys(inputs, sizes)
    if source.task == "sparse":
        with refusing(f"the head of {source.architecture} cannot be taken off"):
            decoder = split_decoder(model)
            export_head(decoder, head)
        width = decoder.in_features
        traced, axes["token_embeddings"] = _Traced(model, "logits"), sizes
    elif head_of(source.task, source.pooling) == "none":
        traced, axes["token_embeddings"] = _Traced(model, "last_hidden_state"), sizes
    else:
        traced, axes["logits"] = _Traced(model, "logits"), {0: "batch"}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            types = torch.zeros_like(ids)
            types[:, 3:] = 1
            inputs["token_type_ids"], axes["token_type_ids"] = types, sizes
    output = next(name for name in axes if name not in inputs)
    with (
        refusing(f"the architecture {source.architecture} cannot be exported"),
        _third_party_warnings(),
        masks_without_vmap(),
        fused_mpnet() if biased else nullcontext(),
        weights_beside(out),
    ):
        torch.onnx.export(
            traced,
            tuple(inputs.values()),
            str(out),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
            custom_opsets={_CONTRIBUTED: 1, DOMAIN: 1} if own or biased or apart else None,
        )
    return width


def _load(source: SourceModel, attention: str) -> Any:
    """The original in FP32, in evaluation mode."""
    kind = auto_class(source.model_type, head_of(source.task, source.pooling))
    # Eager attention: the only one that the optimiser recognises. use_safetensors: never unpickle.
    with refusing(f"the weights do not match the {source.architecture} that config.json describes"):
        model, report = kind.from_pretrained(
            source.folder,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    # Missing weights would be initialised at random. A pooler is unused where we pool.
    unread = ("pooler.",) if head_of(source.task, source.pooling) == "none" else ()
    missing = [key for key in report["missing_keys"] if not key.startswith(unread)]
    if missing:
        raise refused(f"the weights lack {missing[0]}, which the {source.architecture} needs")
    check_numbers(each for each in model.named_parameters() if not each[0].startswith(unread))
    return model.eval()


def _fuse(source: SourceModel, src: Path) -> ModelProto:
    """The optimised graph, whose large constants are still in the files beside `src`."""
    options = FusionOptions("bert")
    options.use_multi_head_attention = True
    options.enable_attention = source.model_type in _FUSED_ATTENTION
    # On the CPU these are slower than the operators they replace.
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    options.enable_bias_gelu = False
    # It would hide the word embeddings from the quantiser.
    options.enable_embed_layer_norm = False
    with reading_constants(src) as graph:  # the optimiser makes copies of it
        model = optimize_model(
            graph,
            model_type="bert",
            num_heads=source.num_heads,
            hidden_size=source.hidden_size,
            optimization_options=options,
            opt_level=0,
        )
    model.topological_sort()
    fused: ModelProto = model.model
    if not any(each.domain == _CONTRIBUTED for each in fused.opset_import):
        fused.opset_import.append(helper.make_opsetid(_CONTRIBUTED, 1))
    return fused


def _state_width(model: ModelProto, width: int) -> None:
    """State the output's last dimension: engines read the width of their rows from the graph."""
    model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = width
