"""A loaded model: tokenizer, engine and the recipe that turns texts into what the engine reads.

The evaluation before publishing and the server both use this class, so what is measured is what is
served. It does not know the store, queues or other models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.contracts import (
    DecodeRequest,
    EmbedRequest,
    EmbedSparseRequest,
    EmbedTokensRequest,
    InputType,
    LateIds,
    PredictRequest,
    RerankRequest,
    TokenizeRequest,
    TokenPair,
    Tokens,
    prompt_for,
)
from shared.engines.base import Engine, OpenEngine, Rows
from shared.errors import BeyondMemory, InvalidArtefact, InvalidInput
from shared.inference.finite import not_finite
from shared.inference.late import LateModel
from shared.inference.layers import load_layer
from shared.inference.spelling import Spelling
from shared.inference.steps import Steps, completed
from shared.inference.tokenization import Tokenizer
from shared.models.capabilities import check_supports
from shared.models.manifest import Manifest
from shared.names import check_prompt
from shared.vectors import DenseLayer, Layer, apply_layer

_WORD_BYTES = 24
"""For each word of a sparse model's vocabulary: the pooled logits, and what is made of them."""


class Model:
    """Thread-safe. `close` frees the engine; nothing may be called after it."""

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        engine: Engine,
        layers: Sequence[Layer] = (),
        late: LateModel | None = None,
        routes: Mapping[str, Model] | None = None,
        batch_tokens: int = 0,
    ) -> None:
        """late: of a multi-vector model. routes: the models of routes that differ from this one (see
        Manifest.routes). batch_tokens: padded tokens of its micro-batches; 0: as many as all models'.
        """
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.engine = engine
        self.batch_tokens = batch_tokens
        self._layers = tuple(layers)
        self._late = late
        self._routes = {} if routes is None else routes

    @property
    def memory_bytes(self) -> int:
        """Memory that the loaded model takes, its routes' included, without running anything."""
        return self.engine.memory_bytes + sum(each.memory_bytes for each in self._routes.values())

    def route(self, prompt_name: str | None, input_type: InputType | None = None) -> Model:
        """The model that such texts take: itself, unless there is a route of the prompt's name."""
        return self._routes.get(self._prompt_name(prompt_name, input_type) or "", self)

    def text_bytes(self, tokens: int) -> int:
        """What running one text of so many tokens takes."""
        # A sparse model has a number for each word of its vocabulary, however short the text.
        words = 0 if self.manifest.sparse is None else self.manifest.dimensions
        return self.manifest.text_memory.bytes_of(tokens) + words * _WORD_BYTES

    def tokenize(self, request: EmbedRequest) -> Steps[list[list[int]]]:
        """Ids of each input, its prompt prepended. Raises InvalidInput and InputTooLong."""
        check_supports(EmbedRequest, self.manifest)
        if request.dimensions is not None and request.dimensions > self.manifest.dimensions:
            raise InvalidInput(
                f"ask for 1 to {self.manifest.dimensions}: this model's vectors have no more",
                field="dimensions",
            )
        return self._encode(request)

    def tokenize_sparse(self, request: EmbedSparseRequest) -> Steps[list[list[int]]]:
        """As `tokenize`, for a sparse model."""
        check_supports(EmbedSparseRequest, self.manifest)
        return self._encode(request)

    def tokenize_late(self, request: EmbedTokensRequest) -> Steps[list[LateIds]]:
        """Queries' or documents' ids, for a multi-vector model. Raises InvalidInput and InputTooLong."""
        check_supports(EmbedTokensRequest, self.manifest)
        assert self._late is not None, "a multi-vector model without its description"
        asked = request.prompt_name if request.prompt_name is not None else request.input_type
        input_type: InputType = "query" if asked == "query" else "document"
        # Without a prompt of that name, the name still says which of the two it is.
        named = request.prompt_name in self.manifest.prompts or request.prompt_name == ""
        known = named or request.prompt_name not in ("query", "document")
        return self._late.encode(
            request.inputs,
            is_query=input_type == "query",
            prefix=self._prompt(request.prompt_name if known else None, input_type),
            truncate=request.truncate,
            side=request.truncation_side,
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

    def run(self, sequences: Sequence[Tokens]) -> Rows:
        """One micro-batch -> (B, D) float32: vectors neither truncated nor normalised, or logits.

        Of a sparse model a SparseRow each, of a multi-vector model finished (T, D) vectors.
        """
        rows = self.engine.run(sequences)
        if self._late is not None:
            return self._late.finish(rows, sequences, self._layers, self.manifest.normalize)
        for layer in self._layers:
            rows = apply_layer(rows, layer)
        return rows

    def close(self) -> None:
        """Free the engines."""
        for each in (*self._routes.values(), self):
            each.engine.close()

    def _encode(self, request: EmbedRequest | EmbedSparseRequest) -> Steps[list[list[int]]]:
        return self.tokenizer.encode(
            request.inputs,
            truncate=request.truncate,
            side=request.truncation_side,
            prefix=self._prompt(request.prompt_name, request.input_type),
        )

    def _prompt_name(self, prompt_name: str | None, input_type: InputType | None) -> str | None:
        if prompt_name is not None:
            return prompt_name
        return prompt_for(input_type, self.manifest.prompts) or self.manifest.default_prompt

    def _prompt(self, prompt_name: str | None, input_type: InputType | None = None) -> str:
        name = self._prompt_name(prompt_name, input_type)
        if not name:
            return ""
        check_prompt(name, self.manifest.prompts)
        return self.manifest.prompts[name]


def load_model(
    folder: Path,
    manifest: Manifest,
    open_engine: OpenEngine,
    memory_bytes: int | None = None,
    batch_tokens: int = 0,
) -> Model:
    """Load the verified files in `folder`. Slow: never call it on an event loop.

    memory_bytes: what running it may take; longer texts than there is memory for are refused.
    batch_tokens: see Model.

    Raises InvalidArtefact if the files do not make the model that the manifest describes, or one whose
    numbers for a short text are NaN or infinite.
    """
    usable = None if memory_bytes is None else manifest.text_memory.tokens_within(memory_bytes)
    file = folder / manifest.tokenizer_file
    tokenizer = Tokenizer.from_file(file, manifest.max_tokens, usable, manifest.template)
    late = None
    if (described := manifest.late_interaction) is not None:
        lengths = (described.query_tokens, described.document_tokens)
        late = LateModel(described, *(Tokenizer.from_file(file, length, usable) for length in lengths))
    layers = [load_layer(folder, layer) for layer in manifest.layers]
    engine = open_engine(folder, manifest)
    widths = [layer.weight.shape[0] for layer in layers if isinstance(layer, DenseLayer)]
    width = widths[-1] if widths else engine.dimensions
    if width != manifest.dimensions:
        engine.close()
        raise InvalidArtefact(
            f"the graph gives {width} dimensions, the manifest says {manifest.dimensions}"
        )
    routes: dict[str, Model] = {}  # filled below, so that a failure closes those that are open
    model = Model(manifest, tokenizer, engine, layers, late, routes, batch_tokens)
    try:
        _check_numbers(model)
        for name in manifest.routes or ():
            routes[name] = load_model(
                folder, manifest.of_route(name), open_engine, memory_bytes, batch_tokens
            )
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
    if not_finite(model.run(tokens)):
        raise InvalidArtefact(
            "its numbers for a short text are NaN or infinite: the weights are damaged, or overflow in "
            f"the format of {model.manifest.target}"
        )
