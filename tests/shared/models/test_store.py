"""Tests of shared.models.store over a real folder and a real Azurite."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import ContainerClient

from shared.errors import (
    BlitzError,
    InvalidArtefact,
    InvalidInput,
    Misconfigured,
    StoreUnavailable,
    Unavailable,
    UnknownModel,
)
from shared.models.manifest import File, encode_pointer
from shared.models.objects import BlobObjects, FolderObjects
from shared.models.store import LocalCopies, ModelStore, open_store_url
from shared.storage.translate import azure_errors
from tests.azurite import Azurite
from tests.patience import PATIENCE_S
from tests.server import free_port
from tests.shared.models.stores import artefacts, open_folder

BIG = 9 << 20  # more than two download chunks


class Remote:
    """A blob store with a cache of its own, and raw access to what it holds."""

    def __init__(self, azurite: Azurite, container: ContainerClient, cache: Path) -> None:
        self.cache = cache
        self.container = container
        self.connection_string = azurite.connection_string
        self.store = self.open(1 << 30)

    def open(self, cache_disk_bytes: int) -> ModelStore:
        return open_store_url(
            self.container.url,
            connection_string=self.connection_string,
            cache_dir=self.cache,
            cache_disk_bytes=cache_disk_bytes,
        )

    def cached(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir())


@pytest.fixture
def remote(azurite: Azurite, container: ContainerClient, tmp_path: Path) -> Remote:
    return Remote(azurite, container, tmp_path / "cache")


@pytest.fixture
def folder_store(tmp_path: Path) -> ModelStore:
    (tmp_path / "store").mkdir()
    return open_folder(tmp_path / "store", tmp_path)


@pytest.fixture(params=["folder", "blob"])
def store(request: pytest.FixtureRequest) -> ModelStore:
    """Each kind of store, empty."""
    if request.param == "blob":
        remote: Remote = request.getfixturevalue("remote")
        return remote.store
    folder_store: ModelStore = request.getfixturevalue("folder_store")
    return folder_store


def test_published_models_are_found_and_fetched_whole(store: ModelStore, tmp_path: Path) -> None:
    """What publish uploads, in several chunks, fetch gives back byte for byte."""
    model = os.urandom(BIG)
    folder, manifest = artefacts(tmp_path, model=model)
    assert store.publish(folder, manifest)
    assert store.names() == ["tiny"]
    assert store.current("tiny", "cpu") == "r1"
    assert store.manifest("tiny", "r1") == manifest
    fetched, fetched_manifest = store.fetch("tiny", "r1")
    assert fetched_manifest == manifest
    assert (fetched / "model.onnx").read_bytes() == model
    assert (fetched / "tokenizer.json").read_bytes() == b"{}"


def test_publishing_again_changes_nothing_but_the_pointer(store: ModelStore, tmp_path: Path) -> None:
    """The second publish of a revision returns False, and points back at it."""
    first = artefacts(tmp_path)
    assert store.publish(*first)
    assert store.publish(*artefacts(tmp_path, revision="r2"))
    assert store.current("tiny", "cpu") == "r2"
    assert not store.publish(*first)
    assert store.current("tiny", "cpu") == "r1"


def test_a_revision_cannot_be_published_with_other_files(store: ModelStore, tmp_path: Path) -> None:
    """A revision is immutable: readers that verified it once may rely on it."""
    store.publish(*artefacts(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InvalidArtefact, match="different files"):
        store.publish(*artefacts(other, model=b"another"))


def test_publishing_refuses_files_that_are_not_the_manifests(store: ModelStore, tmp_path: Path) -> None:
    """Nothing is uploaded when the folder does not match its manifest."""
    folder, manifest = artefacts(tmp_path)
    (folder / "model.onnx").write_bytes(b"grapH")
    with pytest.raises(InvalidArtefact, match=r"model\.onnx"):
        store.publish(folder, manifest)
    assert store.names() == []


def test_each_device_has_its_own_revision(store: ModelStore, tmp_path: Path) -> None:
    """Publishing for the GPU leaves the CPU's pointer, and a device without one has no model."""
    store.publish(*artefacts(tmp_path, revision="c1"))
    with pytest.raises(UnknownModel, match="gpu"):
        store.current("tiny", "gpu")
    store.publish(*artefacts(tmp_path, revision="g1", target="gpu-fp16"))
    assert store.current("tiny", "cpu") == "c1"
    assert store.current("tiny", "gpu") == "g1"


