"""Requests and results that cross modules: frozen, validated once, dialect-free.

Does not know HTTP, models or batches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.cards import Device
from shared.errors import EmptyInput, InvalidInput

TruncationSide: TypeAlias = Literal["right", "left"]
InputType: TypeAlias = Literal["query", "document", "classification", "clustering"]
"""What a text is embedded for."""
_PROMPTS: dict[InputType, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}
"""What models call the prompt made for it, first choice first."""

TextInput: TypeAlias = str | tuple[int, ...]
"""A text, or ids of the model's own vocabulary (special tokens included)."""

ResultT = TypeVar("ResultT", bound="Result")

FloatMatrix: TypeAlias = NDArray[np.float32]
IntMatrix: TypeAlias = NDArray[np.int32]
DoubleMatrix: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Two texts as one sequence. ids: special tokens included; type_ids: 0 or 1, as long as ids.

    is_cut: whether tokens of one of the texts were left out.
    """

    ids: list[int]
    type_ids: list[int]
    is_cut: bool = False

    def __len__(self) -> int:
        return len(self.ids)


def prompt_for(input_type: InputType | None, prompts: Collection[str]) -> str | None:
    """The name of the prompt that a model with `prompts` puts before such texts; None if it has none."""
    meant = _PROMPTS[input_type] if input_type else ()
    return next((name for name in meant if name in prompts), None)


def is_blank(text: str) -> bool:
    """Whether there is nothing in it but spaces and line ends."""
    return not text or text.isspace()


class CutIds(list[int]):
    """Ids of a text of which there were more."""

    __slots__ = ()


Tokens: TypeAlias = list[int] | TokenPair
"""What an engine reads for one input."""


def is_cut(tokens: Tokens) -> bool:
    """Whether the input had more tokens than these."""
    return tokens.is_cut if isinstance(tokens, TokenPair) else isinstance(tokens, CutIds)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; inference is wall time of its batches, queue the rest."""

    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0


class Result:
    """What all results have.

    arrays: which of its fields are arrays, with their type and the shape of a row (None: any length), as
    they go over the wire.
    joined: its fields with an entry an item (or a token): what parts of a request have in turn.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # subclasses are dataclasses
    arrays: ClassVar[Mapping[str, tuple[str, tuple[int | None, ...]]]]
    joined: ClassVar[tuple[str, ...]]

    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings
    device: Device
    cut: tuple[int, ...]

    @property
    def total_tokens(self) -> int:
        return sum(self.token_counts)

    @property
    def rows(self) -> int:
        """How many entries the fields of `joined` have."""
        return len(self.token_counts)


@dataclass(frozen=True, slots=True)
class EmbedResult(Result):
    """vectors: (N, D) float32, row i belongs to input i. token_counts: real tokens fed, per input.

    device: what served it; of parts, the first one's. max_tokens: what the model reads of an input, and
    longer ones were cut to; 0 if unknown. cut: the inputs that were cut, ascending. warnings: what the
    caller should know, in sentences.
    """

    arrays: ClassVar = {"vectors": ("<f4", (None,))}
    joined = ("vectors",)

    vectors: FloatMatrix
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = field(default_factory=Timings)
    device: Device = "cpu"
    max_tokens: int = 0
    cut: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RerankResult(Result):
    """scores: (N,) float64, entry i belongs to document i. method: what a score is.

    token_counts: real tokens fed, per pair; with "cosine", per document, the query's in the first.
    logits: (N,) float32, what a cross-encoder's scores are made of; None of cosines.
    cut: the documents that were cut, alone or beside the query; all of them if the query was.
    """

    arrays: ClassVar = {"scores": ("<f8", ()), "logits": ("<f4", ())}
    joined = ("scores", "logits")

    scores: DoubleMatrix
    token_counts: tuple[int, ...]
    model: str
    revision: str
    method: Literal["cross-encoder", "cosine"]
    timings: Timings = field(default_factory=Timings)
    device: Device = "cpu"
    logits: FloatMatrix | None = None
    cut: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ranking(self) -> list[int]:
        """The documents' indices, best first; equals in the order they came.

        By logits: from 37 on, their sigmoids are all exactly 1.
        """
        keys = self.scores if self.logits is None else self.logits
        order: list[int] = np.argsort(-keys, kind="stable").tolist()
        return order


@dataclass(frozen=True, slots=True)
class PredictResult(Result):
    """scores: (N, L) float64, row i belongs to input i, column j to labels[j].

    cut: the inputs that were cut, ascending.
    """

    arrays: ClassVar = {"scores": ("<f8", (None,))}
    joined = ("scores",)

    scores: DoubleMatrix
    token_counts: tuple[int, ...]
    model: str
    revision: str
    labels: tuple[str, ...]
    timings: Timings = field(default_factory=Timings)
    device: Device = "cpu"
    cut: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenizeResult(Result):
    """A row and a text for each token, those of input 0 first: token_counts says how many an input has.

    spans: (T, 4) int32, columns id, whether it is special (1 or 0), start, stop. The last two are bytes
    of the UTF-8 of the input with its prompt, and mean nothing of a special token.
    texts: what stands there; of a special token its name. cut: none, since inputs are told uncut.
    """

    arrays: ClassVar = {"spans": ("<i4", (4,))}
    joined = ("spans", "texts")

    spans: IntMatrix
    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = field(default_factory=Timings)
    device: Device = "cpu"
    cut: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return self.total_tokens


@dataclass(frozen=True, slots=True)
class DecodeResult(Result):
    """texts: one an input. token_counts: the ids of each. cut: none."""

    arrays: ClassVar = {}
    joined = ("texts",)

    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    model: str
    revision: str
    timings: Timings = field(default_factory=Timings)
    device: Device = "cpu"
    cut: tuple[int, ...] = ()


class Request(Generic[ResultT]):
    """What a backend is asked, and ResultT is what it answers.

    A new operation is a request and a result here, what answers it in shared.inference.service, and a
    dialect's words for it.

    operation: its name, the path at a backend. items: the field whose entries have one entry each of the
    result. items_as_told: what errors call that field. runs_model: whether an engine has to work.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # subclasses are dataclasses
    operation: ClassVar[str]
    result: ClassVar[type[Any]]
    items: ClassVar[str]
    items_as_told: ClassVar[str]
    runs_model: ClassVar[bool] = True

    model: str

    @property
    def texts(self) -> tuple[TextInput | tuple[str, str], ...]:
        """The inputs or documents."""
        texts: tuple[TextInput | tuple[str, str], ...] = getattr(self, self.items)
        return texts


