"""OpenVINO on the CPU. The only module that imports openvino while serving.

It is an optional package, imported with the first model that needs it. Does not know tokenizers, the
store or other engines. One stream with one thread for each core: as many batches run at once, and none
waits for another's threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from shared.contracts import FloatMatrix, Tokens
from shared.engines.base import pad
from shared.engines.cpus import usable_cpus
from shared.engines.openvino_graph import KEYS, WEIGHTS, attention_keys, padded, with_keys, with_sums
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest
from shared.vectors import is_weighted_sum, pool, pooling_divisors, pooling_weights, poolings_of

_RESIDENT = {"cpu-int8-static": 4, "cpu-bf16": 2}
"""Memory of a loaded model by its file's size: weights are packed for the kernels, and an INT8 table of
word embeddings becomes float32."""


class OpenVinoEngine:
    """Runs the graph of `OnnxEngine`: `input_ids, attention_mask[, token_type_ids] -> (B, T, H)`, or
    `(B, L)` of logits.

    Sums of tokens (mean, cls and all but max) are part of the compiled graph, so that (B, H) leaves it
    and not (B, T, H). Numbers that are not INT8 are float32; of the target cpu-bf16 they are bfloat16
    where the processor multiplies them.

    Raises InvalidArtefact if the manifest's model file is not such a graph.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        path = folder / manifest.model_file
        core = ov.Core()
        threads = usable_cpus()
        self._poolings = poolings_of(manifest.pooling or ())
        self._sums = bool(self._poolings) and all(map(is_weighted_sum, self._poolings))
        try:
            model = core.read_model(path)
            rank = len(model.output(0).partial_shape)
            width = model.output(0).partial_shape[-1].get_length()
            self._inputs = {each.any_name for each in model.inputs}
            keyed = with_keys(model)
            self._has_keys = keyed is not None
            model = keyed or model
            if self._sums and rank == 3:
                model = with_sums(model)
            options = {
                "NUM_STREAMS": threads,
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": _precision(core, manifest),
            }
            self._compiled: ov.CompiledModel | None = core.compile_model(model, "CPU", options)
        except Exception as error:  # openvino raises RuntimeError, and families of its own
            raise InvalidArtefact(f"{path.name} is not a graph this version runs") from error
        if rank != (3 if self._poolings else 2):
            raise InvalidArtefact(f"{path.name} does not give what a model for {manifest.task} gives")
        self.dimensions = width * max(1, len(self._poolings))
        self._max_tokens = manifest.max_tokens
        self._pad_token_id = manifest.pad_token_id
        self._idle: deque[ov.InferRequest] = deque()
        self.memory_bytes = path.stat().st_size * _RESIDENT[manifest.target]

    def run(self, sequences: Sequence[Tokens]) -> FloatMatrix:
        """See `Engine.run`."""
        assert self._compiled is not None, "run after close"
        lengths = [len(tokens) for tokens in sequences]
        longest = max(lengths)
        if not self._has_keys:
            longest = min(padded(longest), self._max_tokens)
        batch = pad(sequences, self._pad_token_id, longest)
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = batch.token_type_ids
        if self._has_keys:
            feeds[KEYS] = attention_keys(longest)
        if self._sums:
            feeds[WEIGHTS] = pooling_weights(lengths, self._poolings, longest)
        output = self._infer(self._compiled, feeds)
        if self._sums:
            output /= pooling_divisors(lengths, self._poolings)
            return output.reshape(len(sequences), -1)
        if self._poolings:
            return pool(output, lengths, self._poolings)
        return output

    def close(self) -> None:
        """Free the compiled graph and its requests."""
        self._idle.clear()
        self._compiled = None

    def _infer(self, compiled: ov.CompiledModel, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """A copy of the graph's output, from a request that no other thread uses meanwhile."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        # Inputs are always shared and never copied: a request that was given a copy after shared ones
        # writes it where they were, into memory that is no longer its own (openvino 2026.4 crashes).
        result = request.infer(feeds, share_inputs=True, share_outputs=True)
        output: NDArray[np.float32] = np.array(result[0])
        self._idle.append(request)
        return output


def _precision(core: ov.Core, manifest: Manifest) -> str:
    """Format of what is not INT8. OpenVINO's own choice would be bfloat16 wherever there is any."""
    if manifest.target != "cpu-bf16":
        return "f32"
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if has_bf16 else "f32"