def test_an_unknown_model_is_told_what_there_is(store: ModelStore, tmp_path: Path) -> None:
    """The message lists the names, so that a caller can pick one."""
    with pytest.raises(UnknownModel, match="none"):
        store.current("missing", "cpu")
    store.publish(*artefacts(tmp_path, name="one"))
    store.publish(*artefacts(tmp_path, name="two"))
    with pytest.raises(UnknownModel, match="one, two"):
        store.current("missing", "cpu")
    with pytest.raises(UnknownModel, match="revision"):
        store.fetch("one", "r9")


@pytest.mark.parametrize("bad", ["..", ".", "", "../x", "a/b", "a\\b", "/etc", "a\n", "a@b", "x" * 129])
def test_names_that_could_leave_the_store_are_refused(store: ModelStore, bad: str) -> None:
    """Traversal is stopped before a path or key is made."""
    with pytest.raises(UnknownModel):
        store.current(bad, "cpu")
    calls: list[Callable[[], object]] = [
        lambda: store.manifest(bad, "r1"),
        lambda: store.fetch("tiny", bad),
    ]
    for call in calls:
        with pytest.raises(InvalidInput):
            call()


def test_a_pointer_to_a_path_is_refused(folder_store: ModelStore, tmp_path: Path) -> None:
    """A pointer is data from outside: its revision is checked like a name."""
    pointer = tmp_path / "store" / "tiny" / "current"
    pointer.parent.mkdir(parents=True)
    pointer.write_bytes(encode_pointer({"cpu": "../../etc"}))
    with pytest.raises(InvalidArtefact, match="pointer"):
        folder_store.current("tiny", "cpu")


def test_a_manifest_of_another_model_is_refused(folder_store: ModelStore, tmp_path: Path) -> None:
    """A copied manifest does not pass for the revision of the folder that it lies in."""
    folder_store.publish(*artefacts(tmp_path))
    (tmp_path / "store" / "tiny" / "r1").rename(tmp_path / "store" / "tiny" / "r2")
    with pytest.raises(InvalidArtefact, match="another"):
        folder_store.fetch("tiny", "r2")


@pytest.mark.parametrize("damage", [b"grapH", b"gra", b"graph and more", None])
def test_damaged_files_in_a_folder_are_named(
    folder_store: ModelStore, tmp_path: Path, damage: bytes | None
) -> None:
    """A wrong byte, a short, a long and a missing file each fail, and publishing again mends them."""
    built = artefacts(tmp_path)
    folder_store.publish(*built)
    path = tmp_path / "store" / "tiny" / "r1" / "model.onnx"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(InvalidArtefact, match=r"model\.onnx"):
        folder_store.fetch("tiny", "r1")
    assert not folder_store.publish(*built)
    folder_store.fetch("tiny", "r1")


@pytest.mark.parametrize("damage", [b"grapH", b"gra", b"graph and more", None])
def test_damaged_blobs_are_named_and_leave_nothing_behind(
    remote: Remote, tmp_path: Path, damage: bytes | None
) -> None:
    """A wrong, short, long or missing blob fails without a half copy; publishing again mends it."""
    built = artefacts(tmp_path)
    remote.store.publish(*built)
    remote.container.delete_blob("tiny/r1/model.onnx")
    if damage is not None:
        remote.container.upload_blob("tiny/r1/model.onnx", damage)
    with pytest.raises(InvalidArtefact, match=r"model\.onnx"):
        remote.store.fetch("tiny", "r1")
    assert remote.cached() == []
    assert not remote.store.publish(*built)
    remote.store.fetch("tiny", "r1")
    assert remote.cached() == ["tiny@r1"]


def test_a_damaged_copy_is_fetched_anew(remote: Remote, tmp_path: Path) -> None:
    """Copies are verified on every fetch: a disk that lies does not serve wrong vectors."""
    remote.store.publish(*artefacts(tmp_path))
    folder, _ = remote.store.fetch("tiny", "r1")
    (folder / "model.onnx").write_bytes(b"grapH")
    folder, _ = remote.store.fetch("tiny", "r1")
    assert (folder / "model.onnx").read_bytes() == b"graph"
    assert remote.cached() == ["tiny@r1"]


def test_a_sound_copy_is_not_downloaded_again(remote: Remote, tmp_path: Path) -> None:
    """With a copy on disk, a fetch needs the manifest alone."""
    remote.store.publish(*artefacts(tmp_path))
    remote.store.fetch("tiny", "r1")
    remote.container.delete_blob("tiny/r1/model.onnx")
    folder, _ = remote.store.fetch("tiny", "r1")
    assert (folder / "model.onnx").read_bytes() == b"graph"


