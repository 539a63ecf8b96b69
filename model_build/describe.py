"""A folder of artefacts -> its manifest, revision and README card.

It does not know how artefacts are made, measured or stored.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from safetensors.numpy import save_file

from shared.models.manifest import SCHEMA_VERSION, File, LayerFile, Manifest, Source, Target
from shared.vectors import DenseLayer, Layer, UnitLayer, poolings_of

if TYPE_CHECKING:  # it imports torch, which model_build.assemble must not
    from model_build.source import SourceModel

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"

_RUNS: dict[Target, tuple[str, ...]] = {
    "cpu-static": (WEIGHTS_FILE,),
    "gpu-fp16": (WEIGHTS_FILE, CONFIG_FILE),
}
_TOOLS = ("numpy", "onnx", "onnxruntime", "sentence-transformers", "tokenizers", "torch", "transformers")
# These fields differ between builds of the same content.
_NOT_CONTENT = ("revision", "quality", "memory", "tools", "created")


def describe(folder: Path, source: SourceModel, origin: Source, name: str, target: Target) -> Manifest:
    """Write tokenizer, Dense layers and card into `folder`; return its manifest, without quality.

    folder: already holds what the target runs: MODEL_FILE, or of a table WEIGHTS_FILE, or that and
    CONFIG_FILE for a GPU.

    The revision is a hash of the content: equal content has the same revision in every build.
    """
    (folder / TOKENIZER_FILE).write_text(source.tokenizer_json, "utf-8")
    layers = _write_layers(folder, source)
    runs = _RUNS.get(target, (MODEL_FILE,))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        revision="",
        task=source.task,
        target=target,
        architecture=source.architecture,
        source=origin,
        files=(),
        model_file=runs[0],
        tokenizer_file=TOKENIZER_FILE,
        pad_token_id=source.pad_token_id,
        max_tokens=source.max_tokens,
        dimensions=source.dimensions,
        pooling=source.pooling,
        normalize=source.normalize,
        labels=source.labels,
        template=source.template,
        matryoshka_dimensions=source.matryoshka_dimensions,
        prompts=source.prompts,
        default_prompt=source.default_prompt,
        layers=layers,
        tools={tool: importlib.metadata.version(tool) for tool in _TOOLS},
        created=int(time.time()),
    )
    (folder / CARD_FILE).write_text(card(manifest), "utf-8")
    names = (*runs, TOKENIZER_FILE, *(layer.file for layer in layers if layer.file), CARD_FILE)
    manifest = msgspec.structs.replace(manifest, files=tuple(file_of(folder / each) for each in names))
    return msgspec.structs.replace(manifest, revision=revision_of(manifest))


def revision_of(manifest: Manifest) -> str:
    """First 12 hex digits of the sha256 over the files' hashes and the manifest's content fields."""
    content = msgspec.to_builtins(manifest)
    for field in _NOT_CONTENT:
        content.pop(field)
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:12]


def card(manifest: Manifest) -> str:
    """The model card (README.md) of the folder, in Markdown.

    It is part of the hashed content, so measurements and versions stand in manifest.json only.
    """
    if manifest.task == "embedding":
        kind, facts = "Text embedding model", _embedding_facts(manifest)
        prompts = "\n".join(f"- `{name}`: `{text}`" for name, text in sorted(manifest.prompts.items()))
        more = f"\n## Prompts\n\n{prompts or 'none'}\n"
    else:
        kind, facts, more = "Cross-encoder", _cross_encoder_facts(manifest), ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# {manifest.name}

{kind}, built for `{manifest.target}` from {manifest.source.name} ({manifest.source.revision}). \
The original's licence applies.

| | |
|---|---|
| architecture | {manifest.architecture} |
| longest input | {manifest.max_tokens} tokens |
{rows}
{more}
How close it is to the original, how fast, and which tools built it: `manifest.json`.
"""


def _embedding_facts(manifest: Manifest) -> dict[str, object]:
    return {
        "dimensions": manifest.dimensions,
        "shorter vectors it was trained for": ", ".join(map(str, manifest.matryoshka_dimensions))
        or "none stated",
        "pooling": " + ".join(poolings_of(manifest.pooling or ())),
        "unit vectors": "yes" if manifest.normalize else "no",
        "default prompt": manifest.default_prompt or "none",
    }


def _cross_encoder_facts(manifest: Manifest) -> dict[str, object]:
    if manifest.dimensions == 1:
        return {"answers with": "one score a pair, the sigmoid of its logit unless raw scores are asked"}
    return {"labels": ", ".join(manifest.labels)}


def _write_layers(folder: Path, source: SourceModel) -> tuple[LayerFile, ...]:
    return tuple(_write_layer(folder, index, layer) for index, layer in enumerate(source.layers))


def _write_layer(folder: Path, index: int, layer: Layer) -> LayerFile:
    if isinstance(layer, UnitLayer):
        return LayerFile("", "identity", "unit")
    tensors = {"weight": np.ascontiguousarray(layer.weight)}
    if layer.bias is not None:
        tensors["bias"] = np.ascontiguousarray(layer.bias)
    if isinstance(layer, DenseLayer):
        described = LayerFile(f"dense_{index}.safetensors", layer.activation)
    else:
        described = LayerFile(f"norm_{index}.safetensors", "identity", "norm")
    save_file(tensors, folder / described.file)
    return described


def file_of(path: Path) -> File:
    """Name, size and sha256 of the file at `path`."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(path.name, path.stat().st_size, digest)
