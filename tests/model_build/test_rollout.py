"""Which revision is served, and going back to another, over a folder, Azurite and a running service."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from model_build import rollout
from shared.cards import Share
from shared.models.manifest import File
from shared.models.store import ModelStore, open_store_url
from tests.azurite import Azurite, running_azurite
from tests.patience import wait_until
from tests.server import running_service
from tests.tiny import Tiny, manifest_of

MMM: dict[str, Any] = {"revision": "mmm", "beside": "aaa"}
DATA = {"model.onnx": b"graph", "tokenizer.json": b"{}"}


@dataclass
class Place:
    """A store, its URL, and the variables that the command needs for it."""

    url: str
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> ModelStore:
        return open_store_url(
            self.url,
            connection_string=self.environ.get("BLITZ_STORAGE_CONNECTION_STRING", ""),
            cache_dir=self.folder / "cache",
            cache_disk_bytes=1 << 30,
        )

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(rollout.app, [*arguments, "--store", self.url], env=self.environ)

    def publish(self, revision: str, created: int, target: str = "cpu-int8", **more: object) -> None:
        built = self.folder / revision
        built.mkdir()
        for name, data in DATA.items():
            (built / name).write_bytes(data)
        files = tuple(File(n, len(data), hashlib.sha256(data).hexdigest()) for n, data in DATA.items())
        fields: dict[str, object] = {
            "revision": revision,
            "target": target,
            "files": files,
            "created": created,
            **more,
        }
        self.store.publish(built, manifest_of("tiny", **fields))


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with running_azurite() as azurite:
        yield azurite


@pytest.fixture(params=["folder", "blob"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Three revisions for the CPU, the newest served, and one for the GPU."""
    if request.param == "folder":
        yield _in_folder(tmp_path)
        return
    azurite: Azurite = request.getfixturevalue("azurite")
    with azurite.container() as container:
        environ = {"BLITZ_STORAGE_CONNECTION_STRING": azurite.connection_string}
        place = Place(container.url, tmp_path, environ)
        _fill(place)
        yield place


def _in_folder(tmp_path: Path) -> Place:
    place = Place(f"file://{tmp_path / 'store'}", tmp_path)
    _fill(place)
    return place


def _fill(place: Place) -> None:
    for revision, created in (("zzz", 86_400), ("mmm", 2 * 86_400), ("aaa", 3 * 86_400)):
        place.publish(revision, created)
    place.publish("ggg", 86_400, "gpu-fp16")


def test_revisions_are_listed_newest_first_with_what_is_served(place: Place) -> None:
    """By when they were built, whatever their names; each with its target and quality."""
    listed = place.run("list", "tiny")
    assert (listed.exit_code, listed.stdout.splitlines()) == (
        0,
        [
            "* aaa  cpu-int8  built 1970-01-04 00:00 UTC  not measured",
            "  mmm  cpu-int8  built 1970-01-03 00:00 UTC  not measured",
            "  zzz  cpu-int8  built 1970-01-02 00:00 UTC  not measured",
            "* ggg  gpu-fp16  built 1970-01-02 00:00 UTC  not measured",
        ],
    )


def test_going_back_serves_the_one_before(place: Place) -> None:
    """Step by step to the oldest, where there is nothing to go back to; the GPU's stays."""
    for revision in ("mmm", "zzz"):
        assert place.run("back", "tiny", "cpu").exit_code == 0
        assert place.store.revisions("tiny") == {"cpu": revision, "gpu": "ggg"}
    ended = place.run("back", "tiny", "cpu")
    assert ended.exit_code == 2
    assert "no revision of tiny for cpu is older than zzz" in ended.stderr
    assert place.store.revisions("tiny") == {"cpu": "zzz", "gpu": "ggg"}


def test_any_revision_can_be_served(place: Place) -> None:
    """On the device that it was built for; twice is no error."""
    assert place.run("use", "tiny", "zzz").stdout == "tiny zzz (cpu): served, instead of aaa\n"
    assert place.run("use", "tiny", "zzz").stdout == "tiny zzz (cpu): nothing to do: served already\n"
    assert place.store.revisions("tiny") == {"cpu": "zzz", "gpu": "ggg"}


@pytest.mark.parametrize(
    ("options", "share", "told"),
    [
        (["--percent", "10"], Share(**MMM, percent=10), "10 % of callers"),
        (
            ["--percent", "5", "--by", "request"],
            Share(**MMM, percent=5, by="request"),
            "5 % of requests",
        ),
        (["--key", "a", "--key", "b"], Share(**MMM, callers=("a", "b")), "the callers a, b"),
        (
            ["--percent", "1", "--key", "a"],
            Share(**MMM, percent=1, callers=("a",)),
            "1 % of callers and the callers a",
        ),
        # Nothing differs, so that it is not incompatible because somebody says so.
        (["--key", "a", "--incompatible"], Share(**MMM, callers=("a",)), "the callers a"),
    ],
)
def test_a_revision_is_staged_for_a_share(
    options: list[str], share: Share, told: str, tmp_path: Path
) -> None:
    """Both are shown, the list says for whom, and what is served is served as before."""
    place = _in_folder(tmp_path)
    staged = place.run("stage", "tiny", "mmm", *options)
    assert (staged.exit_code, staged.stderr) == (0, "")
    assert ["revision", "aaa", "mmm"] in [line.split() for line in staged.stdout.splitlines()]
    assert staged.stdout.endswith(f"tiny mmm (cpu): staged for {told}\n")
    assert place.store.stages.of("tiny") == {"cpu": share}
    assert f"+ mmm  cpu-int8  built 1970-01-03 00:00 UTC  not measured  staged for {told}" in (
        place.run("list", "tiny").stdout
    )
    assert place.store.revisions("tiny") == {"cpu": "aaa", "gpu": "ggg"}


