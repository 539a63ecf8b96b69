"""What is known of a model: what it is and takes, and whether it is loaded.

Does not know where models are published or how they are run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec

Device: TypeAlias = Literal["cpu", "gpu"]
Task: TypeAlias = Literal["embedding", "cross-encoder", "sparse", "multi-vector"]
"""What a model gives: a vector per text, scores, weights of words, or a vector per token."""
_Bytes: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class TextMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What running one text takes beside the loaded model, in bytes.

    T tokens take T * per_token + T * T * per_pair at most: engines may hold a number for each pair of
    tokens that attend to each other. A micro-batch takes as much for each of its texts.
    """

    per_token: _Bytes
    per_pair: _Bytes

    def bytes_of(self, tokens: int) -> int:
        """Memory that running one text of so many tokens takes."""
        return math.ceil(tokens * (self.per_token + tokens * self.per_pair))

    def tokens_within(self, memory_bytes: int) -> int:
        """The longest text that takes no more."""
        if not self.per_token and not self.per_pair:
            return sys.maxsize
        # The root of per_pair * T * T + per_token * T = memory_bytes, in the form that divides by no 0.
        root = math.sqrt(self.per_token**2 + 4 * self.per_pair * memory_bytes)
        tokens = int(2 * memory_bytes / (self.per_token + root))
        return tokens if self.bytes_of(tokens) <= memory_bytes else tokens - 1


WEIGHTLESS = TextMemory(0.0, 0.0)


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Which requests a staged revision answers instead of the current one.

    beside: the current revision when it was staged. callers: names of API keys; their requests all do.
    percent: of the others; by: whether it is a part of the callers, or of their requests.
    compatible: whether its vectors may stand beside the current one's.
    """

    revision: str
    beside: str
    percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    by: Literal["caller", "request"] = "caller"
    callers: Annotated[tuple[str, ...], msgspec.Meta(max_length=200)] = ()
    compatible: bool = True

    def counts_beside(self, current: str) -> bool:
        """Whether it still counts: what is current is what was then, or the revision was promoted."""
        return current in (self.beside, self.revision)


class About(msgspec.Struct, frozen=True):
    """What people are told of a model, and the service does not go by.

    source: where the weights are from. prompts: name -> what is put before a text; default_prompt: the
    one of a request that names none. matryoshka_dimensions: shorter lengths that it was trained for.
    quality: what was measured when it was built, as the manifest has it; empty if nothing was.
    """

    source: str = ""
    prompts: Mapping[str, str] = msgspec.field(default_factory=dict)
    default_prompt: str | None = None
    matryoshka_dimensions: tuple[int, ...] = ()
    quality: Mapping[str, object] = msgspec.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.source)  # mappings have none


class ModelCard(msgspec.Struct, frozen=True):
    """What is known of a model published for one device. created: Unix seconds, 0 if unknown.

    size_bytes: of its files. pooling: None for a cross-encoder, which has labels instead, and for a
    multi-vector model. dimensions: of a sparse model, the size of its vocabulary. memory: what
    running it takes. closeness: to the original, 1 is equal; None if it was not measured. int8_ranges:
    dimensions, and the number that becomes 127 in int8 answers of at least so many. staged: the revision
    that answers a share of the requests.
    """

    name: str
    revision: str
    target: str
    architecture: str
    pooling: str | None
    dimensions: int
    max_tokens: int
    prompts: tuple[str, ...] = ()
    created: int = 0
    device: Device = "cpu"
    task: Task = "embedding"
    labels: tuple[str, ...] = ()
    size_bytes: int = 0
    memory: TextMemory = WEIGHTLESS
    closeness: float | None = None
    int8_ranges: tuple[tuple[int, float], ...] = ()
    staged: Staged | None = None
    about: About = About()

    def of_revision(self, revision: str) -> ModelCard:
        """The card of the revision that answered: the staged one's, if it is that, or else this."""
        return self.staged.card if self.staged and self.staged.card.revision == revision else self


class Staged(msgspec.Struct, frozen=True):
    """A staged revision, and which requests it answers."""

    card: ModelCard
    share: Share


class ModelState(msgspec.Struct, frozen=True):
    """What the cache knows of a model. reason: why it failed, safe to show; None otherwise.

    device: what the backend that knows it runs models on. max_tokens: the longest input that it takes
    there, which may be less than the model reads; None if it does not say.
    """

    name: str
    state: Literal["cold", "loading", "warm", "failed"]
    reason: str | None = None
    revision: str | None = None
    device: Device = "cpu"
    max_tokens: int | None = None
