"""Requests and results that cross modules: frozen, validated once, dialect-free.

Each operation has a file; other packages import from here. Does not know HTTP, models or batches.
"""

from shared.contracts.decode import DecodeRequest, DecodeResult
from shared.contracts.embed import EmbedRequest, EmbedResult, InputType, prompt_for
from shared.contracts.embed_sparse import EmbedSparseRequest, EmbedSparseResult, SparseRow
from shared.contracts.embed_tokens import EmbedTokensRequest, EmbedTokensResult
from shared.contracts.predict import PredictRequest, PredictResult
from shared.contracts.request import AnyRequest, Request, RequestT
from shared.contracts.rerank import RerankRequest, RerankResult
from shared.contracts.result import (
    DoubleMatrix,
    FloatMatrix,
    FloatVector,
    IntMatrix,
    IntVector,
    Result,
    ResultT,
    Timings,
)
from shared.contracts.texts import TextInput, TruncationSide, is_blank
from shared.contracts.tokenize import TokenizeRequest, TokenizeResult
from shared.contracts.tokens import CutIds, LateIds, TokenPair, Tokens, is_cut

REQUESTS: tuple[type[AnyRequest], ...] = (
    EmbedRequest,
    EmbedSparseRequest,
    EmbedTokensRequest,
    RerankRequest,
    PredictRequest,
    TokenizeRequest,
    DecodeRequest,
)
"""The request type of each operation."""

__all__ = [
    "REQUESTS",
    "AnyRequest",
    "CutIds",
    "DecodeRequest",
    "DecodeResult",
    "DoubleMatrix",
    "EmbedRequest",
    "EmbedResult",
    "EmbedSparseRequest",
    "EmbedSparseResult",
    "EmbedTokensRequest",
    "EmbedTokensResult",
    "FloatMatrix",
    "FloatVector",
    "InputType",
    "IntMatrix",
    "IntVector",
    "LateIds",
    "PredictRequest",
    "PredictResult",
    "Request",
    "RequestT",
    "RerankRequest",
    "RerankResult",
    "Result",
    "ResultT",
    "SparseRow",
    "TextInput",
    "Timings",
    "TokenPair",
    "TokenizeRequest",
    "TokenizeResult",
    "Tokens",
    "TruncationSide",
    "is_blank",
    "is_cut",
    "prompt_for",
]
