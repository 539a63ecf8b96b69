"""How each field of a body is handled: supported, refused by name, harmless, or unknown.

One table for all dialects, the source of docs/compatibility.md. A field means the same in every dialect,
so one that some dialect supports is refused where it is not. Unknown fields are ignored with a warning,
because clients send extras without effect. Does not know HTTP.
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
    "user": "the end user, for the provider's statistics",
    "metadata": "the caller's own notes",
    "id": "the caller's own name for the request",
    "request_id": "the caller's own name for the request",
    "safety_identifier": "the end user, for the provider's checks",
    "service_tier": "the provider's pricing",
    "store": "whether the provider stores the request; nothing is stored here",
    "priority": "scheduling priority; header x-blitz-prefer chooses the backend",
    "timeout": "how long the client waits",
    "keep_alive": "how long Ollama keeps the model loaded",
    "options": "Ollama's settings for generating",
    "stream": "vectors are not streamed",
    "billing": "the provider's pricing",
    "extra_body": "a client's own wrapper",
    "user_agent": "the client's name",
}
"""Fields without effect on the result -> their purpose."""


class Refused(msgspec.Struct, frozen=True):
    """A field that would change the result. instead: the alternative. same: values equal to our
    behaviour, which are accepted."""

    instead: str
    same: tuple[object, ...] = ()


_CUT = "texts are truncated at the model's limit, or refused with truncate: false"
_PROMPT = "name one of the model's prompts by prompt_name or input_type"
REFUSED: Mapping[str, Refused] = {
    "late_chunking": Refused("send each chunk with its own context", (False,)),
    "return_multivector": Refused("/embed_all returns a vector per token", (False,)),
    "multi_vector": Refused("/embed_all returns a vector per token", (False,)),
    "rank_fields": Refused("a document's text is ranked: join the fields into it", (["text"],)),
    "max_chunks_per_doc": Refused("a document is one chunk: max_tokens_per_doc cuts it", (1, 10)),
    "return_embeddings": Refused("/v1/embeddings returns vectors", (False,)),
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
    "add_special_tokens": Refused("special tokens are always added", (True,)),
    "pooling": Refused("a model is pooled as it was trained"),
    "similarity": Refused("the similarity is cosine", ("cosine",)),
    "activation": Refused("raw_scores of /rerank and /predict gives logits", (True,)),
    "use_activation": Refused("raw_scores of /rerank and /predict gives logits", (True,)),
    "softmax": Refused("raw_scores of /predict gives logits"),
    "dtype": Refused("output_dtype of /v1/embeddings chooses the type of numbers", ("float",)),
    "embed_dtype": Refused("output_dtype of /v1/embeddings chooses the type", ("float32",)),
    "endianness": Refused("base64 is little-endian", ("native", "little")),
    # Supported at some paths, refused at others.
    "normalize": Refused("normalized of /v1/embeddings and normalize of /embed are read", (True,)),
    "normalized": Refused("vectors have length one here", (True,)),
    "truncate": Refused(_CUT, (True, "END")),
    "truncation": Refused(_CUT, (True,)),
    "truncation_direction": Refused("texts are truncated at the end here", ("Right", "right")),
    "encoding_format": Refused("numbers are written as floats here", ("float",)),
    "encoding_type": Refused("embedding_types or output_dtype is read", ("float",)),
    "embedding_type": Refused("embedding_types or output_dtype is read", ("float",)),
    "embedding_types": Refused("output_dtype is read", (["float"],)),
    "output_dtype": Refused("numbers are written as floats here", ("float",)),
    "raw_scores": Refused("raw_scores of /rerank with texts gives logits", (False,)),
    "return_documents": Refused("documents are not returned here", (False,)),
    "return_text": Refused("return_documents is read", (False,)),
}
"""Fields that would change the result -> what to use where they are not supported."""

_ABSENT: tuple[object, ...] = (None, "", [], {})
_COMPARED_BYTES = 200
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAMED = 10


def handling_of(name: str, supported: Collection[str], known: Collection[str]) -> Handling:
    """How field `name` is handled, unless its value is neutral.

    supported: fields of the body's dialect. known: fields of any dialect.
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
    """Names of unknown fields. Raises InvalidInput for a refused one.

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
    """The warning about ignored fields; names that are not safe in a header are only counted."""
    plain = [name for name in unknown if _PLAIN.fullmatch(name)][:_NAMED]
    others = len(unknown) - len(plain)
    named = [*plain, *([f"{others} more"] if others else [])]
    return f"unknown fields were ignored: {', '.join(named)}"


def read_fields(data: bytes, content_type: str) -> Mapping[str, object]:
    """A body's fields, undecoded if JSON. The body must have passed decode_body."""
    if media_type_of(content_type) == codec.CONTENT_TYPE:
        value = codec.unpack(data, max_bytes=len(data))
        return value if isinstance(value, dict) else {}
    return msgspec.json.decode(without_bom(data), type=dict[str, msgspec.Raw])


def _refusal_of(name: str, supported: Collection[str]) -> str:
    if meant := _meant(name, supported):
        return f"{name} is not a field here: did you mean {meant}?"
    if name in REFUSED:
        return f"{name} is not supported here: {REFUSED[name].instead}"
    return f"{name} is not supported here; the fields are {', '.join(sorted(supported))}"


def _meant(name: str, supported: Collection[str]) -> str | None:
    """The supported field that `name` misspells: case, underscores, plural."""
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
        except (msgspec.DecodeError, UnicodeDecodeError):  # raw values were not validated before
            return False
    same = REFUSED[name].same if name in REFUSED else ()
    return any(type(value) is type(each) and value == each for each in (*_ABSENT, *same))