def test_the_least_recently_used_copy_makes_room(remote: Remote, tmp_path: Path) -> None:
    """Three models in room for two: the one not used longest is deleted, before the download."""
    for name in ("a", "b", "c"):
        remote.store.publish(*artefacts(tmp_path, name=name, model=b"x" * 1000))
    store = remote.open(2 * 1002)
    for age, name in ((30, "a"), (20, "b")):
        folder, _ = store.fetch(name, "r1")
        past = (folder / ".used").stat().st_mtime - age
        os.utime(folder / ".used", (past, past))
    store.fetch("a", "r1")
    store.fetch("c", "r1")
    assert remote.cached() == ["a@r1", "c@r1"]


def test_a_model_larger_than_the_disk_budget_evicts_nothing(remote: Remote, tmp_path: Path) -> None:
    """What can never fit is refused at once with both numbers."""
    remote.store.publish(*artefacts(tmp_path, name="small"))
    remote.store.publish(*artefacts(tmp_path, name="large", model=b"x" * 1000))
    store = remote.open(500)
    store.fetch("small", "r1")
    with pytest.raises(Misconfigured, match=r"1002.*500"):
        store.fetch("large", "r1")
    assert remote.cached() == ["small@r1"]


def test_concurrent_fetches_share_one_sound_copy(remote: Remote, tmp_path: Path) -> None:
    """Threads of one store and of another (as another process has) do not disturb each other."""
    remote.store.publish(*artefacts(tmp_path, model=os.urandom(BIG)))
    stores = [remote.store, remote.open(1 << 30)] * 4
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda store: store.fetch("tiny", "r1")[0], stores))
    assert set(folders) == {remote.cache / "tiny@r1"}
    assert remote.cached() == ["tiny@r1"]


def test_concurrent_publishers_do_not_lose_a_pointer(remote: Remote, tmp_path: Path) -> None:
    """A CPU and a GPU publisher that read the same pointer both find theirs in it afterwards."""
    objects = BlobObjects(remote.container.url, remote.connection_string)
    remote.container.upload_blob("tiny/current", b"0")
    both_have_read = threading.Barrier(2)
    tries: list[bytes | None] = []

    def add_one(data: bytes | None) -> bytes:
        tries.append(data)
        if len(tries) <= 2:
            both_have_read.wait(PATIENCE_S)
        return str(int(data or b"0") + 1).encode()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: objects.update("tiny/current", add_one), range(2)))
    assert objects.read("tiny/current") == b"2"
    assert len(tries) == 3


class Recorded(FolderObjects):
    """A folder that notes the order of writes, and can fail at one of them."""

    def __init__(self, root: Path, fail_at: str = "") -> None:
        super().__init__(root)
        self.written: list[str] = []
        self.fail_at = fail_at

    def _replace(self, key: str, fill: Callable[[Path], object]) -> None:
        if key == self.fail_at:
            raise StoreUnavailable("the connection is gone")
        super()._replace(key, fill)
        self.written.append(key)


def test_the_manifest_and_then_the_pointer_are_written_last(tmp_path: Path) -> None:
    """The manifest is the commit point, and the pointer never leads to a revision without one."""
    objects = Recorded(tmp_path / "store")
    ModelStore(objects, LocalCopies(tmp_path / "cache", 1)).publish(*artefacts(tmp_path))
    assert objects.written == [
        "tiny/r1/model.onnx",
        "tiny/r1/tokenizer.json",
        "tiny/r1/manifest.json",
        "tiny/current",
    ]


@pytest.mark.parametrize("fail_at", ["tiny/r2/tokenizer.json", "tiny/r2/manifest.json", "tiny/current"])
def test_a_publish_that_breaks_off_shows_readers_the_old_model(tmp_path: Path, fail_at: str) -> None:
    """Wherever it stops, the old revision is served, and publishing again completes the new one."""
    objects = Recorded(tmp_path / "store")
    store = ModelStore(objects, LocalCopies(tmp_path / "cache", 1))
    store.publish(*artefacts(tmp_path))
    new = artefacts(tmp_path, revision="r2", model=b"new graph")
    objects.fail_at = fail_at
    with pytest.raises(StoreUnavailable):
        store.publish(*new)
    assert store.current("tiny", "cpu") == "r1"
    store.fetch("tiny", "r1")
    objects.fail_at = ""
    store.publish(*new)
    folder, _ = store.fetch("tiny", store.current("tiny", "cpu"))
    assert (folder / "model.onnx").read_bytes() == b"new graph"
    assert not list((tmp_path / "store").rglob(".partial-*"))


