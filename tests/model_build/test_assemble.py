"""The sample model assembled without torch, against the one that torch builds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packaging.utils import canonicalize_name
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner, Result

from model_build import assemble
from model_build.describe import CARD_FILE, describe, file_of, revision_of, with_int8_ranges
from model_build.fp16 import export_fp16
from model_build.locate import locate
from model_build.recipe import decode_recipe
from model_build.samples import sample_texts
from model_build.serving import Served
from model_build.source import inspect_source
from shared.models.manifest import Manifest, decode_manifest
from tests.model_build.command import Run

ROOT = Path(__file__).parents[2]
MODEL = "all-MiniLM-L6-v2"
STALE = (
    "the build gives other files than the recipe: python -m model_build all-MiniLM-L6-v2 --target "
    "TARGET --recipe model_build/recipes/all-MiniLM-L6-v2.TARGET.json writes it anew"
)


def assembled(store: Path, target: str = "cpu-int8") -> tuple[Path, Manifest]:
    """The folder of a new revision in `store`, by the command itself."""
    command = [sys.executable, "-m", "model_build.assemble", MODEL, "--target", target]
    ran = subprocess.run(
        [*command, "--push", f"file://{store}"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "byte for byte the build made with torch" in ran.stdout
    (folder,) = (store / MODEL).glob("*/")
    return folder, decode_manifest((folder / "manifest.json").read_bytes())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    return assembled(tmp_path_factory.mktemp("assembled"))


def test_a_build_for_the_cpu_gives_the_same_bytes(
    run: Run, published: tuple[Path, Manifest], tmp_path: Path
) -> None:
    """Every file, the pointer and all of the manifest that is content: torch's build is the truth."""
    folder, manifest = published
    ran = run(MODEL, "--target", "cpu-int8", "--push", f"file://{tmp_path}")
    assert ran.returncode == 0, ran.stderr
    (truth,) = (tmp_path / MODEL).glob("*/")
    built = decode_manifest((truth / "manifest.json").read_bytes())
    assert manifest.files == built.files, STALE
    assert manifest.revision == built.revision, STALE
    for file in built.files:
        assert (folder / file.name).read_bytes() == (truth / file.name).read_bytes(), file.name
    assert (folder.parent / "current").read_bytes() == (truth.parent / "current").read_bytes()


def test_a_build_for_the_gpu_gives_the_same_bytes(tmp_path: Path) -> None:
    """It is built here as far as the content goes, without the minutes of measuring."""
    located, truth = locate(MODEL), tmp_path / "truth"
    truth.mkdir()
    source = inspect_source(located.folder)
    export_fp16(source, truth)
    folder, manifest = assembled(tmp_path / "store", "gpu-fp16")
    described = describe(truth, source, located.source, MODEL, "gpu-fp16")
    built = with_int8_ranges(described, manifest.int8_ranges)
    assert manifest.revision == built.revision, STALE
    for file in built.files:
        if file.name == CARD_FILE:  # it says what was measured
            continue
        assert (folder / file.name).read_bytes() == (truth / file.name).read_bytes(), file.name


@pytest.mark.parametrize("path", sorted(assemble.RECIPES.iterdir()), ids=lambda path: str(path.name))
def test_a_recipe_pins_what_it_makes(path: Path) -> None:
    """Its name is its model's and target's, the revision is that of the content, and it was measured."""
    recipe = decode_recipe(path.read_bytes())
    manifest = recipe.manifest
    assert path.name == f"{manifest.name}.{manifest.target}.json"
    assert manifest.revision == revision_of(manifest)
    assert recipe.skeletons.keys() == {file.name for file in manifest.files}
    assert manifest.quality is not None
    assert manifest.quality.cosine_mean is not None
    assert manifest.quality.cosine_mean > 0.99
    source = locate(manifest.name)
    assert manifest.source == source.source
    assert recipe.originals == tuple(file_of(source.folder / each.name) for each in recipe.originals)


def test_its_vectors_are_those_of_sentence_transformers(published: tuple[Path, Manifest]) -> None:
    """As close as the manifest says, though that was measured elsewhere."""
    folder, manifest = published
    texts = sample_texts()[::8]
    served = Served(folder, manifest)
    ours = served.embed(texts, None)
    served.close()
    original = SentenceTransformer(str(locate(MODEL).folder), device="cpu")
    cosines = (ours * original.encode(texts, normalize_embeddings=True)).sum(axis=1)
    assert manifest.quality is not None
    assert float(cosines.mean()) == pytest.approx(manifest.quality.cosine_mean, abs=2e-4)
    assert float(cosines.min()) > 0.99
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-6


