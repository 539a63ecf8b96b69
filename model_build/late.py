"""Reads what makes a transformer a late-interaction model (ColBERT): how queries and documents are read.

Folders of sentence-transformers' MultiVectorEncoder, of PyLate, and of Stanford's colbert-ir. It does
not know graphs or the model store.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from torch import float32

from model_build.configuration import (
    Expansion,
    MultiVectorMask,
    SentenceBert,
    SentenceTransformers,
    Stanford,
    TokenContent,
    TokenizerConfig,
)
from model_build.folder import fields_of, read_json, refused, refusing
from model_build.layers import KINDS, Layers, read_layers
from model_build.weights import WEIGHTS, check_numbers, read_shapes
from shared.models.manifest import MAX_DIMENSIONS, LateInteraction
from shared.vectors import DenseLayer, Layer

MASK = "MultiVectorMask"
STANFORD = "HF_ColBERT"
"""The architecture that config.json of Stanford's folders names."""
METADATA = "artifact.metadata"

_SAVED_AS = ("MultiVectorEncoder", "ColBERT")
"""model_type of config_sentence_transformers.json; "ColBERT" is PyLate's."""
_EXPANDED_TO = 32
"""What PyLate's and Stanford's code fill queries up to by default."""
_PUNCTUATION = tuple(string.punctuation)


@dataclass(frozen=True, slots=True)
class Late:
    """tokenizer_json: with the markers of queries and documents as tokens of their own. width: of a
    token's vector. prompts: of queries and documents, markers included."""

    described: LateInteraction
    tokenizer_json: str
    prompts: dict[str, str]
    layers: tuple[Layer, ...]
    normalize: bool
    width: int


@dataclass(slots=True)
class _Said:
    """What a folder says, in whichever form. markers: what must be one token each, by prompt."""

    query_length: int | None
    document_length: int | None
    expansion: Expansion | None
    skipped: Sequence[str]
    skipped_in: Sequence[str]
    markers: Mapping[str, str]


def is_late(stated: SentenceTransformers, modules: list[tuple[str, Path]], architecture: str) -> bool:
    """Whether the folder is a late-interaction model's. Raises InvalidInput for half of Stanford's."""
    if architecture != STANFORD and (modules[0][1] / METADATA).is_file():
        raise refused(
            f"the folder has ColBERT's {METADATA}, but config.json does not say {STANFORD}: it is not "
            "what Stanford's code saved"
        )
    kinds = [name for name, _ in modules]
    return stated.model_type in _SAVED_AS or MASK in kinds or architecture == STANFORD


def read_late(
    modules: list[tuple[str, Path]],
    stated: SentenceTransformers,
    tokenizer: tuple[str, TokenizerConfig],
    hidden_size: int,
    lengths: tuple[int, int],
) -> Late:
    """Read a folder for which `is_late` holds.

    tokenizer: the text of tokenizer.json, and its settings. lengths: what is read of a text for which
    nothing else is said, and the most that the model has positions for.

    Raises InvalidInput (field "model") for what is not served.
    """
    transformer = modules[0][1]
    is_plain = len(modules) == 1
    if any(name not in (MASK, *KINDS) for name, _ in modules[1:]) or (
        is_plain and stated.model_type is not None
    ):
        raise refused(
            f"a late-interaction model is a Transformer, {', '.join(KINDS)} of its tokens, and a {MASK}"
        )
    said = _stanford(transformer) if is_plain else _said(modules, stated)
    text, settings = tokenizer
    text = _with_markers(text, said.markers.values())
    if is_plain:
        layer = _stanford_layer(transformer, hidden_size)
        after = Layers((layer,), normalize=True, width=layer.weight.shape[0])
    else:
        after = read_layers(
            [each for each in modules[1:] if each[0] != MASK], hidden_size, by_token=True
        )
    prompts = {name: prompt or "" for name, prompt in (stated.prompts or {}).items()}
    for name, marker in said.markers.items():
        prompts[name] = marker + prompts.get(name, "").removeprefix(marker)
    return Late(
        _described(said, stated, Tokenizer.from_str(text), settings, lengths),
        text,
        prompts,
        after.layers,
        after.normalize or stated.model_type == "ColBERT",
        after.width,
    )


def _described(
    said: _Said,
    stated: SentenceTransformers,
    tokenizer: Tokenizer,
    settings: TokenizerConfig,
    lengths: tuple[int, int],
) -> LateInteraction:
    usual, most = lengths
    query, fill = said.query_length or usual, 0
    expansion = said.expansion
    if expansion is not None:
        fill = expansion.length
        query = fill if expansion.strategy == "fixed" else max(said.query_length or usual, fill)
    if fill > most:
        raise refused(f"queries are filled up to {fill} tokens, and the model has {most} positions")
    ids = [tokenizer.token_to_id(word) for word in said.skipped]
    return LateInteraction(
        query_tokens=min(query, most),
        document_tokens=min(said.document_length or usual, most),
        expanded_to=fill,
        expansion_token=0 if expansion is None else _filler(expansion, tokenizer, settings),
        attends=expansion is not None and expansion.attend,
        skipped=tuple(sorted({each for each in ids if each is not None})) if _skips(said) else (),
        skips_in_queries="query" in said.skipped_in,
        mean=stated.similarity_fn_name == "meanmaxsim",
    )


