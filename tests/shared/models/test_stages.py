"""What is staged of a model: its document, and when it counts, over a folder and Azurite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.cards import Share
from shared.errors import InvalidArtefact, UnknownModel
from shared.models.catalogue import Catalogue
from shared.models.stages import decode_stages, encode_stages
from shared.models.store import ModelStore, open_store_url
from tests.azurite import Azurite, running_azurite
from tests.shared.models.stores import artefacts, open_folder

pytestmark = pytest.mark.anyio

SHARE = Share(revision="r2", beside="r1", percent=10, callers=("search",))


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with running_azurite() as azurite:
        yield azurite


@pytest.fixture(params=["folder", "blob"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModelStore]:
    """r1 is served; r2 is there, and so is g1 for the GPU, which serves it."""
    if request.param == "folder":
        yield _filled(open_folder(tmp_path / "store", tmp_path), tmp_path)
        return
    azurite: Azurite = request.getfixturevalue("azurite")
    with azurite.container() as container:
        store = open_store_url(
            container.url,
            connection_string=azurite.connection_string,
            cache_dir=tmp_path / "cache",
            cache_disk_bytes=1 << 30,
        )
        yield _filled(store, tmp_path)


def _filled(store: ModelStore, tmp_path: Path) -> ModelStore:
    store.publish(*artefacts(tmp_path, revision="r1"))
    store.publish(*artefacts(tmp_path, revision="r2"), serve=False)
    store.publish(*artefacts(tmp_path, revision="g1", target="gpu-fp16"))
    return store


def test_what_is_held_is_published_and_not_served(store: ModelStore) -> None:
    """It can be pinned, staged and served; until then the others go on."""
    assert store.revisions("tiny") == {"cpu": "r1", "gpu": "g1"}
    assert {each.revision for each in store.published("tiny")} == {"r1", "r2", "g1"}


async def test_a_staged_revision_is_on_the_card_of_its_device(store: ModelStore) -> None:
    """With its own numbers; the pointer is what it was, and the other device has none."""
    store.stage("tiny", SHARE)
    assert store.revisions("tiny") == {"cpu": "r1", "gpu": "g1"}
    cpu, gpu = await Catalogue(store, ("cpu", "gpu")).cards_of("tiny")
    assert (cpu.revision, gpu.revision, gpu.staged) == ("r1", "g1", None)
    assert cpu.staged is not None
    assert (cpu.staged.card.revision, cpu.staged.share) == ("r2", SHARE)
    assert cpu.of_revision("r2") == cpu.staged.card
    assert cpu.of_revision("r1") == cpu


async def test_what_was_staged_beside_another_one_does_not_count(tmp_path: Path) -> None:
    """As when the pointer was moved by who does not know of it."""
    store = _filled(open_folder(tmp_path / "store", tmp_path), tmp_path)
    store.stages.put("tiny", "cpu", Share(revision="r2", beside="r0", percent=100))
    (card,) = await Catalogue(store, ("cpu",)).cards_of("tiny")
    assert (card.revision, card.staged) == ("r1", None)


@pytest.mark.parametrize(
    ("moves", "staged"),
    [
        ([], SHARE),
        (["r1"], SHARE),  # published or used again: nothing has moved
        (["r2"], Share(revision="r2", beside="r2", percent=10, callers=("search",))),
        (["r2", "r1"], None),  # promoted and gone back
        (["r3"], None),
        (["r3", "r1"], None),
        (["g1"], SHARE),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_the_pointer_ends_or_promotes_what_is_staged(
    moves: list[str], staged: Share | None, store: ModelStore, tmp_path: Path
) -> None:
    """Whoever moves it: a rollout, or a build that is published."""
    store.publish(*artefacts(tmp_path, revision="r3"), serve=False)
    store.stage("tiny", SHARE)
    for revision in moves:
        store.point("tiny", revision)
    assert store.stages.of("tiny").get("cpu") == staged


def test_ending_a_stage_leaves_the_other_device_alone(store: ModelStore) -> None:
    """And what was never staged makes no document."""
    assert store.stages.end("tiny", "cpu") is None
    assert store.stages.of("tiny") == {}
    gpu = Share(revision="g1", beside="g0", percent=5)
    store.stages.put("tiny", "gpu", gpu)
    store.stage("tiny", SHARE)
    assert store.stages.end("tiny", "cpu") == SHARE
    assert store.stages.of("tiny") == {"gpu": gpu}


def test_a_revision_that_is_not_there_or_not_whole_is_not_staged(
    store: ModelStore, tmp_path: Path
) -> None:
    """As it would not be served."""
    with pytest.raises(UnknownModel, match="has no revision r9"):
        store.stage("tiny", Share(revision="r9", beside="r1", percent=1))
    root = tmp_path / "store/tiny/r2"
    if root.exists():
        (root / "model.onnx").write_bytes(b"grapH")
        with pytest.raises(InvalidArtefact, match=r"model\.onnx is missing or damaged"):
            store.stage("tiny", SHARE)
    assert store.stages.of("tiny") == {}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"tpu": {"revision": "r2", "beside": "r1"}}',
        b'{"cpu": {"revision": "r2"}}',
        b'{"cpu": {"revision": "r2", "beside": "r1", "percent": 101}}',
        b'{"cpu": {"revision": "r2", "beside": "r1", "percent": -1}}',
        b'{"cpu": {"revision": "r2", "beside": "r1", "by": "moon"}}',
        b'{"cpu": {"revision": "r2", "beside": "r1", "more": 1}}',
        b'{"cpu": {"revision": "../r2", "beside": "r1"}}',
        b'{"cpu": {"revision": "r2", "beside": "r1", "percent": 100}}',  # r2 is replaced by a GPU's
    ],
)
async def test_a_document_that_is_wrong_stages_nothing(
    document: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The current revision is listed as ever, the log says why, and publishing goes on."""
    store = _filled(open_folder(tmp_path / "store", tmp_path), tmp_path)
    manifest = tmp_path / "store/tiny/r2/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"cpu-int8", b"gpu-fp16"))
    (tmp_path / "store/tiny/staged").write_bytes(document)
    (card,) = await Catalogue(store, ("cpu",)).cards_of("tiny")
    assert (card.revision, card.staged) == ("r1", None)
    assert "staged" in caplog.text
    assert store.point("tiny", "r1") == "r1"
    store.publish(*artefacts(tmp_path, revision="r3"))
    assert store.current("tiny", "cpu") == "r3"


def test_the_document_has_its_form() -> None:
    """Sorted JSON, without what is at its default; read back it is the same."""
    written = encode_stages({"cpu": SHARE})
    told: Any = {"cpu": {"revision": "r2", "beside": "r1", "percent": 10, "callers": ["search"]}}
    assert json.loads(written) == told
    assert written.endswith(b"}\n")
    assert decode_stages(written) == {"cpu": SHARE}
    assert decode_stages(None) == {}