def test_a_staged_revision_is_promoted_or_abandoned(place: Place) -> None:
    """Over every kind of store; afterwards nothing is staged, and there is a way back."""
    assert place.run("stage", "tiny", "mmm", "--percent", "10").exit_code == 0
    assert place.run("stage", "tiny", "zzz", "--percent", "20").exit_code == 0  # instead
    assert place.run("abandon", "tiny", "cpu").stdout == (
        "tiny zzz (cpu): not staged any more; aaa goes on\n"
    )
    assert place.store.stages.of("tiny") == {}
    assert place.run("stage", "tiny", "mmm", "--key", "a").exit_code == 0
    assert place.run("promote", "tiny", "cpu").stdout == "tiny mmm (cpu): served, instead of aaa\n"
    assert place.store.revisions("tiny") == {"cpu": "mmm", "gpu": "ggg"}
    assert "staged" not in place.run("list", "tiny").stdout
    for command in ("promote", "abandon"):
        refused = place.run(command, "tiny", "cpu")
        assert (refused.exit_code, refused.stderr) == (
            2,
            "error: nothing of tiny is staged for cpu\n",
        )
    assert place.run("use", "tiny", "aaa").exit_code == 0
    assert place.store.stages.of("tiny") == {}


def test_an_incompatible_one_is_for_named_callers_alone(tmp_path: Path) -> None:
    """They know; a percentage of callers would find vectors of two spaces in their index."""
    place = _in_folder(tmp_path)
    place.publish("new", 4 * 86_400, dimensions=3, prompts={})
    assert place.run("back", "tiny", "cpu").exit_code == 0
    for options, reason in (
        (["--percent", "10"], "new differs from aaa in dimensions, prompts"),
        (["--key", "a"], "new differs from aaa in dimensions, prompts"),
        (["--percent", "10", "--incompatible"], "--incompatible is for --key alone"),
    ):
        refused = place.run("stage", "tiny", "new", *options)
        assert refused.exit_code == 2
        assert reason in refused.stderr
        assert ["dimensions", "2", "3"] in [line.split() for line in refused.stdout.splitlines()]
    assert place.store.stages.of("tiny") == {}
    assert place.run("stage", "tiny", "new", "--key", "a", "--incompatible").exit_code == 0
    assert not place.store.stages.of("tiny")["cpu"].compatible


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["stage", "tiny", "mmm"], "say for whom: --percent or --key"),
        (["stage", "tiny", "mmm", "--key", "a b"], "'a b' is no key's name"),
        (["stage", "tiny", "aaa", "--percent", "1"], "aaa of tiny is what is served"),
        (["stage", "tiny", "nope", "--percent", "1"], "the model tiny has no revision nope"),
        (["compare", "tiny", "nope"], "the model tiny has no revision nope"),
        (["promote", "tiny", "cpu"], "nothing of tiny is staged for cpu"),
        (["abandon", "tiny", "tpu"], "tpu is no device: cpu or gpu is right"),
        (["use", "tiny", "nope"], "the model tiny has no revision nope"),
        (["use", "other", "aaa"], "there is no model 'other'; there are: tiny"),
        (["use", "tiny", "../aaa"], "a model name is 1 to 128"),
        (["back", "tiny", "tpu"], "tpu is no device: cpu or gpu is right"),
        (["back", "tiny", "gpu"], "no revision of tiny for gpu is older than ggg"),
        (["list", "other"], "there is no model 'other'; there are: tiny"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    arguments: list[str], reason: str, place: Place
) -> None:
    """Exit code 2 and a line that says why."""
    refused = place.run(*arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert reason in refused.stderr
    assert place.store.revisions("tiny") == {"cpu": "aaa", "gpu": "ggg"}


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_revision_that_is_not_whole_is_not_served(damage: str, tmp_path: Path) -> None:
    """It would not load; the one that is served goes on."""
    place = _in_folder(tmp_path)
    path = tmp_path / "store/tiny/zzz/model.onnx"
    path.unlink()
    if damage == "changed":
        path.write_bytes(b"grapH")
    refused = place.run("use", "tiny", "zzz")
    assert refused.exit_code == 2
    assert "model.onnx is missing or damaged" in refused.stderr
    assert place.store.current("tiny", "cpu") == "aaa"


def test_a_running_service_takes_it_up(tmp_path: Path) -> None:
    """Without a restart: it answers with the old revision, then with the one that is gone back to."""
    place = Place(f"file://{tmp_path / 'store'}", tmp_path)
    # Its two CPU targets are its two revisions.
    Tiny("a").publish(place.store, "cpu-fp32", "cpu-int8")
    with running_service(place.url, environ={"BLITZ_REFRESH_S": "0.1"}) as url:
        assert _served(url) == "cpu-int8"
        assert place.run("use", "a", "cpu-fp32").exit_code == 0
        wait_until(lambda: _served(url) == "cpu-fp32")


def _served(url: str) -> str:
    """The revision in memory after a request for the model."""
    body = json.dumps({"inputs": "w1", "model": "a"}).encode()
    request = urllib.request.Request(f"{url}/embed", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        response.read()
    with urllib.request.urlopen(f"{url}/ready") as response:
        (state,) = json.load(response)["models"]
    return str(state["revision"])
