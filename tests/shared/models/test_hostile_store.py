"""What somebody who may write to a model store, or to this machine's temporary folder, can do to us.

Each case is asked as a server asks: what is there, which revision, its manifest, its files. The answer
comes at once, in an error of ours, and a model beside it is served all the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from azure.storage.blob import ContainerClient
from onnx import TensorProto, helper

from shared.engines.onnx import OnnxEngine
from shared.errors import InvalidArtefact, Misconfigured, UnknownModel
from shared.models import objects
from shared.models.manifest import encode_pointer
from shared.models.objects import MAX_OBJECT_BYTES
from shared.models.store import ModelStore, open_store_url
from tests.azurite import Azurite
from tests.server import ROOT
from tests.shared.models.stores import artefacts, open_folder
from tests.tiny import manifest_of

IRREGULAR: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a link to a file": lambda path: path.symlink_to(_moved(path)),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to a FIFO": lambda path: path.symlink_to(_fifo(path)),
    "a link to itself": lambda path: path.symlink_to(path.name),
}
"""Each puts one where a file was: a link to a file leads to the very content that was there."""


def _moved(path: Path) -> Path:
    outside = path.parents[3] / "outside"
    outside.mkdir(exist_ok=True)
    outside.joinpath(path.name).write_bytes(CONTENT.get(path.name, b""))
    return outside / path.name


def _fifo(path: Path) -> Path:
    os.mkfifo(path.parent / "pipe")
    return path.parent / "pipe"


CONTENT = {"current": encode_pointer({"cpu": "r1"}), "model.onnx": b"graph", "tokenizer.json": b"{}"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path, tmp_path: Path) -> ModelStore:
    """A folder with two models, good and bad, as yet the same."""
    root.mkdir()
    store = open_folder(root, tmp_path)
    for name in ("good", "bad"):
        store.publish(*artefacts(tmp_path, name=name))
    return store


def serve(store: ModelStore, name: str) -> None:
    """What a server does until it has a model's files."""
    assert name in store.names()
    store.fetch(name, store.current(name, "cpu"))


@pytest.mark.parametrize("file", ["current", "r1/manifest.json", "r1/model.onnx", "r1/tokenizer.json"])
@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_file_is_named_and_not_read(
    kind: str, file: str, store: ModelStore, root: Path
) -> None:
    """Neither waited for nor followed, wherever it lies; the model beside it is served."""
    path = root / "bad" / file
    path.unlink()
    IRREGULAR[kind](path)
    with pytest.raises(InvalidArtefact, match=r"no regular file|symbolic link") as refusal:
        serve(store, "bad")
    assert path.name in refusal.value.message
    assert str(root) not in refusal.value.message
    serve(store, "good")


@pytest.mark.parametrize("folder", ["bad", "bad/r1"])
def test_a_folder_in_the_store_that_is_a_link_is_not_followed(
    folder: str, store: ModelStore, root: Path, tmp_path: Path
) -> None:
    """Neither to read nor to publish, though all that belongs there is where it leads to."""
    (root / folder).rename(tmp_path / "elsewhere")
    (root / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArtefact, match="symbolic link"):
        serve(store, "bad")
    before = sorted(tmp_path.joinpath("elsewhere").rglob("*"))
    (tmp_path / "new").mkdir()
    with pytest.raises(InvalidArtefact, match="symbolic link"):
        store.publish(*artefacts(tmp_path / "new", name="bad", model=b"other"))
    assert sorted(tmp_path.joinpath("elsewhere").rglob("*")) == before
    serve(store, "good")


def test_the_store_itself_may_be_behind_a_link(store: ModelStore, root: Path, tmp_path: Path) -> None:
    """The operator named it."""
    root.rename(tmp_path / "disk")
    root.symlink_to(tmp_path / "disk")
    serve(store, "bad")
    store.publish(*artefacts(tmp_path, name="third"))
    serve(store, "third")


