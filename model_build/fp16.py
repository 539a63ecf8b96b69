"""A model's transformer as FP16 safetensors for the GPU.

It does not know tokenizers, pooling or the model store: describe.py writes those.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from model_build.folder import read_json, refused
from model_build.source import SourceModel
from model_build.weights import check_numbers
from shared.engines.torch import read_transformer
from shared.errors import InvalidArtefact

# Provenance, which would change the revision of equal content, or code.
_DROPPED = ("auto_map", "_name_or_path", "transformers_version", "torch_dtype")


def export_fp16(source: SourceModel, folder: Path) -> None:
    """Write model.safetensors, FP16 and in one file, and config.json into `folder`.

    Only what the serving engine loads is written: no language model head, no unused pooler. Raises
    InvalidInput (field "model") if weights are missing, and InvalidArtefact if they are NaN, infinite or
    too large for FP16.
    """
    try:
        model = read_transformer(source.folder, with_head=source.pooling is None)
    except InvalidArtefact as error:
        raise refused(error.message) from error
    check_numbers(model.named_parameters())
    for name, parameter in model.named_parameters():
        half = parameter.data.to(torch.float16)
        if not torch.isfinite(half).all():
            raise InvalidArtefact(
                f"the weight {name} has values that do not fit FP16 (65,504 at most): build this model "
                "for the CPU"
            )
        parameter.data = half
    model.save_pretrained(folder, max_shard_size="1000GB")
    config = read_json(source.folder / "config.json") or {}
    for key in _DROPPED:
        config.pop(key, None)
    config["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
