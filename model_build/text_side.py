"""Writes the text side of a CLIP model as a folder of its own: Transformer, Pooling and Dense.

A text's vector is that of its first end token, times a matrix. The image side is left out. It does not
know graphs, or how the original is run.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import CLIPConfig

from model_build.configuration import Module, WeightsIndex
from model_build.folder import fields_of, read_json, read_value, refused, refusing
from model_build.weights import INDEX, WEIGHTS, count_elements
from shared.errors import printable

CLIP = "clip"
TEXT_SIDE = "clip_text_model"
"""model_type of the whole, and of the folder that is written."""

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_FOLDERS = {"Pooling": "text_pooling", "Dense": "text_projection"}
_PREFIX = "text_model."
_PROJECTION = "text_projection.weight"
_WRONG_END = 2


def with_text_side(folder: Path, out: Path) -> Path:
    """`folder`; or, if it is a CLIP model, the new folder `out` with its text side.

    Raises InvalidInput (field "model") for modules after it other than Normalize, and for a folder that
    is no whole CLIP model.
    """
    place, after = clip_of(folder)
    if place is None:
        return folder
    raw = read_json(place / "config.json") or {}
    with refusing("config.json is not valid for clip"):
        config: dict[str, Any] = CLIPConfig(**raw).text_config.to_dict()
    tensors = _text_tensors(place)
    if _PROJECTION not in tensors:
        raise refused(f"the weights lack {_PROJECTION}, which a CLIP model's text side needs")
    projection = tensors.pop(_PROJECTION)
    out.mkdir()
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    config |= {"model_type": TEXT_SIDE, "architectures": ["CLIPTextModel"]}
    _write(out / "config.json", config)
    _copy_tokenizer(place, out)
    _write_modules(out, projection, after)
    name = "config_sentence_transformers.json"
    if (folder / name).is_file():
        shutil.copyfile(folder / name, out / name)
    return out


def clip_of(folder: Path) -> tuple[Path | None, list[str]]:
    """Where in `folder` a CLIP model is, and the kinds of the modules after it; None: it is another."""
    listed = read_value(folder / "modules.json")
    modules = [] if listed is None else fields_of(listed, list[Module], "modules.json")
    kinds = [module.type.rpartition(".")[2] for module in modules] or ["Transformer"]
    where = Path(modules[0].path if modules else "")
    inside = not where.is_absolute() and ".." not in where.parts and "\0" not in str(where)
    if kinds[0] not in ("CLIPModel", "Transformer") or not inside:
        return None, []
    place = folder / where
    if (read_json(place / "config.json") or {}).get("model_type") != CLIP:
        if kinds[0] == "CLIPModel":
            raise refused("modules.json has a CLIPModel, and its config.json is not one's")
        return None, []
    if others := set(kinds[1:]) - {"Normalize"}:
        raise refused(
            f"there is a {printable(', '.join(sorted(others)))} after CLIP, where only Normalize is read"
        )
    return place, kinds[1:]


def _text_tensors(place: Path) -> dict[str, torch.Tensor]:
    """The text side's tensors: the image side's are not loaded."""
    count_elements(place)  # refuses files that are no safetensors
    names = [WEIGHTS]
    if not (place / WEIGHTS).is_file():
        index = fields_of(read_json(place / INDEX), WeightsIndex, INDEX)
        names = sorted(set(index.weight_map.values()))
    found: dict[str, torch.Tensor] = {}
    for name in names:
        with refusing("the weights cannot be read"), safe_open(place / name, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                if key.startswith(_PREFIX) or key == _PROJECTION:
                    found[key] = tensors.get_tensor(key)
    return found


def _copy_tokenizer(place: Path, out: Path) -> None:
    """Without what would ask for an image processor."""
    for name in _TOKENIZER_FILES:
        if (place / name).is_file():
            shutil.copyfile(place / name, out / name)
    settings = read_json(place / "tokenizer_config.json") or {}
    settings.pop("processor_class", None)
    _write(out / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"} | settings)
    stated = read_json(place / "sentence_bert_config.json") or {}
    _write(out / "sentence_bert_config.json", {"max_seq_length": stated.get("max_seq_length")})


def _write_modules(out: Path, projection: torch.Tensor, after: list[str]) -> None:
    kinds = ["Transformer", *_FOLDERS, *after]
    paths = ["", *_FOLDERS.values(), *(f"{number}_Normalize" for number in range(len(after)))]
    listed = [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in zip(kinds, paths, strict=True)
    ]
    _write(out / "modules.json", listed)
    for path in _FOLDERS.values():
        (out / path).mkdir()
    _write(out / _FOLDERS["Pooling"] / "config.json", {"pooling_mode": "lasttoken"})
    activation = {"activation_function": "torch.nn.modules.linear.Identity"}
    _write(out / _FOLDERS["Dense"] / "config.json", activation)
    save_file({"linear.weight": projection.contiguous()}, out / _FOLDERS["Dense"] / WEIGHTS)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), "utf-8")


def ending_at_first_end(tokenizer_json: str, eos_token_id: int) -> str:
    """tokenizer.json that leaves out what follows an end token within a text.

    CLIP's vector is its first end token's, which sees only what stands before it; if a text has one of
    its own, the last would be another. eos_token_id: of the configuration. Raises InvalidInput (field
    "model") if the tokenizer does not end its texts with that token.
    """
    loaded = Tokenizer.from_str(tokenizer_json)
    last = (loaded.encode("a").ids or [-1])[-1]
    # Configurations of 2023 and before say 2, and transformers then takes the greatest id.
    if eos_token_id not in (last, _WRONG_END):
        raise refused(
            f"config.json says that texts end with token {eos_token_id}, and the tokenizer ends them "
            f"with {last}"
        )
    tokenizer = json.loads(tokenizer_json)
    ends = [each for each in tokenizer["added_tokens"] if each["id"] == last]
    if not ends:
        return tokenizer_json
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["id"] != last]
    pattern = {"Regex": rf"{re.escape(ends[0]['content'])}[\s\S]*"}
    cut = {"type": "Replace", "pattern": pattern, "content": ""}
    own = tokenizer.get("normalizer")
    # A token that is "normalized" is looked for in the normalised text.
    both = [own, cut] if ends[0].get("normalized") else [cut, own]
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [each for each in both if each]}
    return json.dumps(tokenizer, ensure_ascii=False)
