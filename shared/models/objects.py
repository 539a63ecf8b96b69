"""A model store's object storage: keys to bytes, in a folder or an Azure Blob container.

azure is imported only when a blob container is opened, to keep the startup of other processes fast. Does
not know models or revisions; hashes only of the `File` it is given.

The store's content is not trusted: reads are capped, and in a folder only regular files are read. The
folder itself may be a symbolic link, since the operator named it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from shared.errors import InvalidArtefact, Misconfigured, StoreUnavailable
from shared.models.manifest import File
from shared.storage.regular_files import FileRefused, check_folders, open_regular, read_capped
from shared.storage.translate import azure_errors, client_options, disk_errors

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

_CONCURRENCY = 4
_BLOCK_BYTES = 4 << 20
_TRIES = 20
_LOCK = ".lock"
STORE = "the model store"

MAX_OBJECT_BYTES = 256 << 10
"""Maximum of a pointer or manifest; real ones have at most a few KB."""

MAX_MODELS = 1_000
"""Maximum in one store. Listing re-reads each of them every few seconds."""

MAX_LISTED = 100_000
"""Maximum blobs of a container, or entries of a folder, that a listing visits."""


T = TypeVar("T")


class ObjectStore(Protocol):
    """Every method raises StoreUnavailable or Unavailable if the store or the disk fails."""

    def prepare(self) -> None:
        """Create the root folder if it is missing."""

    def names(self, holding: str, under: str = "") -> list[str]:
        """The NAMEs of the keys "UNDER/NAME/HOLDING", in no order. Misconfigured if there are too many.

        under: empty: of the keys "NAME/HOLDING".
        """

    def read(self, key: str) -> bytes | None:
        """A small object; None if absent. Raises InvalidArtefact if it is too large, or not a file."""

    def write(self, key: str, data: bytes) -> None:
        """Write atomically: readers see the old bytes or the new."""

    def update(self, key: str, change: Callable[[bytes | None], bytes]) -> None:
        """Read, change and write; `change` runs again if another writer came between."""

    def holds(self, key: str, file: File) -> bool:
        """Whether the object exists with the file's size and hash."""

    def upload(self, key: str, path: Path, file: File) -> None:
        """Store a file under `key`, replacing an existing object."""

    def download(self, key: str, path: Path, file: File) -> None:
        """Fetch into `path`. Raises InvalidArtefact if it is absent or has another size."""

    def local(self) -> Path | None:
        """The folder where objects can be read in place by key; None if they are remote."""


def mismatch_of(path: Path, file: File, *, inside: Path) -> str | None:
    """Why the copy of `file` at `path` is invalid, as a predicate for its name; None if it is valid.

    inside: as in `open_regular`. Opens the file once for all checks. Raises OSError.
    """
    try:
        with open_regular(path, inside=inside) as stream:
            if os.fstat(stream.fileno()).st_size != file.size:
                return "does not have its manifest's size"
            if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                return "does not have its manifest's sha256"
    except FileRefused as refusal:
        return refusal.reason
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "is missing"
    return None