def test_a_link_where_a_file_is_published_is_replaced_and_not_written_through(
    store: ModelStore, root: Path, tmp_path: Path
) -> None:
    """Publishing again mends the store and leaves the file that the link led to."""
    (tmp_path / "precious").write_bytes(b"keep")
    for file in ("current", "r1/model.onnx"):
        (root / "bad" / file).unlink()
    (root / "bad" / "r1" / "model.onnx").symlink_to(tmp_path / "precious")
    (tmp_path / "again").mkdir()
    store.publish(*artefacts(tmp_path / "again", name="bad"))
    assert (tmp_path / "precious").read_bytes() == b"keep"
    serve(store, "bad")


LARGE = MAX_OBJECT_BYTES + 1
SPOILT: dict[str, tuple[str, bytes, str]] = {
    "a pointer too large": ("current", b" " * LARGE, "more than 262144 bytes"),
    "a manifest too large": ("r1/manifest.json", b" " * LARGE, "more than 262144 bytes"),
    "an empty pointer": ("current", b"", "pointer"),
    "a pointer that is no JSON": ("current", b"\xff\xfe", "pointer"),
    "a pointer nested deep": ("current", b"[" * 100_000, "pointer"),
    "a pointer to a path": ("current", b'{"cpu": "../../etc"}', "no valid revision"),
    "a pointer to NUL": ("current", b'{"cpu": "a\\u0000"}', "no valid revision"),
    "an empty manifest": ("r1/manifest.json", b"", "manifest"),
    "a manifest nested deep": ("r1/manifest.json", b'{"files":' + b"[" * 100_000, "manifest"),
    "a manifest that is a list": ("r1/manifest.json", b"[]", "manifest"),
    "a file too long": ("r1/model.onnx", b"graph and more", "size"),
    "another file": ("r1/model.onnx", b"grapH", "sha256"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_content_is_refused(case: str, store: ModelStore, root: Path) -> None:
    """Too large, too deep, of another kind: one sentence, and the model beside it is served."""
    file, data, message = SPOILT[case]
    (root / "bad" / file).write_bytes(data)
    with pytest.raises(InvalidArtefact, match=message):
        serve(store, "bad")
    serve(store, "good")


@pytest.mark.parametrize("file", ["current", "r1/manifest.json"])
def test_a_terabyte_is_refused_by_its_size(file: str, store: ModelStore, root: Path) -> None:
    """It takes no disk, and would take all memory."""
    with (root / "bad" / file).open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(InvalidArtefact, match="more than 262144 bytes"):
        serve(store, "bad")


@pytest.mark.parametrize(
    ("limit", "message"), [("MAX_MODELS", "more than 5 models"), ("MAX_LISTED", "more than 5 entries")]
)
def test_a_folder_of_very_many_names_is_refused(
    limit: str, message: str, store: ModelStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing stops at the limit, and does not read on to count them."""
    monkeypatch.setattr(objects, limit, 5)
    for n in range(3):
        (root / f"m{n}").mkdir()
        (root / f"m{n}" / "current").touch()
    assert len(store.names()) == 5
    for n in range(3, 100):
        (root / f"m{n}").mkdir()
        (root / f"m{n}" / "current").touch()
    with pytest.raises(Misconfigured, match=message):
        store.names()


def test_an_unknown_model_is_told_fifty_names_at_most(store: ModelStore, root: Path) -> None:
    """A caller may ask for any name: what it is answered does not grow with the store."""
    for n in range(100):
        (root / f"m{n}").mkdir()
        (root / f"m{n}" / "current").touch()
    with pytest.raises(UnknownModel, match=r"and 52 more$") as refusal:
        store.current("missing", "cpu")
    assert refusal.value.message.count(",") == 49


@pytest.mark.parametrize("place", ["../secret.bin", "{outside}", "link.bin", "/dev/zero", "pipe"])
def test_a_graph_cannot_name_weights_outside_its_folder(place: str, tmp_path: Path) -> None:
    """ONNX lets a graph keep numbers in other files, whose content would come back as vectors."""
    secret, folder = tmp_path / "secret.bin", tmp_path / "model"
    folder.mkdir()
    secret.write_bytes(np.arange(64, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    table = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=(4, 16))
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value=place.format(outside=secret))
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "input_ids"], ["rows"])],
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "T"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["B", "T", 16])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidArtefact, match="not a graph this version runs"):
        OnnxEngine(folder, manifest_of("m"))


@pytest.mark.parametrize("kind", ["a FIFO", "a link to /dev/zero"])
def test_a_service_starts_beside_a_model_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    """The store's only model has such a pointer: the start ends with a sentence and exit code 2."""
    (tmp_path / "store" / "bad").mkdir(parents=True)
    IRREGULAR[kind](tmp_path / "store" / "bad" / "current")
    command = [sys.executable, "-m", "functions.local", "--port", "0"]
    ended = subprocess.run(
        [*command, "--model-store", f"file://{tmp_path / 'store'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "model bad is not listed: bad/current of the model store" in ended.stderr
    assert "holds no model" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def blobs(azurite: Azurite, container: ContainerClient, tmp_path: Path) -> ModelStore:
    """A container with two models, good and bad, as yet the same."""
    store = open_container(container, azurite, tmp_path / "cache")
    for name in ("good", "bad"):
        store.publish(*artefacts(tmp_path, name=name))
    return store


def open_container(container: ContainerClient, azurite: Azurite, cache: Path) -> ModelStore:
    return open_store_url(
        container.url,
        connection_string=azurite.connection_string,
        cache_dir=cache,
        cache_disk_bytes=1 << 20,
    )


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_blobs_are_refused(case: str, blobs: ModelStore, container: ContainerClient) -> None:
    """As in a folder: sizes are known before anything is read."""
    file, data, message = SPOILT[case]
    container.upload_blob(f"bad/{file}", data, overwrite=True)
    with pytest.raises(InvalidArtefact, match=message):
        serve(blobs, "bad")
    serve(blobs, "good")


def test_blobs_of_odd_names_are_no_models(
    blobs: ModelStore, container: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backslashes, spaces, percent signs, other depths; and very many are refused."""
    for name in ("a\\b", "..\\x", "a b", "%2e%2e", "ä", "x/y", "current"):
        container.upload_blob(f"{name}/current", b"{}")
    assert blobs.names() == ["bad", "current", "good"]
    monkeypatch.setattr(objects, "MAX_LISTED", 5)
    with pytest.raises(Misconfigured, match="more than 5 blobs"):
        blobs.names()


def _of_another_user(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(folder, 12345, 12345)


def _for_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o1777)


def _for_the_group(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


def _link(folder: Path) -> None:
    (folder.parent / "target").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "target")


@pytest.mark.parametrize("plant", [_of_another_user, _for_all, _for_the_group, _link, Path.touch])
def test_a_cache_that_another_user_could_fill_is_refused(
    plant: Callable[[Path], None],
    blobs: ModelStore,
    azurite: Azurite,
    container: ContainerClient,
    tmp_path: Path,
) -> None:
    """At the start where it is there already, and at a download where it came between."""
    cache = tmp_path / "cache"
    assert not cache.exists()
    plant(cache)
    with pytest.raises(Misconfigured, match="BLITZ_CACHE_DIR"):
        serve(blobs, "good")
    with pytest.raises(Misconfigured, match="BLITZ_CACHE_DIR"):
        open_container(container, azurite, cache)


def test_the_cache_is_made_for_its_user_alone(blobs: ModelStore, tmp_path: Path) -> None:
    """Whatever the process's umask is."""
    before = os.umask(0)
    try:
        serve(blobs, "good")
    finally:
        os.umask(before)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