def _skips(said: _Said) -> bool:
    if not said.skipped or "document" in said.skipped_in:
        return True
    raise refused("tokens are skipped in queries and not in documents, which is not supported")


def _filler(expansion: Expansion, tokenizer: Tokenizer, settings: TokenizerConfig) -> int:
    """The token that queries are filled up with: the stated one, the mask, or the end."""
    named = [expansion.token] if expansion.token else [_text_of(settings.mask_token), "[MASK]", "<mask>"]
    found = (tokenizer.token_to_id(name) for name in (*named, _text_of(settings.eos_token)) if name)
    filler = next((each for each in found if each is not None), None)
    if filler is None:
        raise refused("queries are filled up with a mask token, which the tokenizer does not have")
    return filler


def _text_of(token: str | TokenContent | None) -> str | None:
    return token.content if isinstance(token, TokenContent) else token


def _said(modules: list[tuple[str, Path]], stated: SentenceTransformers) -> _Said:
    """Of a folder with modules.json. What the Transformer's file says comes before PyLate's."""
    name = "sentence_bert_config.json"
    raw = read_json(modules[0][1] / name) or {}
    own = fields_of(raw, SentenceBert, name)
    masks = [folder for kind, folder in modules if kind == MASK]
    mask = MultiVectorMask()
    if masks:
        file = f"{MASK}'s config.json"
        mask = fields_of(read_json(masks[0] / "config.json") or {}, MultiVectorMask, file)
    if len(masks) > 1 or mask.keep_only_token_ids:
        raise refused("documents keep the vectors of some tokens only, which is not supported")
    words, tasks = tuple(mask.skiplist_words or ()), mask.skiplist_tasks
    pylate = _pylate_expansion(stated)
    if stated.model_type == "ColBERT":
        words = _PUNCTUATION if stated.skiplist_words is None else tuple(stated.skiplist_words)
        tasks = None
    query_length = own.query_length or stated.query_length
    expansion = own.query_expansion if "query_expansion" in raw else pylate
    markers = {
        prompt: marker
        for prompt, marker in (
            ("query", stated.query_prefix),
            ("document", stated.document_prefix),
        )
        if marker
    }
    skipped_in = (tasks,) if isinstance(tasks, str) else tasks or ("document",)
    length = own.document_length or stated.document_length
    return _Said(query_length, length, expansion, words, skipped_in, markers)


def _pylate_expansion(stated: SentenceTransformers) -> Expansion | None:
    if not stated.is_pylate or stated.do_query_expansion is False:
        return None
    attends = stated.attend_to_expansion_tokens or False
    return Expansion("fixed", stated.query_length or _EXPANDED_TO, attend=attends)


def _stanford(folder: Path) -> _Said:
    said = fields_of(read_json(folder / METADATA) or {}, Stanford, METADATA)
    return _Said(
        None,
        said.doc_maxlen,
        Expansion(
            "fixed", said.query_maxlen or _EXPANDED_TO, attend=said.attend_to_mask_tokens or False
        ),
        _PUNCTUATION if said.mask_punctuation is not False else (),
        ("document",),
        {
            "query": f"{said.query_token_id or '[unused0]'} ",
            "document": f"{said.doc_token_id or '[unused1]'} ",
        },
    )


def _stanford_layer(folder: Path, hidden_size: int) -> DenseLayer:
    """The projection that stands among the transformer's weights."""
    shape = read_shapes(folder / WEIGHTS).get("linear.weight") if (folder / WEIGHTS).is_file() else None
    if shape is None or len(shape) != 2 or shape[1] != hidden_size or shape[0] > MAX_DIMENSIONS:
        raise refused(f"{WEIGHTS} has no linear.weight that fits tokens of {hidden_size} dimensions")
    with refusing(f"{WEIGHTS} cannot be read"):
        weight = load_file(folder / WEIGHTS)["linear.weight"].to(float32)
    check_numbers([("linear.weight", weight)])
    return DenseLayer(weight.contiguous().numpy(), None, "identity")


def _with_markers(text: str, markers: Iterable[str]) -> str:
    """tokenizer.json, in which markers that the vocabulary has are one token, however texts are split.

    As sentence-transformers registers them: the marker itself, or without what follows its first word.
    """
    tokenizer = Tokenizer.from_str(text)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    for marker in markers:
        for token in (marker, *marker.split()[:1]):
            if token not in vocabulary:
                continue
            if tokenizer.encode(token, add_special_tokens=False).tokens != [token]:
                tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
            break
    return tokenizer.to_str()