class FolderObjects:
    """Objects are files below `root`. A missing one is no empty store: it may be a disk that is away.

    store: what it is, in words, for its errors.
    """

    def __init__(self, root: Path, store: str = STORE) -> None:
        self._root = root
        self._store = store
        self._lock = threading.Lock()

    def prepare(self) -> None:
        with disk_errors(self._store):
            self._root.mkdir(parents=True, exist_ok=True)

    def names(self, holding: str, under: str = "") -> list[str]:
        with disk_errors(self._store), os.scandir(self._root / under) as entries:
            listed = _at_most(MAX_LISTED, entries, "entries")
            # What is no regular file is a name too: reading it says what is wrong.
            found = (entry.name for entry in listed if os.path.lexists(f"{entry.path}/{holding}"))
            return list(_at_most(MAX_MODELS, found, "models"))

    def read(self, key: str) -> bytes | None:
        with disk_errors(self._store):
            try:
                return read_capped(self._root / key, MAX_OBJECT_BYTES, inside=self._root)
            except FileRefused as refusal:
                raise InvalidArtefact(f"{key} of {self._store} {refusal.reason}") from refusal
            except (FileNotFoundError, NotADirectoryError):
                os.scandir(self._root).close()  # raises if the whole root is missing
                return None

    def write(self, key: str, data: bytes) -> None:
        self._replace(key, lambda path: path.write_bytes(data))

    def update(self, key: str, change: Callable[[bytes | None], bytes]) -> None:
        with self._lock, self._locked(key):
            self.write(key, change(self.read(key)))

    def holds(self, key: str, file: File) -> bool:
        with disk_errors(self._store):
            return mismatch_of(self._root / key, file, inside=self._root) is None

    def upload(self, key: str, path: Path, file: File) -> None:
        def copy(target: Path) -> None:
            with open_regular(path) as source, target.open("wb") as sink:
                while block := source.read(_BLOCK_BYTES):
                    sink.write(block)

        self._replace(key, copy)

    def download(self, key: str, path: Path, file: File) -> None:
        raise NotImplementedError("a folder's files are read in place")

    def local(self) -> Path | None:
        return self._root

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """One process at a time in the key's folder; the kernel lets go when its holder dies."""
        try:
            import fcntl
        except ImportError:  # Windows, where a folder's only users are this process's threads
            yield
            return
        folder = self._made_folder(key)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk_errors(self._store):
            handle = os.open(folder / _LOCK, flags, 0o666)
        with open(handle, "w") as stream:
            with disk_errors(self._store):
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _made_folder(self, key: str) -> Path:
        """Where the key's file lies. No link is followed to it."""
        target = self._root / key
        with disk_errors(self._store):
            try:
                check_folders(target, inside=self._root)
            except FileRefused as refusal:
                raise InvalidArtefact(f"{key} of {self._store} {refusal.reason}") from refusal
            target.parent.mkdir(parents=True, exist_ok=True)
        return target.parent

    def _replace(self, key: str, fill: Callable[[Path], object]) -> None:
        target = self._made_folder(key) / Path(key).name
        with disk_errors(self._store):
            handle, name = tempfile.mkstemp(prefix=".partial-", dir=target.parent)
            os.close(handle)
            partial = Path(name)
            try:
                fill(partial)
                partial.chmod(0o644)  # mkstemp creates 0600, which a server of another user cannot read
                partial.replace(target)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise


class BlobObjects:
    """Objects are blobs of one container, which must exist.

    url: https://ACCOUNT.blob.core.windows.net/CONTAINER, or Azurite's http://HOST:PORT/ACCOUNT/CONTAINER.
    connection_string: empty for DefaultAzureCredential, which needs https. store: as in FolderObjects.
    """

    def __init__(self, url: str, connection_string: str, store: str = STORE) -> None:
        from azure.storage.blob import ContainerClient, LinearRetry

        options: dict[str, Any] = {
            **client_options(LinearRetry),
            "max_single_get_size": _BLOCK_BYTES,
            "max_chunk_get_size": _BLOCK_BYTES,
            "max_single_put_size": _BLOCK_BYTES,
            "max_block_size": _BLOCK_BYTES,
        }
        self._store = store
        url = url.rstrip("/")
        if connection_string:
            try:
                self._container = ContainerClient.from_connection_string(
                    connection_string, url.rpartition("/")[2], **options
                )
            except ValueError as error:
                raise Misconfigured("the storage connection string is not valid") from error
            if self._container.url.rstrip("/") != url:
                raise Misconfigured(f"the storage connection string is of another account than {store}")
        elif url.startswith("http://"):
            raise Misconfigured(f"{store} over http needs a storage connection string")
        else:
            from azure.identity import DefaultAzureCredential

            self._container = ContainerClient.from_container_url(
                url, DefaultAzureCredential(), **options
            )

    def prepare(self) -> None:
        """Nothing to do: deployment creates the container."""

    def names(self, holding: str, under: str = "") -> list[str]:
        begins = f"{under}/" if under else ""
        with azure_errors(self._store):
            blobs = self._container.list_blob_names(name_starts_with=begins or None)
            listed = _at_most(MAX_LISTED, blobs, "blobs")
            parts = (key.removeprefix(begins).partition("/") for key in listed)
            found = (name for name, _, rest in parts if rest == holding)
            return list(_at_most(MAX_MODELS, found, "models"))

    def read(self, key: str) -> bytes | None:
        with azure_errors(self._store):
            return self._read(self._blob(key))[0]

    def write(self, key: str, data: bytes) -> None:
        with azure_errors(self._store):
            self._blob(key).upload_blob(data, overwrite=True)

    def update(self, key: str, change: Callable[[bytes | None], bytes]) -> None:
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceExistsError, ResourceModifiedError

        blob = self._blob(key)
        with azure_errors(self._store):
            for _ in range(_TRIES):
                data, etag = self._read(blob)
                try:
                    if etag is None:
                        blob.upload_blob(change(None), overwrite=False)
                    else:
                        blob.upload_blob(
                            change(data),
                            overwrite=True,
                            etag=etag,
                            match_condition=MatchConditions.IfNotModified,
                        )
                    return
                except (ResourceExistsError, ResourceModifiedError):
                    continue  # another publisher wrote between our read and our write
        raise StoreUnavailable(f"others kept changing {key} of {self._store}")

    def holds(self, key: str, file: File) -> bool:
        from azure.core.exceptions import ResourceNotFoundError

        with azure_errors(self._store):
            try:
                properties = self._blob(key).get_blob_properties()
            except ResourceNotFoundError:
                return False
        # Only our uploads carry the hash; a foreign blob is uploaded again.
        return properties.size == file.size and (properties.metadata or {}).get("sha256") == file.sha256

    def upload(self, key: str, path: Path, file: File) -> None:
        with disk_errors(), azure_errors(self._store), path.open("rb") as stream:
            self._blob(key).upload_blob(
                stream,
                length=file.size,
                overwrite=True,
                metadata={"sha256": file.sha256},
                max_concurrency=_CONCURRENCY,
            )

    def download(self, key: str, path: Path, file: File) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        with disk_errors(), azure_errors(self._store):
            try:
                blob = self._blob(key).download_blob(max_concurrency=_CONCURRENCY)
            except ResourceNotFoundError as error:
                raise InvalidArtefact(
                    f"the model's file {file.name} is missing from the store"
                ) from error
            if blob.size != file.size:
                raise InvalidArtefact(f"the model's file {file.name} does not have its manifest's size")
            with path.open("wb") as stream:
                blob.readinto(stream)

    def local(self) -> Path | None:
        return None

    def _blob(self, key: str) -> BlobClient:
        return self._container.get_blob_client(key)

    def _read(self, blob: BlobClient) -> tuple[bytes | None, str | None]:
        """A small blob's bytes and ETag; (None, None) if it is not there. Raises InvalidArtefact."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            download = blob.download_blob()  # its first _BLOCK_BYTES at most, and how large it is
            if download.size > MAX_OBJECT_BYTES:
                raise InvalidArtefact(
                    f"{blob.blob_name} of {self._store} has more than {MAX_OBJECT_BYTES} bytes"
                )
            return download.readall(), download.properties.etag
        except ResourceNotFoundError as error:
            if getattr(error, "error_code", None) == "ContainerNotFound":
                raise
            return None, None


def _at_most(limit: int, found: Iterable[T], what: str) -> Iterator[T]:
    """Iterate over `found`, at most `limit`. Raises Misconfigured beyond it."""
    for count, each in enumerate(found, start=1):
        if count > limit:
            raise Misconfigured(f"the model store holds more than {limit} {what}")
        yield each
