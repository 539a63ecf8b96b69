"""transformers on the GPU, or on the CPU for tests. The only module that imports torch while serving.

Does not know where files come from, queues or other models.

Buckets of similar lengths avoid padding. Packing all texts into one row would avoid more, but attention
must then stay inside each text. That needs flash-attn's varlen kernels (built for each CUDA and torch)
or nested tensors (code for each architecture); torch's SDPA has neither. There is little left to gain:
400 Cranfield abstracts and STS sentences of 6 to 256 tokens, planned with 65,536 tokens a micro-batch,
are padded by 12 % in 5 passes (by 67 % in 2 passes without `split_by_length`).
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils import logging as transformers_logging

from shared.contracts import FloatMatrix, Tokens
from shared.engines.base import Capacity, pad
from shared.engines.panics import panics_are_errors
from shared.errors import BlitzError, InvalidArtefact, Unavailable
from shared.models.manifest import Manifest
from shared.vectors import Pooling, Poolings, poolings_of

# Progress bars in a server's log, and a table of keys that _read_transformer checks itself.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

BYTES_PER_TOKEN = 256 * 1024
"""The most that a padded token's activations take, counted for a 7B decoder (FFN 18,944 wide): gate, up
and their product 114 kB in FP16; hidden states, query, key, value and FP32 pooling 60 kB; the attention
mask and its bias 24 kB at 8,192 tokens. Encoders of 384 to 1,024 dimensions take 15 to 41 kB."""

_MOST_TOKENS = 65_536
_FEWEST_TOKENS = 1_024
_CPU_TOKENS = 2_048
# A forward pass's fixed cost, in tokens. The CUDA value is an estimate: launching 12 layers keeps the
# host busy for some 4 ms, in which a T4 reads about 600 tokens of a base model and an A100 4,000.
_PASS_TOKENS = {"cuda": 2_048, "cpu": 64}

# from_pretrained replaces PreTrainedModel.tie_weights while it runs: two at once could leave it so.
_loading = threading.Lock()


def capacity(free_bytes: int | None) -> Capacity:
    """One thread, since a GPU runs one stream of kernels; as many tokens as the memory takes.

    free_bytes: what models leave of the GPU's memory; None: there is no GPU.
    """
    if free_bytes is None:
        return Capacity(threads=1, batch_tokens=_CPU_TOKENS, batch_texts=1024)
    tokens = min(_MOST_TOKENS, max(_FEWEST_TOKENS, free_bytes // BYTES_PER_TOKEN))
    return Capacity(threads=1, batch_tokens=tokens, batch_texts=1024)


def gpu_memory() -> dict[str, int]:
    """Bytes of the current GPU. used: by tensors; reserved: by this process, used included;
    free: what the driver could still give to anybody."""
    return {
        "used": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "free": torch.cuda.mem_get_info()[0],
    }


def split_by_length(lengths: Sequence[int], pass_tokens: int) -> list[list[int]]:
    """Positions of `lengths` in the buckets that cost least, longest first.

    A bucket costs its padded tokens plus pass_tokens, a forward pass's fixed cost in tokens.
    >>> split_by_length([5, 20, 6], pass_tokens=10)
    [[1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    sizes, counts = np.unique(np.negative(lengths), return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)])
    # best[i]: least cost of the texts of the i longest sizes; cut[i]: where its last bucket begins.
    best, cut = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
    for end in range(1, len(starts)):
        costs = best[:end] - sizes[:end] * (starts[end] - starts[:end]) + pass_tokens
        cut[end] = costs.argmin()
        best[end] = costs[cut[end]]
    buckets, end = [], len(sizes)
    while end:
        begin = int(cut[end])
        buckets.append(order[starts[begin] : starts[end]])
        end = begin
    return buckets[::-1]


def pool_on_device(hidden: torch.Tensor, mask: torch.Tensor, pooling: Poolings) -> torch.Tensor:
    """`shared.vectors.pool` where the data is: (B, T, H) of any float -> (B, P * H) float32.

    mask: (B, T), 1 on real tokens.
    """
    return torch.cat([_pool(hidden, mask, each) for each in poolings_of(pooling)], dim=1)


