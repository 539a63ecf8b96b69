"""Resolves MODEL as typed to a local folder of weights and its origin.

It does not know the folder's content: source.py reads it.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from model_build.folder import check_folder
from model_build.formats import no_weights_at_hub
from shared.engines.memory import usable_memory
from shared.errors import InvalidInput, Unavailable, printable
from shared.models.manifest import Source

CATALOGUE = Path(__file__).with_name("models.toml")

# The files of a model. Pickles (*.bin, *.pt) and code (*.py) are never fetched.
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model")
_OTHER_FORMATS = ("onnx/*", "openvino/*", "coreml/*", "tf_model*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_HUB_ID = 200
_COMMIT = re.compile(r"[0-9a-f]{40}")


class CatalogueEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A catalogue entry: `package`, `module` and `folder`, or `hub` and `revision`."""

    package: str = ""
    module: str = ""
    folder: str = ""
    hub: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Located:
    """folder: holds the model. name: the default name to publish under."""

    folder: Path
    name: str
    source: Source

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model; for a snapshot in the hub's cache, its models--ORG--NAME folder too."""
        above = self.folder.parent.parent.name
        cached = (above,) if above.startswith("models--") else ()
        return (self.name, self.source.name, *cached)


def read_catalogue(path: Path = CATALOGUE) -> dict[str, CatalogueEntry]:
    """Name -> entry."""
    return msgspec.convert(tomllib.loads(path.read_text("utf-8")), dict[str, CatalogueEntry])


def locate(model: str, revision: str | None = None) -> Located:
    """Find or download MODEL: a folder, a name of the catalogue, or a hub id ORG/NAME.

    revision: a commit, branch or tag of a hub model. Raises InvalidInput (field "model" or "revision"),
    and Unavailable when the hub does not answer.
    """
    catalogue = read_catalogue()
    if _is_folder(model):
        folder = Path(model).resolve()
        _refuse_revision(revision)
        check_folder(folder, usable_memory())
        return Located(folder, folder.name, Source(folder.name, _content_hash(folder)))
    if entry := catalogue.get(model):
        if entry.hub:
            return _from_hub(entry.hub, revision or entry.revision, model)
        _refuse_revision(revision)
        return _from_package(entry, model)
    if len(model) <= _MAX_HUB_ID and _HUB_ID.fullmatch(model) and not _is_file(model):
        return _from_hub(model, revision, model.rpartition("/")[2])
    if _is_file(model):
        raise InvalidInput(
            f"{printable(model)!r} is a file: give its folder; a model is a folder with "
            "config.json, model.safetensors and tokenizer.json, as save_pretrained() writes it",
            field="model",
        )
    close = difflib.get_close_matches(model[:100], catalogue, n=3)
    raise InvalidInput(
        f"{printable(model)!r} is neither a folder, nor a hub id (ORG/NAME), nor one of the "
        f"{len(catalogue)} names in model_build/models.toml"
        + (f"; close are {', '.join(close)}" if close else ""),
        field="model",
    )


def _is_folder(model: str) -> bool:
    try:
        return model != "" and Path(model).is_dir()
    except (OSError, ValueError):  # too long for the file system, or contains NUL
        return False


def _is_file(model: str) -> bool:
    """Whether it exists; called after _is_folder. Devices count too."""
    try:
        return model != "" and Path(model).exists()
    except (OSError, ValueError):
        return False


def _refuse_revision(revision: str | None) -> None:
    if revision is not None:
        raise InvalidInput("--revision is for models of the hub", field="revision")


def _from_package(entry: CatalogueEntry, name: str) -> Located:
    spec = importlib.util.find_spec(entry.module)
    if spec is None or not spec.submodule_search_locations:
        raise InvalidInput(
            f"the package {entry.package} is not installed: see model_build/requirements-sample.txt",
            field="model",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / entry.folder
    return Located(folder, name, Source(entry.package, importlib.metadata.version(entry.package)))


def _from_hub(repository: str, revision: str | None, name: str) -> Located:
    # Slow to import, and most builds do not need it.
    import httpx
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(PATTERNS),
                ignore_patterns=list(_OTHER_FORMATS),
            )
        )
        # Without weights, list what the hub has instead.
        found = any(folder.rglob("*.safetensors"))
        others = None if found else list_repo_files(repository, revision=revision)
    except RevisionNotFoundError as error:
        raise InvalidInput(f"{repository} has no revision {revision}", field="revision") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InvalidInput(
            f"the hub has no model {repository}, or you have no access to it", field="model"
        ) from error
    except (LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise Unavailable(
            f"{repository} cannot be downloaded: the model hub does not answer. "
            "Give a folder that holds the model instead"
        ) from error
    if others is not None:
        raise no_weights_at_hub(repository, revision, others)
    check_folder(folder, usable_memory())
    # The snapshot's folder is named after the commit, also for a branch or tag.
    commit = folder.name if _COMMIT.fullmatch(folder.name) else (revision or "unknown")
    return Located(folder, name, Source(repository, commit))


def _content_hash(folder: Path) -> str:
    """12 hex digits of the sha256 over the names and contents of the model's files."""
    files = {path for pattern in PATTERNS for path in folder.rglob(pattern) if path.is_file()}
    digest = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()[:12]
