"""What Azure makes of each app: its packages in a clean environment, its files in a folder alone."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.functions.indexed import FUNCTIONS
from tests.infra.bicep import ROOT
from tests.infra.dockerfile import arguments, instructions
from tests.tiny import Tiny, nearly, publish_all

pytestmark = [
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="Azure has Python 3.11"),
    pytest.mark.skipif(
        os.environ.get("CI") != "true",
        reason="installs each app's packages anew, from PyPI several GB: done where CI=true",
    ),
]

TELL_FUNCTIONS = """
import importlib.util, json
from function_app import app
names = [function.get_function_name() for function in app.get_functions()]
print(json.dumps([names, importlib.util.find_spec("torch") is not None]))
"""
EMBED = """
import asyncio, json, os
from functions.gpu import create_inference
from shared.contracts import EmbedRequest
from shared.settings import Settings
inference = create_inference(Settings.from_env(os.environ))
result = asyncio.run(inference.run(EmbedRequest("tiny", ("w1 w2", "w3"))))
print(json.dumps(result.vectors.tolist()))
"""


@dataclass(frozen=True)
class Machine:
    """A folder that stands for an instance's disk. environ: all that its processes know."""

    disk: Path
    wwwroot: Path
    environ: Mapping[str, str]

    def run(self, *command: str, **environ: str) -> str:
        """What the command prints, in the app's folder."""
        ran = subprocess.run(
            command,
            cwd=self.wwwroot,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def told(self, script: str, **environ: str) -> Any:
        """What the last line printed by a script says, in JSON."""
        return json.loads(self.run("python", "-c", script, **environ).splitlines()[-1])


@contextmanager
def _clean_machine(wwwroot: str) -> Iterator[Machine]:
    """With a new virtual environment and nothing else. Gone at once: an image takes 2 GB."""
    with TemporaryDirectory() as name:
        disk = Path(name)
        subprocess.run([sys.executable, "-m", "venv", disk / "venv"], check=True)
        foreign = ("APPLICATIONINSIGHTS", "BLITZ", "PYTHON")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        search = f"{disk / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        # Compiled when imported, as far as they are: that spares a quarter of the time.
        yield Machine(disk, disk / wwwroot, {**ours, "PATH": search, "PIP_NO_COMPILE": "1"})


@pytest.fixture(scope="module")
def zip_app() -> Iterator[Machine]:
    """Router and CPU app: what .funcignore leaves in, and its requirements.txt installed."""
    with _clean_machine("wwwroot") as machine:
        # Names alone, which are left out wherever they are.
        ignored = (ROOT / ".funcignore").read_text("utf-8").split()
        shutil.copytree(ROOT, machine.wwwroot, ignore=shutil.ignore_patterns(*ignored))
        machine.run("pip", "install", "--quiet", "--requirement", "requirements.txt")
        yield machine


def test_the_zips_packages_fit_together(zip_app: Machine) -> None:
    """Azure's build installs what is pinned, whether it fits or not."""
    assert "No broken requirements" in zip_app.run("pip", "check")


@pytest.mark.parametrize("role", ["router", "cpu"])
def test_a_zip_app_starts_from_its_own_files_and_packages(zip_app: Machine, role: str) -> None:
    """Nothing that only the checkout or a developer's environment has is needed; there is no torch."""
    names, has_torch = zip_app.told(TELL_FUNCTIONS, BLITZ_ROLE=role)
    assert set(names) == set(FUNCTIONS[role])
    assert not has_torch


@pytest.fixture(scope="module")
def image() -> Iterator[Machine]:
    """What COPY, RUN pip and ENV of infra/gpu/Dockerfile do, on the base of a plain Python.

    With torch's CPU build, as somebody could build the image too: the other one takes several GB.
    """
    variables = dict(each.split("=", 1) for each in arguments("ARG"))
    variables["TORCH_INDEX"] = "https://download.pytorch.org/whl/cpu"
    with _clean_machine("home/site/wwwroot") as machine:
        machine.wwwroot.mkdir(parents=True)
        for name, rest in instructions():
            if name == "COPY":
                _copy(machine.disk, *Template(rest).substitute(variables).split())
            elif name == "RUN" and "pip install" in rest:
                # The flag keeps pip's cache out of the layer; here it only costs time.
                command = rest.replace("--no-cache-dir", "").replace("/build", f"{machine.disk}/build")
                machine.run("sh", "-c", command, **variables)
        (variables_at_run,) = arguments("ENV")
        environ = dict(pair.split("=", 1) for pair in shlex.split(variables_at_run))
        environ |= {"BLITZ_ALLOW_CPU": "1"}
        yield Machine(machine.disk, machine.wwwroot, {**machine.environ, **environ})


def _copy(disk: Path, *paths: str) -> None:
    """As Docker: of a folder its content, and files into a target that ends in a slash."""
    *sources, target = paths
    for source in sources:
        to = disk / target.lstrip("/")
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            to = to / Path(source).name if target.endswith("/") else to
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, to)


def test_the_images_packages_fit_together(image: Machine) -> None:
    """Each lock file is installed as it is, and torch from an index of its own over them."""
    assert "No broken requirements" in image.run("pip", "check")
    assert not (image.disk / "build").exists()


def test_the_image_is_the_gpu_app(image: Machine) -> None:
    """Its environment picks the role, and the files that were copied are enough for it."""
    names, has_torch = image.told(TELL_FUNCTIONS)
    assert set(names) == set(FUNCTIONS["gpu"])
    assert has_torch


def test_the_image_embeds(image: Machine) -> None:
    """A model of FP16 weights gives the right vectors, on the CPU here."""
    tiny, store = Tiny("tiny"), f"file://{image.disk / 'store'}"
    publish_all([tiny], store, "gpu-fp16")
    vectors = image.told(EMBED, BLITZ_MODEL_STORE=store, BLITZ_CACHE_DIR=str(image.disk / "cache"))
    assert nearly(vectors, tiny.vectors(["w1 w2", "w3"]))
