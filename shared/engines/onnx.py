"""ONNX Runtime on the CPU. The only module that imports onnxruntime while serving.

One session with one intra-op thread, called from as many threads as there are cores: weights are
shared, and no operator waits for another thread (1.3 times one session with N intra-op threads).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from shared.engines.base import Batch
from shared.errors import InvalidArtefact


class OnnxEngine:
    """Runs a graph `input_ids, attention_mask -> token_embeddings (B, T, H)`.

    Raises InvalidArtefact if the file is not such a graph.
    """

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The builder optimised the graph. Optimising again would fuse Add + LayerNormalization into
        # SkipLayerNormalization, which is several times slower on the CPU.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Memory patterns are kept for every input shape ever seen: they grow with mixed lengths.
        options.enable_mem_pattern = False
        try:
            self._session: ort.InferenceSession | None = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            self._output = self._session.get_outputs()[0].name
            self.dimensions = int(self._session.get_outputs()[0].shape[2])
        except Exception as error:  # onnxruntime raises a family of its own, rooted at Exception
            raise InvalidArtefact(f"{path.name} is not a graph this version runs") from error
        self.memory_bytes = path.stat().st_size

    def run(self, batch: Batch) -> NDArray[np.float32]:
        assert self._session is not None, "run after close"
        feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        hidden: NDArray[np.float32] = self._session.run([self._output], feeds)[0]
        return hidden

    def close(self) -> None:
        self._session = None