def _pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    lengths = mask.sum(dim=1)
    if pooling == "cls":
        return hidden[:, 0].float()
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1].float()
    hidden = hidden.float()
    # Filled, not multiplied by 0: infinity on padding times 0 would be NaN.
    padding = (mask == 0)[..., None]
    if pooling == "max":
        return hidden.masked_fill(padding, -torch.inf).amax(dim=1)
    hidden = hidden.masked_fill(padding, 0.0)
    if pooling == "mean":
        return hidden.sum(dim=1) / lengths[:, None]
    if pooling == "mean_sqrt_length":
        return hidden.sum(dim=1) / lengths[:, None].sqrt()
    weights = torch.arange(1, mask.shape[1] + 1, dtype=torch.float32, device=hidden.device) * mask
    return (hidden * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def read_transformer(folder: Path, *, with_head: bool) -> Any:
    """The FP32 transformer of config.json and safetensors in `folder`, on the CPU: a classifier with
    its head, any other without a pooler that nothing reads.

    Raises InvalidArtefact unless the files are complete and the code is transformers' own.
    """
    try:
        with _loading, panics_are_errors():
            return _read_transformer(folder, with_head)
    except BlitzError:
        raise
    except Exception as error:  # transformers raises KeyError, ValueError, OSError and its own
        raise InvalidArtefact("the weights are not a transformer this version runs") from error


def _read_transformer(folder: Path, with_head: bool) -> Any:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if getattr(config, "auto_map", None) or getattr(config, "quantization_config", None):
        raise InvalidArtefact("the model brings its own code, or quantised weights")
    config.use_cache = False  # a decoder would keep keys and values for tokens that never come
    mapping = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if with_head else MODEL_MAPPING
    kind = mapping[type(config)]
    extra: dict[str, Any] = {}
    if not with_head and "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        extra["add_pooling_layer"] = False
    model, report = kind.from_pretrained(
        folder,
        config=config,
        # MPNet and DeBERTa add their own terms to the attention scores.
        attn_implementation="sdpa" if kind._supports_sdpa else "eager",
        # transformers makes any other dtype torch's default for the process, while batches run.
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        **extra,
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise InvalidArtefact("the weights lack tensors that the architecture needs")
    return model.eval().requires_grad_(False)


class TorchEngine:
    """Runs the transformer of a folder with config.json and model.safetensors.

    device: "cuda" or "cpu". dtype: of weights and activations; pooling is FP32 always.
    compile: torch.compile; docs/decisions/013-no-torch-compile.md says when it pays.

    Raises InvalidArtefact if the files are no such model, Unavailable if the GPU has no room for it.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        device: str,
        dtype: torch.dtype,
        compile: bool = False,
    ) -> None:
        self._device = torch.device(device)
        self._pad_token_id = manifest.pad_token_id
        self._pooling = manifest.pooling
        model = read_transformer(folder, with_head=not manifest.pooling)
        if model.config.pad_token_id is None:
            # A decoder's classifier reads the last token that is no padding.
            model.config.pad_token_id = manifest.pad_token_id
        # RoBERTa's code takes token types, but it has one of them only.
        self._takes_types = (
            not manifest.pooling
            and "token_type_ids" in inspect.signature(model.forward).parameters
            and getattr(model.config, "type_vocab_size", 0) > 1
        )
        try:
            _place(model, self._device, dtype)
            self._model: Any = torch.compile(model, dynamic=True) if compile else model
            # The first pass loads kernels, which no request should wait for, and shows the width.
            self.dimensions = self._forward([[0 if self._pad_token_id else 1]]).shape[1]
        except torch.cuda.OutOfMemoryError as error:
            raise Unavailable("the GPU has no memory left for this model") from error
        except Exception as error:  # torch and each architecture raise what they like
            raise InvalidArtefact("the weights are not a transformer this version runs") from error
        tensors = [*model.parameters(), *model.buffers()]
        self.memory_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def run(self, sequences: Sequence[Tokens]) -> FloatMatrix:
        """See `Engine.run`. Raises Unavailable if not even one sequence fits the GPU's memory."""
        buckets = split_by_length([len(each) for each in sequences], _PASS_TOKENS[self._device.type])
        # Answers are fetched at the end, so that the GPU need not wait for the host between passes.
        pooled = [self._forward_in_halves([sequences[i] for i in bucket]) for bucket in buckets]
        rows = np.empty((len(sequences), self.dimensions), np.float32)
        for bucket, tensor in zip(buckets, pooled, strict=True):
            rows[bucket] = tensor.cpu().numpy()
        return rows

    def close(self) -> None:
        self._model = None
        gc.collect()  # modules and compiled code may refer to each other in circles
        _empty_cache()

    def _forward_in_halves(self, sequences: Sequence[Tokens]) -> torch.Tensor:
        """`_forward`, with half as many sequences at a time until the GPU's memory suffices."""
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            return self._forward(sequences)
        # Out of the handler: the error's traceback would keep the failed pass's tensors.
        _empty_cache()
        if len(sequences) == 1:
            raise Unavailable("the GPU has no memory left for this input: retry later", retry_after_s=1)
        half = len(sequences) // 2
        halves = (sequences[:half], sequences[half:])
        return torch.cat([self._forward_in_halves(each) for each in halves])

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[Tokens]) -> torch.Tensor:
        """B sequences -> (B, D) float32 on the device."""
        batch = pad(sequences, self._pad_token_id)
        arrays = [batch.input_ids, batch.attention_mask]
        if self._takes_types:
            arrays.append(batch.token_type_ids)
        host = torch.from_numpy(np.stack(arrays))
        if self._device.type == "cuda":
            host = host.pin_memory()  # only from pinned memory does the copy not block
        ids, mask, *types = host.to(self._device, non_blocking=True)
        # Without a mask, SDPA takes its fastest kernel, and transformers need not look for zeros in it.
        padded = not batch.attention_mask.all()
        inputs = {"input_ids": ids, "attention_mask": mask if padded else None}
        if types:
            inputs["token_type_ids"] = types[0]
        output = self._model(**inputs)
        if self._pooling is None:
            logits: torch.Tensor = output.logits
            return logits.float()
        return pool_on_device(output.last_hidden_state, mask, self._pooling)


def _place(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Move `model`. Its parameters get `dtype`, but not buffers, such as rotary frequencies."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(device)
    model.to(device)


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
