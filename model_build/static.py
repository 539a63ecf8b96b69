"""Reads and writes static embeddings: sentence-transformers' StaticEmbedding, and model2vec's folders.

A folder with a modules.json is read as sentence-transformers reads it: the mean over all tokens. A
folder without one, or with an int8 table, which sentence-transformers cannot run, is read as model2vec
reads it: unknown tokens are left out, and 512 tokens are read. It does not know what follows the mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model_build.configuration import Model2Vec, Truncation
from model_build.folder import fields_of, read_json, refused, refusing
from model_build.formats import no_weights
from model_build.source_tokenizer import read_tokenizer
from model_build.weights import WEIGHTS, check_numbers, read_shapes
from shared.models.manifest import MAX_DIMENSIONS

MODULE = "StaticEmbedding"
MODEL2VEC = "model2vec"

_MOST_TOKENS = 8_192
"""Tokens read of a text if the folder states no limit: more would hardly change the mean."""
_MODEL2VEC_TOKENS = 512
_KEPT = {torch.float32: np.float32, torch.float16: np.float16, torch.int8: np.int8}
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
_FOREIGN = "the tokenizer makes ids up to {}, but the table has rows for {} tokens"


@dataclass(frozen=True, slots=True)
class Static:
    """architecture: MODULE or MODEL2VEC, the library whose rules apply. width: dimensions of a row.

    tokenizer_json: without special tokens, which neither library adds. max_tokens: read of a text.
    normalize: model2vec's setting; False for a module.
    """

    folder: Path
    architecture: str
    tokenizer_json: str
    width: int
    max_tokens: int
    normalize: bool


def is_model2vec(folder: Path) -> bool:
    """Whether config.json has model2vec's model_type, or without one a field that only model2vec has."""
    config = read_json(folder / "config.json") or {}
    return config.get("model_type", MODEL2VEC if "embedding_dtype" in config else None) == MODEL2VEC


def read_static(folder: Path, *, has_modules: bool) -> Static:
    """Read static embeddings without their table.

    folder: the module's folder, or a model2vec folder. Raises InvalidInput (field "model").
    """
    shapes, dtype = _table_shape(folder)
    text, _ = read_tokenizer(folder)
    tokens = shapes.get("mapping", shapes["table"])[0]
    largest = max(Tokenizer.from_str(text).get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= tokens:
        raise refused(_FOREIGN.format(largest, tokens))
    stated = json.loads(text)
    read_whole = has_modules and dtype != "I8"
    if has_modules and not read_whole and not is_model2vec(folder):
        raise refused("the table is int8, which sentence-transformers cannot run: save it as float16")
    config = fields_of(read_json(folder / "config.json") or {}, Model2Vec, "config.json")
    if read_whole:
        truncation = fields_of(stated.get("truncation") or {}, Truncation, "tokenizer.json")
        most = truncation.max_length or _MOST_TOKENS
    elif "max_length" in (read_json(folder / "config.json") or {}):
        most = config.max_length or _MOST_TOKENS  # null: no limit
    else:
        most = _MODEL2VEC_TOKENS
    return Static(
        folder=folder,
        architecture=MODULE if read_whole else MODEL2VEC,
        tokenizer_json=json.dumps(
            stated | {"post_processor": None, "truncation": None, "padding": None}, ensure_ascii=False
        ),
        width=shapes["table"][1],
        max_tokens=min(most, _MOST_TOKENS),
        normalize=not has_modules and config.normalize,
    )


def export_static(folder: Path, architecture: str, tokenizer_json: str, out: Path) -> None:
    """Write the table in `folder` to the file `out`, in the format of shared.engines.static.

    Raises InvalidInput for a mapping to rows outside the table, InvalidArtefact for NaN or infinite
    numbers.
    """
    table, mapping, weights = read_table(folder)
    check_numbers(
        (name, each) for name, each in (("table", table), ("weights", weights)) if each is not None
    )
    kept = _KEPT.get(table.dtype)
    tensors: dict[str, NDArray[Any]] = {
        "table": (table if kept else table.to(torch.float32)).contiguous().numpy()
    }
    unknown = unknown_token(tokenizer_json) if architecture == MODEL2VEC else None
    if mapping is not None or unknown is not None:
        rows = torch.arange(len(table)) if mapping is None else mapping.clone()
        if unknown is not None:
            rows[unknown] = -1
        tensors["rows"] = rows.to(torch.int32).numpy()
    if weights is not None:
        tensors["weights"] = weights.to(torch.float32).numpy()
    save_file(tensors, out)


def read_table(folder: Path) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The table (R, D) and, if present, each token's row (V,) int64 and each token's weight (V,).

    Raises InvalidInput (field "model") if it cannot be read, or maps to rows outside the table.
    """
    with refusing("the table of static embeddings cannot be read"):
        tensors = load_file(folder / WEIGHTS)
    table = tensors["embedding.weight"] if "embedding.weight" in tensors else tensors["embeddings"]
    mapping, weights = tensors.get("mapping"), tensors.get("weights")
    if mapping is not None:
        if mapping.dtype not in _INTEGERS or not 0 <= int(mapping.min()) <= int(mapping.max()) < len(
            table
        ):
            raise refused("mapping names rows that the table does not have")
        mapping = mapping.to(torch.int64)
    return table, mapping, weights


def unknown_token(tokenizer_json: str) -> int | None:
    """The id of the token for unknown words, found as model2vec finds it; None if there is none."""
    model = json.loads(tokenizer_json)["model"]
    if model.get("unk_token") is not None:
        return Tokenizer.from_str(tokenizer_json).token_to_id(model["unk_token"])
    unknown: int | None = model.get("unk_id")
    return unknown


def _table_shape(folder: Path) -> tuple[dict[str, list[int]], str]:
    """Shapes of `table`, and of `mapping` and `weights` if present; the table's safetensors dtype."""
    if not (folder / WEIGHTS).is_file():
        raise no_weights(folder, WEIGHTS)
    shapes = read_shapes(folder / WEIGHTS)
    name = "embedding.weight" if "embedding.weight" in shapes else "embeddings"
    shape = shapes.get(name, [])
    if len(shape) != 2 or not shape[0] or not 1 <= shape[1] <= MAX_DIMENSIONS:
        raise refused(
            f"{WEIGHTS} of static embeddings needs embedding.weight or embeddings, a row for each token"
        )
    tokens = shapes["mapping"] if "mapping" in shapes else shape[:1]
    if len(tokens) != 1 or not tokens[0] or shapes.get("weights", tokens) != tokens:
        raise refused(f"mapping and weights of {WEIGHTS} do not have one number for each token")
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        dtype: str = file.get_slice(name).get_dtype()
    return shapes | {"table": shape}, dtype
