"""ONNX Runtime on the CPU. The only module that imports onnxruntime while serving.

One session with one intra-op thread, called from as many threads as there are cores: weights are
shared, and no operator waits for another thread (1.3 times one session with N intra-op threads).
"""

from __future__ import annotations

from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from shared.contracts import FloatMatrix, Tokens
from shared.engines.base import pad
from shared.engines.onnx_file import graph_of
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest, head_of
from shared.vectors import pool, poolings_of

TILE_ROWS = "attention_tile_rows"
"""Metadata of a graph with attention in tiles: how many queries ONNX Runtime takes at once."""

SHORT_TOKENS = "attention_short_tokens"
"""Metadata of a graph that computes texts of more tokens (padded) in another way than those of fewer."""

_GIVEN_BACK_BYTES = 64 << 20
"""After a run that may have taken more, its memory is given back, which the session would keep for good.
After smaller runs it is kept: the next run takes as much, and that is faster."""


class OnnxEngine:
    """Runs a graph `input_ids, attention_mask[, token_type_ids] -> (B, T, H)`, or `(B, L)` of logits.

    `output` is that; `run` pools it.

    Raises InvalidArtefact if the manifest's model file is not such a graph.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        path = folder / manifest.model_file
        try:
            self._session: ort.InferenceSession | None = open_session(path)
            self._inputs = {each.name for each in self._session.get_inputs()}
            output = self._session.get_outputs()[0]
            self._output = output.name
            sizes = self._session.get_modelmeta().custom_metadata_map
            self._tile, self._short = (int(sizes.get(name, 0)) for name in (TILE_ROWS, SHORT_TOKENS))
            self.dimensions = int(output.shape[-1]) * len(poolings_of(manifest.pooling or "mean"))
        except Exception as error:  # onnxruntime raises a family of its own, rooted at Exception
            raise InvalidArtefact(f"{path.name} is not a graph this version runs") from error
        self._pooling = manifest.pooling
        if len(output.shape) != (2 if head_of(manifest.task, self._pooling) == "labels" else 3):
            raise InvalidArtefact(f"{path.name} does not give what a model for {manifest.task} gives")
        self._pad_token_id, self._max_tokens = manifest.pad_token_id, manifest.max_tokens
        self._memory = manifest.text_memory
        self._giving_back = ort.RunOptions()
        self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.memory_bytes = path.stat().st_size

    def run(self, sequences: Sequence[Tokens]) -> FloatMatrix:
        output = self.output(sequences)
        if self._pooling is None:
            return output
        return pool(output, [len(tokens) for tokens in sequences], self._pooling)

    def output(self, sequences: Sequence[Tokens]) -> NDArray[np.float32]:
        """The graph's (B, T, H), right-padded, or (B, L)."""
        is_long = np.array([len(tokens) > self._short for tokens in sequences])
        if is_long.all() or not is_long.any():
            return self._output_of(sequences)
        # The graph computes a text beside a long one as a long one: its last bits would be others.
        both = np.flatnonzero(is_long).tolist(), np.flatnonzero(~is_long).tolist()
        parts = [(rows, self._output_of([sequences[row] for row in rows])) for rows in both]
        together = np.zeros((len(sequences), *parts[0][1].shape[1:]), np.float32)
        for rows, part in parts:
            if part.ndim == 2:
                together[rows] = part
            else:
                together[rows, : part.shape[1]] = part
        return together

    def _output_of(self, sequences: Sequence[Tokens]) -> NDArray[np.float32]:
        assert self._session is not None, "run after close"
        batch = pad(sequences, self._pad_token_id, self._padded(max(map(len, sequences))))
        feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = batch.token_type_ids
        texts, longest = batch.input_ids.shape
        large = texts * self._memory.bytes_of(longest) > _GIVEN_BACK_BYTES
        options = self._giving_back if large else None
        output: NDArray[np.float32] = self._session.run([self._output], feeds, options)[0]
        return output

    def _padded(self, longest: int) -> int:
        """A tile of one query would run in a kernel that adds up in another order: a text's last bits
        would depend on its batch-mates' lengths.
        """
        is_alone = self._tile > 1 and longest % self._tile == 1
        # At these lengths it is alone whatever the batch, and stays so.
        return longest + 1 if is_alone and longest not in (self._short, self._max_tokens) else longest

    def close(self) -> None:
        self._session = None


def open_session(path: Path) -> ort.InferenceSession:
    """A session over the graph in a file, as all models have it. 8-bit weights stay mapped from there.

    Raises what onnxruntime does, and OSError and ValueError.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The builder optimised the graph. Optimising again would fuse Add + LayerNormalization into
    # SkipLayerNormalization, which is several times slower on the CPU.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Memory patterns are kept for every input shape ever seen: they grow with mixed lengths.
    options.enable_mem_pattern = False
    place = path.resolve()  # onnxruntime maps nothing that is behind a link
    with place.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
        graph = graph_of(mapped, place.name)
    if graph is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(place.parent)
        )
    return ort.InferenceSession(graph or str(place), options, providers=["CPUExecutionProvider"])