@dataclass(frozen=True, slots=True)
class EmbedRequest(Request[EmbedResult]):
    """Embed `inputs` with `model`.

    dimensions: length of each returned vector; None for the model's own.
    normalize: scale each vector to unit length (after truncation to `dimensions`).
    truncate: cut inputs longer than the model reads; if False they are an InputTooLong.
    truncation_side: the side that is cut off.
    prompt_name: one of the manifest's prompts, prepended to each text; "" for none, None for the model's
        default.
    input_type: without a prompt_name, the prompt made for this, if the model has one.
    """

    operation, result, items, items_as_told = "embed", EmbedResult, "inputs", "input"

    model: str
    inputs: tuple[TextInput, ...]
    dimensions: int | None = None
    normalize: bool = True
    truncate: bool = True
    truncation_side: TruncationSide = "right"
    prompt_name: str | None = None
    input_type: InputType | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise EmptyInput("there is nothing to embed: give at least one input", field="input")
        for index, item in enumerate(self.inputs):
            if not item:
                raise EmptyInput("an input is empty: give a text", field=f"input[{index}]")
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidInput("dimensions must be 1 or more", field="dimensions")


@dataclass(frozen=True, slots=True)
class RerankRequest(Request[RerankResult]):
    """Score each of `documents` against `query` with `model`. Blank documents get the lowest score.

    raw_scores: a cross-encoder's logits instead of their sigmoid.
    truncate: cut pairs longer than the model reads, longest text first; if False they are an
        InputTooLong. truncation_side: the side that is cut off.
    max_document_tokens: documents are cut to this many tokens before they are paired; None: not.
    """

    operation, result, items, items_as_told = "rerank", RerankResult, "documents", "documents"

    model: str
    query: str
    documents: tuple[str, ...]
    raw_scores: bool = False
    truncate: bool = True
    truncation_side: TruncationSide = "right"
    max_document_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.query:
            raise EmptyInput("the query is empty: give a text", field="query")
        if not self.documents:
            raise EmptyInput("documents is empty: give at least one text", field="documents")
        if self.max_document_tokens is not None and self.max_document_tokens < 1:
            raise InvalidInput("max_document_tokens must be 1 or more", field="max_document_tokens")


@dataclass(frozen=True, slots=True)
class PredictRequest(Request[PredictResult]):
    """Label each of `inputs`, texts or pairs of texts, with a cross-encoder or classifier.

    raw_scores: logits instead of probabilities. truncate, truncation_side: as in RerankRequest.
    """

    operation, result, items, items_as_told = "predict", PredictResult, "inputs", "inputs"

    model: str
    inputs: tuple[str | tuple[str, str], ...]
    raw_scores: bool = False
    truncate: bool = True
    truncation_side: TruncationSide = "right"

    def __post_init__(self) -> None:
        if not self.inputs:
            raise EmptyInput("inputs is empty: give at least one text", field="inputs")
        for index, item in enumerate(self.inputs):
            if not (item if isinstance(item, str) else any(item)):  # of a pair, one may be empty
                raise EmptyInput(f"inputs[{index}] is empty: give a text", field=f"inputs[{index}]")


@dataclass(frozen=True, slots=True)
class TokenizeRequest(Request[TokenizeResult]):
    """Tell the tokens of each of `inputs`, uncut; a text may be empty.

    special_tokens: those that the model's tokenizer adds, too. prompt_name: as in EmbedRequest.
    """

    operation, result, items, items_as_told = "tokenize", TokenizeResult, "inputs", "inputs"
    runs_model = False

    model: str
    inputs: tuple[str, ...]
    special_tokens: bool = True
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise EmptyInput("inputs is empty: give at least one text", field="inputs")


@dataclass(frozen=True, slots=True)
class DecodeRequest(Request[DecodeResult]):
    """Tell the text of each of `inputs`, ids of the model's vocabulary, however many.

    skip_special_tokens: those that stand for no text are left out.
    """

    operation, result, items, items_as_told = "decode", DecodeResult, "inputs", "ids"
    runs_model = False

    model: str
    inputs: tuple[tuple[int, ...], ...]
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if not self.inputs:
            raise EmptyInput("ids is empty: give at least one id", field="ids")
        for index, ids in enumerate(self.inputs):
            if not ids:
                raise EmptyInput(f"ids[{index}] is empty: give an id", field=f"ids[{index}]")


AnyRequest: TypeAlias = Request[Any]
RequestT = TypeVar("RequestT", bound=AnyRequest)

REQUESTS: tuple[type[AnyRequest], ...] = (
    EmbedRequest,
    RerankRequest,
    PredictRequest,
    TokenizeRequest,
    DecodeRequest,
)
"""All there are."""
