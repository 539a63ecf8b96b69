"""Stores in folders, and what a builder would publish into them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shared.models.manifest import File, Manifest, Target
from shared.models.store import ModelStore, open_store_url
from tests.tiny import manifest_of


def open_folder(root: Path, tmp_path: Path) -> ModelStore:
    return open_store_url(f"file://{root}", cache_dir=tmp_path / "cache", cache_disk_bytes=1 << 30)


def artefacts(
    tmp_path: Path,
    name: str = "tiny",
    revision: str = "r1",
    *,
    target: Target = "cpu-int8",
    model: bytes = b"graph",
) -> tuple[Path, Manifest]:
    """A folder as the builder leaves it, and its manifest."""
    folder = tmp_path / f"built-{name}-{revision}"
    folder.mkdir()
    files = []
    for file_name, data in (("model.onnx", model), ("tokenizer.json", b"{}")):
        (folder / file_name).write_bytes(data)
        files.append(File(file_name, len(data), hashlib.sha256(data).hexdigest()))
    return folder, manifest_of(name, revision=revision, target=target, files=tuple(files))
