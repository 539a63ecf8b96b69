"""Finds, verifies and publishes models; keeps local copies of remote ones, bounded in bytes.

Layout: NAME/REVISION/<files>, NAME/REVISION/manifest.json written last, then NAME/current; NAME/staged.
A revision never changes once its manifest exists. Does not know engines, loaded models or how bytes are
transferred (that is objects.py).
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from shared.cards import Device, Share
from shared.errors import InvalidArtefact, Misconfigured, UnknownModel
from shared.models.manifest import (
    MANIFEST_FILE,
    POINTER_FILE,
    File,
    Manifest,
    decode_manifest,
    decode_pointer,
    encode_manifest,
    encode_pointer,
)
from shared.models.objects import BlobObjects, FolderObjects, ObjectStore, mismatch_of
from shared.models.stages import Stages
from shared.names import check_name, is_name
from shared.settings import Settings
from shared.storage.translate import disk_errors

_PARTIAL = ".partial-"
_USED = ".used"
_ABANDONED_S = 3600.0
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def open_store(settings: Settings) -> ModelStore:
    """The store that the settings name. Raises Misconfigured; does not connect yet."""
    return open_store_url(
        settings.model_store,
        connection_string=settings.storage_connection_string,
        cache_dir=settings.cache_dir,
        cache_disk_bytes=settings.cache_disk_bytes,
    )


def open_store_url(
    url: str, *, connection_string: str = "", cache_dir: Path, cache_disk_bytes: int
) -> ModelStore:
    """url: file://FOLDER (relative or absolute) or the https:// or http:// URL of a blob container.

    Raises Misconfigured.
    """
    objects: ObjectStore
    if url.startswith("file://") and len(url) > len("file://"):
        objects = FolderObjects(Path(url.removeprefix("file://")))
    elif url.startswith(("https://", "http://")):
        objects = BlobObjects(url, connection_string)
        check_private(cache_dir)
    else:
        raise Misconfigured("the model store must be file://FOLDER or a blob container's https:// URL")
    return ModelStore(objects, LocalCopies(cache_dir, cache_disk_bytes))


def check_private(folder: Path) -> None:
    """Raises Misconfigured if another user of this machine may write to `folder`, which may be absent.

    The default folder has a predictable name in a world-writable directory, where anyone can create it
    first.
    """
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise Misconfigured("BLITZ_CACHE_DIR cannot be accessed") from error
    if not stat.S_ISDIR(status.st_mode):
        raise Misconfigured("BLITZ_CACHE_DIR must be a folder; it is a file or a symbolic link")
    # Windows has no such modes, and a temporary folder per user.
    if os.name == "posix" and (status.st_uid != os.geteuid() or status.st_mode & _WRITABLE_BY_OTHERS):
        raise Misconfigured(
            "BLITZ_CACHE_DIR is a folder that other users can write to: it must belong to the user of "
            "this process and have mode 700; a folder that does not exist yet is created that way"
        )


class ModelStore:
    """Thread-safe and blocking: call it off the event loop.

    Every method raises StoreUnavailable when the store does not answer. `manifest` and `fetch` raise
    InvalidInput for an invalid name or revision.
    """

    def __init__(self, objects: ObjectStore, copies: LocalCopies) -> None:
        self._objects = objects
        self._copies = copies
        self.stages = Stages(objects)

    def names(self) -> list[str]:
        """Models that have a pointer, sorted."""
        return sorted(filter(is_name, self._objects.names(POINTER_FILE)))

    def current(self, name: str, device: Device) -> str:
        """The revision served on `device`. Raises UnknownModel, which lists the known names."""
        revision = self.revisions(name).get(device)
        if revision is None:
            raise UnknownModel(f"the model {name} is not published for {device}", field="model")
        return revision

    def revisions(self, name: str) -> dict[Device, str]:
        """The revision served on each device. Raises UnknownModel, which lists the known names."""
        # An invalid name never becomes a path; to the caller it is an unknown model.
        data = self._objects.read(f"{name}/{POINTER_FILE}") if is_name(name) else None
        if data is None:
            raise UnknownModel.among(self.names(), name)
        revisions = decode_pointer(data)
        if not all(is_name(revision) for revision in revisions.values()):
            raise InvalidArtefact(f"the pointer of {name} holds no valid revision")
        return revisions

    def manifest(self, name: str, revision: str) -> Manifest:
        """Raises UnknownModel if that revision is not published, InvalidArtefact if it is invalid."""
        data = self._objects.read(f"{_prefix(name, revision)}/{MANIFEST_FILE}")
        if data is None:
            raise UnknownModel(f"the model {name} has no revision {revision}", field="model")
        manifest = decode_manifest(data)
        if (manifest.name, manifest.revision) != (name, revision):
            raise InvalidArtefact(f"the manifest of {name} belongs to another model or revision")
        return manifest

    def published(self, name: str) -> list[Manifest]:
        """Every revision that is there, the newest first. Raises UnknownModel, InvalidArtefact."""
        self.revisions(name)
        found = filter(is_name, self._objects.names(MANIFEST_FILE, name))
        manifests = [self.manifest(name, revision) for revision in found]
        return sorted(manifests, key=lambda each: (each.created, each.revision), reverse=True)

    def point(self, name: str, revision: str) -> str | None:
        """Serve a revision that is published, on the device that it is for; the one served before.

        Raises UnknownModel, and InvalidArtefact naming a file that is missing or damaged: then nothing
        has changed.
        """
        return self._point(self._whole(name, revision))

    def stage(self, name: str, share: Share) -> None:
        """Have a published revision answer a share of the requests, on the device that it is for.

        Raises as `point` does.
        """
        self.stages.put(name, self._whole(name, share.revision).device, share)

    def _whole(self, name: str, revision: str) -> Manifest:
        """Of a revision whose files are all there."""
        manifest = self.manifest(name, revision)
        for file in manifest.files:
            if not self._objects.holds(f"{_prefix(name, revision)}/{file.name}", file):
                raise InvalidArtefact(f"the model's file {file.name} is missing or damaged")
        return manifest

    def _point(self, manifest: Manifest) -> str | None:
        before: str | None = None

        def change(data: bytes | None) -> bytes:
            nonlocal before
            revisions = decode_pointer(data) if data else {}
            before = revisions.get(manifest.device)
            return encode_pointer({**revisions, manifest.device: manifest.revision})

        self._objects.update(f"{manifest.name}/{POINTER_FILE}", change)
        self.stages.settle(manifest.name, manifest.device, before, manifest.revision)
        return before

    def fetch(self, name: str, revision: str) -> tuple[Path, Manifest]:
        """A local folder whose files all match the manifest.

        Raises UnknownModel, InvalidArtefact naming the file, Unavailable when the disk is full.
        """
        manifest = self.manifest(name, revision)
        prefix = _prefix(name, revision)
        if (root := self._objects.local()) is not None:
            with disk_errors():
                _verify(root / prefix, manifest, inside=root)
            return root / prefix, manifest
        return self._copies.fetch(self._objects, prefix, manifest), manifest

    def publish(self, folder: Path, manifest: Manifest, *, serve: bool = True) -> bool:
        """Upload artefacts, then the manifest, then point `current` at it, unless it is not to `serve`.

        False if that revision was published before: then only missing or damaged artefacts are uploaded,
        and the pointer is set. Raises InvalidArtefact, before anything is written, if the folder does
        not match the manifest, or the revision is published with different files.
        """
        encoded = encode_manifest(manifest)
        decode_manifest(encoded)
        prefix = _prefix(manifest.name, manifest.revision)
        with disk_errors():
            _verify(folder, manifest, inside=folder)
        self._objects.prepare()
        published = self._objects.read(f"{prefix}/{MANIFEST_FILE}")
        if published is not None and _files(decode_manifest(published)) != _files(manifest):
            raise InvalidArtefact(
                f"revision {manifest.revision} of {manifest.name} is published with different files"
            )
        for file in manifest.files:
            key = f"{prefix}/{file.name}"
            if not self._objects.holds(key, file):
                self._objects.upload(key, folder / file.name, file)
        if published is None:
            self._objects.write(f"{prefix}/{MANIFEST_FILE}", encoded)
        if serve:
            self._point(manifest)
        return published is None


class LocalCopies:
    """Verified copies of revisions in `root`, at most `max_bytes`; the least recently used are evicted.

    Several threads and processes may share `root`: a copy is made in a temporary folder and renamed.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._arriving: dict[str, int] = {}

    def fetch(self, objects: ObjectStore, prefix: str, manifest: Manifest) -> Path:
        """The folder of a verified copy; a damaged copy is deleted and fetched again."""
        # '@' is in no name or revision, so two models never share a folder.
        target = self._root / prefix.replace("/", "@")
        with self._locks.setdefault(target.name, threading.Lock()), disk_errors():
            check_private(self._root)
            if target.is_dir():
                try:
                    _verify(target, manifest, inside=self._root)
                    (target / _USED).touch()
                    return target
                except InvalidArtefact:
                    self._delete(target)
            self._make_room(target.name, manifest)
            try:
                self._download(objects, prefix, manifest, target)
            finally:
                with self._lock:
                    del self._arriving[target.name]
            return target

    def _download(self, objects: ObjectStore, prefix: str, manifest: Manifest, target: Path) -> None:
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._root))
        try:
            for file in manifest.files:
                objects.download(f"{prefix}/{file.name}", partial / file.name, file)
                _verify_file(partial / file.name, file, inside=partial)
            (partial / _USED).touch()
            try:
                os.replace(partial, target)
            except OSError:
                if not target.is_dir():
                    raise
                # A folder cannot replace a non-empty one: another process was faster.
                _verify(target, manifest, inside=self._root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _make_room(self, key: str, manifest: Manifest) -> None:
        """Delete least recently used copies until the new one fits, and reserve its bytes."""
        if manifest.size > self._max_bytes:
            raise Misconfigured(
                f"the model {manifest.name} needs {manifest.size} bytes of disk; "
                f"BLITZ_CACHE_DISK_BYTES allows {self._max_bytes}"
            )
        with self._lock:
            self._root.parent.mkdir(parents=True, exist_ok=True)
            self._root.mkdir(mode=0o700, exist_ok=True)
            check_private(self._root)  # again: another user may have been faster
            self._sweep()
            copies = sorted((_used_at(path), path) for path in self._root.glob("*@*"))
            free = self._max_bytes - sum(_size(path) for _, path in copies)
            free -= sum(self._arriving.values())
            for _, path in copies:
                if free >= manifest.size:
                    break
                free += _size(path)
                self._delete(path)
            self._arriving[key] = manifest.size

    def _sweep(self) -> None:
        """Delete the leftovers of processes that died during a download."""
        for path in self._root.glob(f"{_PARTIAL}*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)

    def _delete(self, path: Path) -> None:
        """Rename first, so that no reader sees an incomplete copy."""
        doomed = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self._root))
        with suppress(FileNotFoundError):
            os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _verify(folder: Path, manifest: Manifest, *, inside: Path) -> None:
    """Raises InvalidArtefact naming the first file whose size or sha256 does not match.

    inside: no symbolic link below it is followed.
    """
    for file in manifest.files:
        _verify_file(folder / file.name, file, inside=inside)


def _verify_file(path: Path, file: File, *, inside: Path) -> None:
    if reason := mismatch_of(path, file, inside=inside):
        raise InvalidArtefact(f"the model's file {file.name} {reason}")


def _prefix(name: str, revision: str) -> str:
    return f"{check_name(name)}/{check_name(revision, field='revision')}"


def _files(manifest: Manifest) -> frozenset[File]:
    return frozenset(manifest.files)


def _used_at(path: Path) -> float:
    with suppress(FileNotFoundError):
        return (path / _USED).stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    """Bytes of a copy's files; 0 if another process has just deleted it."""
    with suppress(FileNotFoundError):
        return sum(entry.stat().st_size for entry in os.scandir(path))
    return 0
