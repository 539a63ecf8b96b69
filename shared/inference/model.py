"""A loaded model: tokenizer, engine and the recipe that turns texts into what the engine reads.

The evaluation before publishing and the server both use this class, so what is measured is what is
served. It does not know the store, queues or other models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.contracts import (
    DecodeRequest,
    EmbedRequest,
    FloatMatrix,
    InputType,
    PredictRequest,
    RerankRequest,
    TokenizeRequest,
    TokenPair,
    Tokens,
    prompt_for,
)
from shared.engines.base import Engine, OpenEngine
from shared.errors import BeyondMemory, InvalidArtefact, InvalidInput
from shared.inference.layers import load_layer
from shared.inference.spelling import Spelling
from shared.inference.steps import Steps, completed
from shared.inference.tokenization import Tokenizer
from shared.models.capabilities import check_supports
from shared.models.manifest import Manifest
from shared.names import check_prompt
from shared.vectors import DenseLayer, Layer, apply_layer, rows_not_finite


class Model:
    """Thread-safe. `close` frees the engine; nothing may be called after it."""

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        engine: Engine,
        layers: Sequence[Layer] = (),
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.engine = engine
        self._layers = tuple(layers)

    @property
    def memory_bytes(self) -> int:
        """Memory that the loaded model takes, without running anything."""
        return self.engine.memory_bytes

    def text_bytes(self, tokens: int) -> int:
        """What running one text of so many tokens takes."""
        return self.manifest.text_memory.bytes_of(tokens)

    def tokenize(self, request: EmbedRequest) -> Steps[list[list[int]]]:
        """Ids of each input, its prompt prepended. Raises InvalidInput and InputTooLong."""
        check_supports(EmbedRequest, self.manifest)
        if request.dimensions is not None and request.dimensions > self.manifest.dimensions:
            raise InvalidInput(
                f"ask for 1 to {self.manifest.dimensions}: this model's vectors have no more",
                field="dimensions",
            )
        return self.tokenizer.encode(
            request.inputs,
            truncate=request.truncate,
            side=request.truncation_side,
            prefix=self._prompt(request.prompt_name, request.input_type),
        )

    def tokenize_pairs(self, request: RerankRequest) -> Steps[list[TokenPair]]:
        """The query paired with each document. Raises InvalidInput and InputTooLong."""
        check_supports(RerankRequest, self.manifest)
        return self.tokenizer.encode_pairs(
            request.query,
            request.documents,
            truncate=request.truncate,
            side=request.truncation_side,
            max_document_tokens=request.max_document_tokens,
        )

    def tokenize_inputs(self, request: PredictRequest) -> Steps[list[Tokens]]:
        """Texts and pairs for a cross-encoder. Raises InvalidInput and InputTooLong."""
        check_supports(PredictRequest, self.manifest)
        return self.tokenizer.encode_each(
            request.inputs, truncate=request.truncate, side=request.truncation_side
        )

    def spell(self, request: TokenizeRequest, limit: int) -> Steps[list[Spelling]]:
        """The tokens of each input, its prompt prepended. limit: of all tokens together.

        Raises InvalidInput, InputTooLong and PayloadTooLarge.
        """
        return self.tokenizer.speller.spell(
            request.inputs,
            limit=limit,
            prefix=self._prompt(request.prompt_name),
            special_tokens=request.special_tokens,
        )

    def decode(self, request: DecodeRequest, limit: int) -> Steps[list[str]]:
        """The text of each input. limit: of all ids. Raises InvalidInput and PayloadTooLarge."""
        return self.tokenizer.speller.decode(
            request.inputs, limit=limit, skip_special_tokens=request.skip_special_tokens
        )

    def run(self, sequences: Sequence[Tokens]) -> FloatMatrix:
        """One micro-batch -> (B, D) float32: vectors neither truncated nor normalised, or logits."""
        rows = self.engine.run(sequences)
        for layer in self._layers:
            rows = apply_layer(rows, layer)
        return rows

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _prompt(self, prompt_name: str | None, input_type: InputType | None = None) -> str:
        prompts = self.manifest.prompts
        name = prompt_name
        if name is None:
            name = prompt_for(input_type, prompts) or self.manifest.default_prompt
        if not name:
            return ""
        check_prompt(name, prompts)
        return prompts[name]


def load_model(
    folder: Path, manifest: Manifest, open_engine: OpenEngine, memory_bytes: int | None = None
) -> Model:
    """Load the verified files in `folder`. Slow: never call it on an event loop.

    memory_bytes: what running it may take; longer texts than there is memory for are refused.

    Raises InvalidArtefact if the files do not make the model that the manifest describes, or one whose
    numbers for a short text are NaN or infinite.
    """
    usable = None if memory_bytes is None else manifest.text_memory.tokens_within(memory_bytes)
    tokenizer = Tokenizer.from_file(
        folder / manifest.tokenizer_file, manifest.max_tokens, usable, manifest.template
    )
    layers = [load_layer(folder, layer) for layer in manifest.layers]
    engine = open_engine(folder, manifest)
    widths = [layer.weight.shape[0] for layer in layers if isinstance(layer, DenseLayer)]
    width = widths[-1] if widths else engine.dimensions
    if width != manifest.dimensions:
        engine.close()
        raise InvalidArtefact(
            f"the graph gives {width} dimensions, the manifest says {manifest.dimensions}"
        )
    model = Model(manifest, tokenizer, engine, layers)
    try:
        _check_numbers(model)
    except BaseException:
        model.close()
        raise
    return model


def _check_numbers(model: Model) -> None:
    pair = model.manifest.task == "cross-encoder"
    try:
        tokens = completed(model.tokenizer.encode_each([("a", "a") if pair else "a"]))
    except BeyondMemory:
        return  # every request will be told so
    if rows_not_finite(model.run(tokens)):
        raise InvalidArtefact(
            "its numbers for a short text are NaN or infinite: the weights are damaged, or overflow in "
            f"the format of {model.manifest.target}"
        )