TELL_DISTRIBUTIONS = """
import json, sys
started = set(sys.modules)  # with what hooks of the environment brought
from importlib import metadata
for name in ("torch", "transformers", "sentence_transformers", "onnx", "scipy"):
    sys.modules[name] = None  # as where it is not installed
import model_build.assemble
model_build.assemble.app(sys.argv[1:], standalone_mode=False)
tops = {name.partition(".")[0] for name in set(sys.modules) - started if sys.modules[name]}
owners = metadata.packages_distributions()
print(json.dumps(sorted({each for top in tops for each in owners.get(top, [])})))
"""


def test_it_loads_nothing_but_what_serves(tmp_path: Path) -> None:
    """No torch: every distribution that is imported is in the lock files that `make run` installs."""
    command = [sys.executable, "-c", TELL_DISTRIBUTIONS, MODEL, "--target", "cpu-int8"]
    ran = subprocess.run(
        [*command, "--push", f"file://{tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    loaded = {canonicalize_name(each) for each in json.loads(ran.stdout.splitlines()[-1])}
    assert {"numpy", "safetensors", "typer"} <= loaded
    locks = [ROOT / "requirements.txt", ROOT / "model_build" / "requirements-sample.txt"]
    locked = {name for lock in locks for name in re.findall(r"^([a-z\d-]+)==", lock.read_text(), re.M)}
    assert loaded <= locked


def assemble_it(*arguments: object) -> Result:
    return CliRunner().invoke(assemble.app, [str(each) for each in arguments])


def test_the_same_again_changes_nothing(published: tuple[Path, Manifest]) -> None:
    """And says so."""
    folder, manifest = published
    before = (folder / "manifest.json").read_bytes()
    again = assemble_it(MODEL, "--target", "cpu-int8", "--push", f"file://{folder.parents[1]}")
    assert again.exit_code == 0
    assert f"{MODEL} {manifest.revision} (cpu-int8): nothing to do" in again.stdout
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("e5-small-v2", "--target", "cpu-int8"),
            "there are recipes for: all-MiniLM-L6-v2; python -m model_build",
        ),
        (("../recipes/all-MiniLM-L6-v2", "--target", "cpu-int8"), "there is no recipe"),
        ((MODEL, "--target", "cpu-fp32"), "on cpu-fp32; there are recipes for: none"),
        ((MODEL, "--target", "tpu"), "cpu-int8"),
    ],
)
def test_what_has_no_recipe_is_exit_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """One sentence that says what there is, and that the other command builds it."""
    refused = assemble_it(*arguments, "--push", f"file://{tmp_path / 'store'}")
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not (tmp_path / "store").exists()


def test_a_package_that_is_not_installed_is_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the file that has it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    refused = assemble_it(MODEL, "--target", "cpu-int8", "--push", f"file://{tmp_path / 'store'}")
    assert refused.exit_code == 2
    assert "model_build/requirements-sample.txt" in refused.stderr


def test_other_weights_are_exit_3_and_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one weight."""
    located = locate(MODEL)
    folder = tmp_path / "model"
    shutil.copytree(located.folder, folder)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    monkeypatch.setattr(assemble, "locate", lambda _: replace(located, folder=folder))
    refused = assemble_it(MODEL, "--target", "cpu-int8", "--push", f"file://{tmp_path / 'store'}")
    assert refused.exit_code == 3
    assert "not published: model.safetensors is not the file" in refused.stderr
    assert not (tmp_path / "store").exists()


def test_a_store_that_cannot_be_written_is_exit_4(tmp_path: Path) -> None:
    """What a hook waits for, when a role is not known everywhere yet."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    failed = assemble_it(MODEL, "--target", "cpu-int8", "--push", f"file://{blocked}/store")
    assert failed.exit_code == 4
    assert "the push failed" in failed.stderr
    assert str(tmp_path) not in failed.stderr


@pytest.mark.parametrize(
    ("model", "torch"), [((), False), (("MODEL=e5-small-v2",), True), (("MODEL=ORG/NAME",), True)]
)
def test_make_run_installs_torch_for_other_models_alone(
    tmp_path: Path, model: tuple[str, ...], torch: bool
) -> None:
    """And says so before it does. Once a model is there, what serves is enough."""
    for name in ("Makefile", "requirements.txt", "model_build", "infra/gpu"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    plan = ["make", "--dry-run", "--no-print-directory", "run", *model]
    fresh = subprocess.run(plan, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert ("requirements-torch.txt" in fresh, "is built here, with torch" in fresh) == (torch, torch)
    name = model[0].removeprefix("MODEL=") if model else MODEL
    module = "model_build" if torch else "model_build.assemble"
    assert f"python -m {module} {name} --target cpu-int8" in fresh
    current = tmp_path / ".blitz" / "models" / name / "current"
    current.parent.mkdir(parents=True)
    current.touch()
    later = subprocess.run(plan, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "requirements-torch.txt" not in later
    assert "python -m model_build" not in later
    assert "python -m functions.local" in later
