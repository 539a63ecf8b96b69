"""A model's prompts: from --prompt, its configuration, or its family.

It does not know requests, which look an `input_type` up in the manifest's prompts by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shared.errors import InputTooLong, InvalidInput
from shared.inference.steps import completed
from shared.inference.tokenization import Tokenizer
from shared.models.manifest import MAX_NAMES

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from model_build.source import SourceModel

MAX_PROMPT_CHARS = 4_000
MAX_PROMPT_NAME_CHARS = 200

_PASSAGES = "Represent this sentence for searching relevant passages: "
_INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"


@dataclass(frozen=True, slots=True)
class Family:
    """Models that were trained with the same prompts.

    pattern: searched in a model's lower-case name. model_types: of config.json, because a name alone is
    weak evidence.
    """

    name: str
    pattern: str
    model_types: frozenset[str]
    prompts: dict[str, str]


def _family(name: str, pattern: str, model_types: str, **prompts: str) -> Family:
    return Family(name, pattern, frozenset(model_types.split()), prompts)


# First match wins. Models without a row were trained without prompts (GTE, bge-m3, all-*), state their
# own, or were not looked up. Prompts are exact to the last space. Those of the instruct and Nomic models
# agree with https://github.com/embeddings-benchmark/mteb (mteb/models).
FAMILIES: Sequence[Family] = (
    # https://huggingface.co/intfloat/multilingual-e5-large-instruct
    # https://huggingface.co/intfloat/e5-mistral-7b-instruct
    _family("E5 instruct", r"\be5\b.*\binstruct\b", "xlm-roberta mistral", query=_INSTRUCT + "Query: "),
    # https://huggingface.co/intfloat/e5-small-v2, https://huggingface.co/intfloat/multilingual-e5-small
    _family("E5", r"\be5\b", "bert xlm-roberta", query="query: ", document="passage: "),
    # https://huggingface.co/BAAI/bge-small-en-v1.5: the documents get none.
    _family("BGE en", r"\bbge-(small|base|large)-en\b", "bert", query=_PASSAGES),
    # https://huggingface.co/BAAI/bge-small-zh-v1.5
    _family(
        "BGE zh",
        r"\bbge-(small|base|large)-zh\b",
        "bert",
        query="为这个句子生成表示以用于检索相关文章：",  # noqa: RUF001 - the colon is full-width
    ),
    # https://huggingface.co/nomic-ai/nomic-embed-text-v1.5
    _family(
        "nomic-embed-text",
        r"\bnomic-embed-text\b",
        "nomic_bert",
        query="search_query: ",
        document="search_document: ",
        classification="classification: ",
        clustering="clustering: ",
    ),
    # https://huggingface.co/nomic-ai/modernbert-embed-base
    _family(
        "modernbert-embed",
        r"\bmodernbert-embed\b",
        "modernbert",
        query="search_query: ",
        document="search_document: ",
    ),
    # https://huggingface.co/Snowflake/snowflake-arctic-embed-l-v2.0
    _family("arctic-embed v2", r"\barctic-embed-\w+-v2\b", "xlm-roberta gte", query="query: "),
    # https://huggingface.co/Snowflake/snowflake-arctic-embed-l
    _family("arctic-embed", r"\barctic-embed\b", "bert nomic_bert", query=_PASSAGES),
    # https://huggingface.co/mixedbread-ai/mxbai-embed-large-v1
    _family("mxbai-embed-large", r"\bmxbai-embed-large\b", "bert", query=_PASSAGES),
    # https://huggingface.co/Qwen/Qwen3-Embedding-0.6B: no space at the end.
    _family("Qwen3-Embedding", r"\bqwen3-embedding\b", "qwen3", query=_INSTRUCT + "Query:"),
    # https://huggingface.co/Alibaba-NLP/gte-Qwen2-1.5B-instruct
    _family("gte-Qwen", r"\bgte-qwen(1\.5|2)\b", "qwen2", query=_INSTRUCT + "Query: "),
    # https://huggingface.co/google/embeddinggemma-300m
    _family(
        "EmbeddingGemma",
        r"\bembeddinggemma\b",
        "gemma3_text",
        query="task: search result | query: ",
        document="title: none | text: ",
        classification="task: classification | query: ",
        clustering="task: clustering | query: ",
    ),
    # https://huggingface.co/jinaai/jina-embeddings-v3: its other tasks have none.
    _family(
        "jina-embeddings-v3",
        r"\bjina-embeddings-v3\b",
        "jina_embeddings_v3",
        query="Represent the query for retrieving evidence documents: ",
        document="Represent the document for retrieval: ",
    ),
)

# Names that configurations use for an `input_type`'s prompt; the server looks up the key.
_OTHER_NAMES = {
    "query": ("search_query", "web_search_query", "retrieval.query", "retrieval_query", "s2p_query"),
    "document": ("search_document", "retrieval.passage", "retrieval_document"),
    "classification": ("Classification",),
    "clustering": ("Clustering",),
}


@dataclass(frozen=True, slots=True)
class Prompted:
    """source: with its final prompts. origin: prompt -> where it comes from, in words."""

    source: SourceModel
    origin: dict[str, str]


def parse_prompts(given: Sequence[str]) -> dict[str, str]:
    """Parse --prompt NAME=TEXT options into name -> text; an empty text removes the prompt.

    >>> parse_prompts(["query=query: ", "document="])
    {'query': 'query: ', 'document': ''}

    Raises InvalidInput (field "prompt").
    """
    prompts: dict[str, str] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not name.strip() or not equals:
            raise _refused("--prompt is NAME=TEXT, as query='query: ', or NAME= to remove a prompt")
        if len(name) > MAX_PROMPT_NAME_CHARS or len(text) > MAX_PROMPT_CHARS:
            raise _refused(
                f"--prompt takes a name of {MAX_PROMPT_NAME_CHARS} characters and a text of "
                f"{MAX_PROMPT_CHARS} at most; these have {len(name)} and {len(text)}"
            )
        if name in prompts:
            raise _refused(f"--prompt {name} is given twice")
        prompts[name] = text
    return prompts


def family_of(names: Iterable[str], model_type: str) -> Family | None:
    """The family whose pattern matches one of `names` and whose architectures include `model_type`."""
    # "_" counts as a letter for \b.
    plain = [name.lower().replace("_", "-") for name in names]
    for family in FAMILIES:
        if model_type in family.model_types and any(re.search(family.pattern, name) for name in plain):
            return family
    return None


def with_prompts(source: SourceModel, names: Iterable[str], given: dict[str, str]) -> Prompted:
    """`source` with the prompts that it will be served and measured with.

    names: of the model: its folder, hub id, and published name. given: from --prompt, which take
    precedence over the model's own, and those over its family's. A configuration whose prompts are all
    empty, as sentence-transformers writes by default, counts as none.

    Raises InvalidInput (field "prompt") for a cross-encoder, for removing a missing prompt, and for a
    prompt that leaves no room for a text.
    """
    if source.task == "cross-encoder":
        if given:
            raise _refused("a cross-encoder has no prompts: leave --prompt out")
        return Prompted(source, {})
    prompts = dict(source.prompts)
    origin = dict.fromkeys(prompts, "the model's configuration")
    default = source.default_prompt
    silent = default is None and not any(prompts.values())
    if silent and (family := family_of(names, source.model_type)):
        prompts |= family.prompts
        origin |= dict.fromkeys(family.prompts, f"known for {family.name} models")
    for name, text in given.items():
        if text:
            prompts[name], origin[name] = text, "--prompt"
            continue
        if name not in prompts:
            raise _refused(f"--prompt {name}= has nothing to remove: the prompts are {_listed(prompts)}")
        del prompts[name], origin[name]
        default = None if default == name else default
    for name, others in _OTHER_NAMES.items():
        other = next((other for other in others if prompts.get(other)), None)
        if other and not prompts.get(name) and name not in given:
            prompts[name], origin[name] = prompts[other], f"its {other}"
    if len(prompts) > MAX_NAMES:
        raise _refused(f"the model has {len(prompts)} prompts; at most {MAX_NAMES} are served")
    _check_room(source, prompts)
    return Prompted(replace(source, prompts=prompts, default_prompt=default), origin)


def _check_room(source: SourceModel, prompts: dict[str, str]) -> None:
    """Behind a prompt that fills the input every text would be truncated, and all vectors equal."""
    tokenizer = Tokenizer(source.tokenizer_json, source.max_tokens - 1)
    for name, text in prompts.items():
        try:
            completed(tokenizer.encode([text] if text else [], truncate=False))
        except InputTooLong as error:
            raise _refused(
                f"the prompt {name} fills the {source.max_tokens} tokens that the model reads, and "
                f"leaves no room for a text: --prompt {name}= removes it"
            ) from error


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _refused(message: str) -> InvalidInput:
    return InvalidInput(message, field="prompt")
