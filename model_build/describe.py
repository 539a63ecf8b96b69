"""A folder of artefacts -> its manifest, revision and README card.

It does not know how artefacts are made, measured or stored.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from safetensors.numpy import save_file

from model_build.quality_card import quality_section
from shared.cards import Task
from shared.models.manifest import (
    OPENVINO_TARGETS,
    SCHEMA_VERSION,
    File,
    LayerFile,
    Manifest,
    ModelRoute,
    RouteName,
    Source,
    SparseHead,
    Target,
    manifest_fields,
)
from shared.vectors import DenseLayer, Layer, UnitLayer, poolings_of

if TYPE_CHECKING:  # it imports torch, which model_build.assemble must not
    from model_build.source import SourceModel

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
HEAD_FILE = "head.onnx"
CARD_FILE = "README.md"

_RUNS: dict[Target, tuple[str, ...]] = {
    "cpu-static": (WEIGHTS_FILE,),
    "gpu-fp16": (WEIGHTS_FILE, CONFIG_FILE),
}
_TOOLS = ("numpy", "onnx", "onnxruntime", "sentence-transformers", "tokenizers", "torch", "transformers")
_MORE_TOOLS: dict[Target, tuple[str, ...]] = {
    "cpu-int8-static": ("nncf", "openvino"),
    "cpu-bf16": ("openvino",),
}
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
        tools={
            tool: importlib.metadata.version(tool) for tool in (*_TOOLS, *_MORE_TOOLS.get(target, ()))
        },
        created=int(time.time()),
        sparse=_head_of(source, target),
        late_interaction=source.late_interaction,
    )
    (folder / CARD_FILE).write_text(card(manifest), "utf-8")
    if manifest.sparse is not None and manifest.sparse.file:
        runs = (*runs, manifest.sparse.file)
    names = (*runs, TOKENIZER_FILE, *(layer.file for layer in layers if layer.file), CARD_FILE)
    manifest = msgspec.structs.replace(manifest, files=tuple(file_of(folder / each) for each in names))
    return msgspec.structs.replace(manifest, revision=revision_of(manifest))


def with_routes(
    folder: Path, manifest: Manifest, parts: dict[RouteName, tuple[Path, Manifest]]
) -> Manifest:
    """`manifest` with routes, whose files are moved into `folder` under names of their own.

    parts: a route -> the folder that it was built into, and its manifest.
    """
    routes, names = {}, [file.name for file in manifest.files]
    for route, (place, part) in parts.items():
        runs = _RUNS.get(part.target, (MODEL_FILE,))
        for name in (*runs, TOKENIZER_FILE, *(each.file for each in part.layers if each.file)):
            (place / name).rename(folder / f"{route}.{name}")
            names.append(f"{route}.{name}")
        routes[route] = ModelRoute(
            target=part.target,
            architecture=part.architecture,
            model_file=f"{route}.{part.model_file}",
            tokenizer_file=f"{route}.{part.tokenizer_file}",
            pad_token_id=part.pad_token_id,
            max_tokens=part.max_tokens,
            pooling=part.pooling or "mean",
            layers=tuple(
                msgspec.structs.replace(each, file=each.file and f"{route}.{each.file}")
                for each in part.layers
            ),
        )
    manifest = msgspec.structs.replace(manifest, routes=routes)
    (folder / CARD_FILE).write_text(card(manifest), "utf-8")
    files = tuple(file_of(folder / name) for name in names)
    manifest = msgspec.structs.replace(manifest, files=files)
    return msgspec.structs.replace(manifest, revision=revision_of(manifest))


def with_int8_ranges(manifest: Manifest, ranges: dict[int, float]) -> Manifest:
    """The manifest with these, and the revision that it then has."""
    calibrated = msgspec.structs.replace(manifest, int8_ranges=ranges)
    return msgspec.structs.replace(calibrated, revision=revision_of(calibrated))


def with_card(folder: Path, manifest: Manifest) -> Manifest:
    """Write the card again, with what was measured; the manifest that lists it."""
    (folder / CARD_FILE).write_text(card(manifest), "utf-8")
    others = tuple(file for file in manifest.files if file.name != CARD_FILE)
    return msgspec.structs.replace(manifest, files=(*others, file_of(folder / CARD_FILE)))


def revision_of(manifest: Manifest) -> str:
    """First 12 hex digits of the sha256 over the files' hashes and the manifest's content fields.

    The card is not content: it says what was measured.
    """
    content = manifest_fields(manifest)
    for field in _NOT_CONTENT:
        content.pop(field)
    content["files"] = [file for file in content["files"] if file["name"] != CARD_FILE]
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:12]


def card(manifest: Manifest) -> str:
    """The model card (README.md) of the folder, in Markdown."""
    if manifest.task != "cross-encoder":
        kind, facts = _KINDS[manifest.task], _FACTS[manifest.task](manifest)
        prompts = "\n".join(f"- `{name}`: `{text}`" for name, text in sorted(manifest.prompts.items()))
        more = f"\n## Prompts\n\n{prompts or 'none'}\n"
    else:
        kind, facts, more = "Cross-encoder", _cross_encoder_facts(manifest), ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    needs = ""
    if manifest.target in OPENVINO_TARGETS:
        needs = (
            "| runs on | OpenVINO, an optional package of the CPU app (requirements-openvino.txt) |\n"
        )
    return f"""# {manifest.name}

