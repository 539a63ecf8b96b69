"""A loaded model: tokenizer, engine and the recipe that turns token embeddings into vectors.

The evaluation before publishing and the server both use this class, so what is measured is what is
served. It does not know the store, queues or other models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from shared.contracts import EmbedRequest, FloatMatrix
from shared.engines.base import Engine, pad
from shared.errors import InvalidArtefact, InvalidInput
from shared.manifest import Activation, Manifest
from shared.tokenization import Tokenizer
from shared.vectors import DenseLayer, apply_dense, pool


class Model:
    """Thread-safe. `close` frees the engine; nothing may be called after it."""

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        engine: Engine,
        dense: Sequence[DenseLayer] = (),
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.engine = engine
        self._dense = tuple(dense)

    @property
    def memory_bytes(self) -> int:
        return self.engine.memory_bytes

    def tokenize(self, request: EmbedRequest) -> list[list[int]]:
        """Ids of each input, its prompt prepended. Raises InvalidInput and InputTooLong."""
        if request.dimensions is not None and request.dimensions > self.manifest.dimensions:
            raise InvalidInput(
                f"this model's vectors have {self.manifest.dimensions} dimensions: "
                f"ask for 1 to {self.manifest.dimensions}",
                field="dimensions",
            )
        return self.tokenizer.encode(
            request.inputs,
            truncate=request.truncate,
            side=request.truncation_side,
            prefix=self._prompt(request.prompt_name),
        )

    def embed(self, sequences: Sequence[Sequence[int]]) -> FloatMatrix:
        """One micro-batch of ids -> (B, D) float32, neither truncated nor normalised."""
        hidden = self.engine.run(pad(sequences, self.manifest.pad_token_id))
        vectors = pool(hidden, [len(ids) for ids in sequences], self.manifest.pooling)
        for layer in self._dense:
            vectors = apply_dense(vectors, layer)
        return vectors

    def close(self) -> None:
        self.engine.close()

    def _prompt(self, name: str | None) -> str:
        name = name or self.manifest.default_prompt
        if name is None:
            return ""
        if name not in self.manifest.prompts:
            known = ", ".join(sorted(self.manifest.prompts)) or "none"
            raise InvalidInput(f"this model has no such prompt; it has: {known}", field="prompt_name")
        return self.manifest.prompts[name]


def load_model(folder: Path, manifest: Manifest, open_engine: Callable[[Path], Engine]) -> Model:
    """Load the verified files in `folder`. Slow: never call it on an event loop.

    Raises InvalidArtefact if the files do not make the model that the manifest describes.
    """
    tokenizer = Tokenizer.from_file(folder / manifest.tokenizer_file, manifest.max_tokens)
    dense = [_load_dense(folder / layer.file, layer.activation) for layer in manifest.dense]
    engine = open_engine(folder / manifest.model_file)
    width = dense[-1].weight.shape[0] if dense else engine.dimensions
    if width != manifest.dimensions:
        engine.close()
        raise InvalidArtefact(
            f"the graph gives {width} dimensions, the manifest says {manifest.dimensions}"
        )
    return Model(manifest, tokenizer, engine, dense)


def _load_dense(path: Path, activation: Activation) -> DenseLayer:
    try:
        tensors = load_file(path)
        return DenseLayer(tensors["weight"], tensors.get("bias"), activation)
    except (SafetensorError, KeyError, OSError) as error:
        raise InvalidArtefact(f"{path.name} is not a dense layer") from error