class FullDisk(FolderObjects):
    """Remote objects whose download finds no space left."""

    def local(self) -> None:
        return None

    def download(self, key: str, path: Path, file: File) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_disk_is_unavailable_and_leaves_no_half_file(tmp_path: Path) -> None:
    """The message says what is wrong without a path, and the half file is gone."""
    open_folder(tmp_path / "store", tmp_path).publish(*artefacts(tmp_path))
    store = ModelStore(FullDisk(tmp_path / "store"), LocalCopies(tmp_path / "cache", 1 << 20))
    with pytest.raises(Unavailable, match="no disk space") as caught:
        store.fetch("tiny", "r1")
    assert str(tmp_path) not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_dead_store_is_unavailable(azurite: Azurite, tmp_path: Path) -> None:
    """Nobody listens on the port: every call says StoreUnavailable, after bounded retries."""
    port = free_port()
    store = open_store_url(
        f"http://127.0.0.1:{port}/devstoreaccount1/models",
        connection_string=azurite.connection_string.replace(str(azurite.port), str(port)),
        cache_dir=tmp_path,
        cache_disk_bytes=1,
    )
    with pytest.raises(StoreUnavailable, match="did not answer"):
        store.current("tiny", "cpu")


def test_missing_credentials_are_called_that_with_what_would_be_right() -> None:
    """Nobody was asked, so nobody refused: the operator has to give some."""
    with (
        pytest.raises(StoreUnavailable, match=r"no credentials here.*az login.*identity.*BLITZ_STO"),
        azure_errors(),
    ):
        raise ClientAuthenticationError("DefaultAzureCredential failed, and why at length")


def test_a_missing_container_is_not_an_unknown_model(azurite: Azurite, tmp_path: Path) -> None:
    """A wrong store URL is reported as such, not as a 404 for the model."""
    store = open_store_url(
        f"http://127.0.0.1:{azurite.port}/devstoreaccount1/nothing-here",
        connection_string=azurite.connection_string,
        cache_dir=tmp_path,
        cache_disk_bytes=1,
    )
    for call in (store.names, lambda: store.current("tiny", "cpu")):
        with pytest.raises(StoreUnavailable, match="container"):
            call()


@pytest.mark.parametrize(
    ("url", "connection_string"),
    [
        ("models", ""),
        ("file://", ""),
        ("http://127.0.0.1:1/devstoreaccount1/models", ""),
        ("https://one.blob.core.windows.net/models", "nonsense"),
        (
            "https://one.blob.core.windows.net/models",
            "DefaultEndpointsProtocol=https;AccountName=two;AccountKey=AAAA;EndpointSuffix=core.windows.net",
        ),
    ],
)
def test_a_store_that_cannot_be_meant_is_misconfigured(
    tmp_path: Path, url: str, connection_string: str
) -> None:
    """No scheme, no folder, no key for http, a broken key, another account's key: all fail at open."""
    with pytest.raises(Misconfigured):
        open_store_url(url, connection_string=connection_string, cache_dir=tmp_path, cache_disk_bytes=1)


def test_a_relative_folder_is_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default, file://.blitz/models, is relative to the working directory."""
    open_folder(tmp_path / "sub" / "models", tmp_path).publish(*artefacts(tmp_path))
    monkeypatch.chdir(tmp_path)
    store = open_store_url("file://sub/models", cache_dir=tmp_path, cache_disk_bytes=1)
    assert store.names() == ["tiny"]
    store.fetch("tiny", "r1")


def test_a_folder_that_cannot_be_read_is_unavailable(tmp_path: Path) -> None:
    """An operating system's error becomes ours, without its path."""
    (tmp_path / "store" / "tiny" / "current").mkdir(parents=True)
    with pytest.raises(BlitzError) as caught:
        open_folder(tmp_path / "store", tmp_path).current("tiny", "cpu")
    assert isinstance(caught.value, StoreUnavailable)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_folder_that_is_away_is_no_empty_store(tmp_path: Path, instead: str) -> None:
    """Of a disk that is not there nobody knows what it holds; publishing makes the folder."""
    store = open_folder(tmp_path / "deep" / "store", tmp_path)
    store.publish(*artefacts(tmp_path))
    (tmp_path / "deep" / "store").rename(tmp_path / "away")
    if instead == "a file":
        (tmp_path / "deep" / "store").touch()
    for ask in (
        store.names,
        lambda: store.current("tiny", "cpu"),
        lambda: store.current("unknown", "cpu"),
        lambda: store.fetch("tiny", "r1"),
    ):
        with pytest.raises(StoreUnavailable):
            ask()
    (tmp_path / "deep" / "store").unlink(missing_ok=True)
    (tmp_path / "away").rename(tmp_path / "deep" / "store")
    assert store.names() == ["tiny"]
    store.fetch("tiny", "r1")


def test_a_folder_store_does_not_import_azure() -> None:
    """Startup of a process without blobs does not pay for the SDK."""
    code = (
        "import sys, pathlib; from shared.models.store import open_store_url;"
        "open_store_url('file://.', cache_dir=pathlib.Path('.'), cache_disk_bytes=1).names();"
        "sys.exit(any(name.startswith('azure') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