{kind}, built for `{manifest.target}` from {manifest.source.name} ({manifest.source.revision}). \
The original's licence applies.

| | |
|---|---|
| architecture | {manifest.architecture} |
| longest input | {manifest.max_tokens} tokens |
{needs}{rows}
{more}{quality_section(manifest)}
All figures, how fast it is, and which tools built it: `manifest.json`.
"""


def _embedding_facts(manifest: Manifest) -> dict[str, object]:
    return {
        "dimensions": manifest.dimensions,
        "shorter vectors it was trained for": ", ".join(map(str, manifest.matryoshka_dimensions))
        or "none stated",
        "pooling": " + ".join(poolings_of(manifest.pooling or ())),
        "unit vectors": "yes" if manifest.normalize else "no",
        "127 of int8 stands for": ", ".join(
            f"{value:g} from {size} dimensions on" for size, value in manifest.int8_ranges.items()
        )
        or "1",
        "default prompt": manifest.default_prompt or "none",
        **{
            f"texts for prompt `{name}`": f"{route.architecture}, {route.max_tokens} tokens"
            for name, route in (manifest.routes or {}).items()
        },
    }


def _sparse_facts(manifest: Manifest) -> dict[str, object]:
    assert manifest.sparse is not None, "a sparse model has a head"
    return {
        "words": manifest.dimensions,
        "weights": f"{manifest.sparse.pooling} of {manifest.sparse.activation} over the tokens",
        "at most": f"{manifest.sparse.most or 'all'} of a text's weights that are not 0",
        "default prompt": manifest.default_prompt or "none",
    }


def _late_facts(manifest: Manifest) -> dict[str, object]:
    late = manifest.late_interaction
    assert late is not None, "a multi-vector model says how it reads"
    return {
        "dimensions of a token's vector": manifest.dimensions,
        "queries": f"{late.query_tokens} tokens at most, filled up to {late.expanded_to}",
        "documents": f"{late.document_tokens} tokens at most, {len(late.skipped)} kinds skipped",
        "score": "the mean of the largest cosines" if late.mean else "the sum of the largest cosines",
    }


_KINDS: Mapping[Task, str] = {
    "embedding": "Text embedding model",
    "sparse": "Sparse text embedding model",
    "multi-vector": "Late-interaction text embedding model",
}
_FACTS: Mapping[Task, Callable[[Manifest], dict[str, object]]] = {
    "embedding": _embedding_facts,
    "sparse": _sparse_facts,
    "multi-vector": _late_facts,
}


def _head_of(source: SourceModel, target: Target) -> SparseHead | None:
    """On a GPU the head is in the transformer's weights."""
    if source.sparse is None or target == "gpu-fp16":
        return source.sparse
    return msgspec.structs.replace(source.sparse, file=HEAD_FILE)


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
