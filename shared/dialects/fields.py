"""What becomes of a body's fields: read, refused by name, or known to change nothing.

One table for all dialects, from which docs/compatibility.md is written. Does not know HTTP. A field
means the same wherever it comes from, so one that some dialect reads is refused where it is not read.
What nobody has heard of is ignored, and told: clients do send extras that change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

import msgspec

from shared.dialects.body import media_type_of, without_bom
from shared.errors import InvalidInput
from shared.wire import codec

Handling: TypeAlias = Literal["supported", "refused", "harmless", "unknown"]

HARMLESS: Mapping[str, str] = {
    "user": "who asks, for the provider's own statistics",
    "metadata": "the caller's own notes",
    "id": "the caller's own name for the request",
    "request_id": "the caller's own name for the request",
    "safety_identifier": "who asks, for the provider's own checks",
    "service_tier": "what the provider charges",
    "store": "whether the provider keeps the request; here nothing is kept",
    "priority": "what goes first; header x-blitz-prefer chooses the backend",
    "timeout": "how long the client waits",
    "keep_alive": "how long Ollama keeps the model loaded",
    "options": "Ollama's settings for generating",
    "stream": "vectors are not streamed",
    "billing": "what the provider charges",
    "extra_body": "a client's own wrapper",
    "user_agent": "which client it is",
}
"""Fields that change no number of an answer -> what they are for."""


class Refused(msgspec.Struct, frozen=True):
    """A field that would change the answer. instead: what is right. same: values that ask for what is
    done anyway, and so are let through."""

    instead: str
    same: tuple[object, ...] = ()


_CUT = "texts are cut where the model stops reading, or refused with truncate: false"
_PROMPT = "name one of the model's prompts by prompt_name or input_type"
REFUSED: Mapping[str, Refused] = {
    "late_chunking": Refused("send each chunk with its own context", (False,)),
    "return_multivector": Refused("a model's build gives one vector a text", (False,)),
    "multi_vector": Refused("a model's build gives one vector a text", (False,)),
    "rank_fields": Refused("a document's text is ranked: join the fields into it", (["text"],)),
    "max_chunks_per_doc": Refused("a document is one chunk: max_tokens_per_doc cuts it", (1, 10)),
    "return_embeddings": Refused("/v1/embeddings gives vectors", (False,)),
    "overlap_tokens": Refused("a document is one chunk"),
    "instruction": Refused(_PROMPT),
    "instruct": Refused(_PROMPT),
    "prompt": Refused(_PROMPT),
    "prompts": Refused(_PROMPT),
    "task_type": Refused(_PROMPT),
    "query_instruction": Refused(_PROMPT),
    "images": Refused("send texts"),
    "image": Refused("send texts"),
    "modality": Refused("send texts", ("text",)),
    "max_tokens": Refused(_CUT),
    "max_length": Refused(_CUT),
    "max_tokens_per_query": Refused(_CUT),
    "truncate_prompt_tokens": Refused(_CUT, (-1,)),
    "truncation_side": Refused("truncation_direction of /embed chooses the side", ("right",)),
    "add_special_tokens": Refused("texts are read with their special tokens", (True,)),
    "pooling": Refused("a model is pooled as it was trained"),
    "similarity": Refused("cosine is what is compared", ("cosine",)),
    "activation": Refused("raw_scores of /rerank and /predict gives logits", (True,)),
    "use_activation": Refused("raw_scores of /rerank and /predict gives logits", (True,)),
    "softmax": Refused("raw_scores of /predict gives logits"),
    "dtype": Refused("output_dtype of /v1/embeddings chooses the type of numbers", ("float",)),
    "embed_dtype": Refused("output_dtype of /v1/embeddings chooses the type", ("float32",)),
    "endianness": Refused("base64 is little-endian", ("native", "little")),
    # Read at some paths, and refused at others.
    "normalize": Refused("normalized of /v1/embeddings and normalize of /embed are read", (True,)),
    "normalized": Refused("vectors are of length one here", (True,)),
    "truncate": Refused(_CUT, (True, "END")),
    "truncation": Refused(_CUT, (True,)),
    "truncation_direction": Refused("the end is cut off here", ("Right", "right")),
    "encoding_format": Refused("numbers are written as floats here", ("float",)),
    "encoding_type": Refused("embedding_types or output_dtype is read", ("float",)),
    "embedding_type": Refused("embedding_types or output_dtype is read", ("float",)),
    "embedding_types": Refused("output_dtype is read", (["float"],)),
    "output_dtype": Refused("numbers are written as floats here", ("float",)),
    "raw_scores": Refused("raw_scores of /rerank with texts gives logits", (False,)),
    "return_documents": Refused("documents do not come back here", (False,)),
    "return_text": Refused("return_documents is read", (False,)),
}
"""Fields that change an answer -> what is said where they are not read."""

_ABSENT: tuple[object, ...] = (None, "", [], {})
_COMPARED_BYTES = 200
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAMED = 10


def handling_of(name: str, supported: Collection[str], known: Collection[str]) -> Handling:
    """What becomes of field `name`, if it says anything. supported: what the body's dialect reads.

    known: what any dialect reads.
    """
    if name in supported:
        return "supported"
    if name in HARMLESS:
        return "harmless"
    if name in REFUSED or name in known or _meant(name, supported):
        return "refused"
    return "unknown"


def check_fields(
    fields: Mapping[str, object], supported: Collection[str], known: Collection[str]
) -> list[str]:
    """Names of fields that nobody here has heard of. Raises InvalidInput for one that is refused.

    fields: of a body by name; msgspec.Raw of JSON, or values.
    """
    unknown = []
    for name, value in fields.items():
        handling = "harmless" if name in supported else handling_of(name, supported, known)
        if handling in ("refused", "unknown") and not _changes_nothing(name, value):
            if handling == "refused":
                raise InvalidInput(_refusal_of(name, supported), field=name)
            unknown.append(name)
    return unknown


def warning_of(unknown: Collection[str]) -> str:
    """What to tell of fields that were ignored; names that could not stand in a header are counted."""
    plain = [name for name in unknown if _PLAIN.fullmatch(name)][:_NAMED]
    others = len(unknown) - len(plain)
    named = [*plain, *([f"{others} more"] if others else [])]
    return f"not read, and not known here: {', '.join(named)}"


def read_fields(data: bytes, content_type: str) -> Mapping[str, object]:
    """A body's fields, none of them decoded if it is JSON. Give it what decode_body has read."""
    if media_type_of(content_type) == codec.CONTENT_TYPE:
        value = codec.unpack(data, max_bytes=len(data))
        return value if isinstance(value, dict) else {}
    return msgspec.json.decode(without_bom(data), type=dict[str, msgspec.Raw])


def _refusal_of(name: str, supported: Collection[str]) -> str:
    if meant := _meant(name, supported):
        return f"{name} is not a field here: {meant} is"
    if name in REFUSED:
        return f"{name} is not supported here: {REFUSED[name].instead}"
    return f"{name} is not supported here; the fields are {', '.join(sorted(supported))}"


def _meant(name: str, supported: Collection[str]) -> str | None:
    """The field that `name` is a slip of: another case, no underscores, one or many."""
    plain = _plain(name)
    return next((each for each in supported if _plain(each) == plain), None) if plain else None


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower().removesuffix("s")


def _changes_nothing(name: str, value: object) -> bool:
    if isinstance(value, msgspec.Raw):
        if len(memoryview(value)) > _COMPARED_BYTES:
            return False
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):  # nobody has looked into it before
            return False
    same = REFUSED[name].same if name in REFUSED else ()
    return any(type(value) is type(each) and value == each for each in (*_ABSENT, *same))
