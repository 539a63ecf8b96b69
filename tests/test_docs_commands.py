"""Every command and snippet of README and docs, run as it is printed, for who has run `make run`.

In a folder that has what such a checkout has: the sources, `.venv`, the published sample model in
`.blitz/models`, and a service at work. Only the port is another one. Blocks of a page run in their
order; a block of text right behind one is what it prints.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S, wait_until
from tests.server import ROOT, free_port, started_service, wait_until_ready

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PRINTED_PORT = "7071"

AZURE = "needs an Azure subscription"
NOT_RUN = {
    ("README.md", "make run"): "installs for minutes; tests/test_makefile.py shows what it starts",
    (
        "docs/models.md",
        "model_build all-MiniLM-L6-v2",
    ): "a minute; tests/model_build/test_assemble.py builds it",
    ("docs/rollout.md", "stage all-MiniLM-L6-v2"): (
        "needs a second revision; tests/functions/api/test_staged.py stages one"
    ),
    (
        "docs/models.md",
        "model_build.convert FOLDER OUT",
    ): "needs a pickled model; tests/model_build/test_convert.py runs it",
    (
        "docs/models.md",
        "LogitScore(*words)",
    ): "needs a language model; tests/model_build/test_word_rerankers.py runs it",
    ("docs/serving.md", "--separate"): "loads torch; tests/functions/local/test_main.py starts it so",
    (
        "docs/serving.md",
        "alloy run",
    ): "needs Alloy and Loki; tests/infra/test_loki.py does what it would",
    ("docs/deploy.md", "az login"): AZURE,
    ("docs/deploy.md", '"$SERVICE_URL/v1/embeddings"'): AZURE,
    ("docs/deploy.md", "-D - "): AZURE,
    ("docs/gpu-cold-start.md", '"$SERVICE_URL/v1/embeddings"'): AZURE,
    ("docs/deploy.md", "azd env get-value MODEL_STORE_URL"): AZURE,
    ("docs/deploy.md", "azd env set GPU_MODELS_IN_IMAGE"): AZURE,
    ("docs/deploy.md", "bicep snapshot"): "needs Bicep; tests/infra/test_bicep.py runs it where it is",
    ("docs/deploy.md", "func start"): "needs Azure Functions Core Tools",
    ("docs/restore.md", "az lock create"): AZURE,
    ("docs/restore.md", "--include-deleted"): AZURE,
    ("docs/restore.md", "keys.json --file keys.json"): AZURE,
    ("docs/restore.md", "--container-name bulk-in"): AZURE,
    ("docs/restore.md", "az storage message clear"): AZURE,
    ("docs/restore.md", "azd env new"): AZURE,
    ("docs/cluster.md", "make test-cluster"): "installs Ray for minutes; tests/cluster starts it so",
    (
        "docs/cluster.md",
        "functions.cluster.config",
    ): "needs Ray; tests/infra/test_kuberay.py has the file written",
    (
        "docs/cluster.md",
        "functions.cluster.data",
    ): "needs Ray; tests/cluster/test_data.py runs it",
    ("docs/cluster.md", "AzureFileSystem"): "needs Ray; tests/cluster/test_data.py does it with Azurite",
    (
        "docs/measurements/gpu.md",
        "tests.benchmarks gpu",
    ): "needs a GPU; tests/test_gpu_benchmark.py tries it on the CPU",
    ("docs/costs.md", "--tokens-per-s RATE"): "asks for a rate that nobody has measured",
}
"""Page and a part of the block: why it is not run."""

FILES = {
    "README.md": ".blitz/bulk/bulk-out/all-MiniLM-L6-v2/texts.jsonl.parquet",
    "docs/bulk.md": ".blitz/bulk/bulk-out/all-MiniLM-L6-v2/texts.jsonl.parquet",
}
"""What a page promises for a while after its commands."""

_BLOCK = re.compile(
    r"(?ms)^```(?P<language>\w*)\n(?P<text>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?"
)


@dataclass(frozen=True)
class Block:
    """Code of a page. printed: what the page says that it prints; None if it does not say."""

    page: str
    language: str
    text: str
    printed: str | None

    @property
    def reason(self) -> str | None:
        """Why it is not run, if it is not."""
        found = [why for (page, part), why in NOT_RUN.items() if page == self.page and part in self.text]
        return found[0] if found else None


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(_name(page), found["language"], found["text"], found["printed"])
        for found in _BLOCK.finditer(text)
    ]


ALL = {_name(page): _blocks(page) for page in PAGES}
RUN = [name for name, blocks in ALL.items() if any(b.language in ("bash", "python") for b in blocks)]


@dataclass(frozen=True)
class Checkout:
    """A folder as a newcomer has it, and the port that its service has instead of the printed one."""

    folder: Path
    port: int

    def run(self, block: Block) -> None:
        """Fails with what the block said. A command that serves is stopped once it is ready."""
        text = block.text.replace(PRINTED_PORT, str(self.port))
        if "functions.local" in text:
            self._serve(text)
            return
        command = {"bash": ["bash", "-e", "-o", "pipefail"], "python": [".venv/bin/python"]}
        finished = subprocess.run(
            command[block.language],
            input=text,
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        said = f"{block.page}:\n{text}\n{finished.stdout}\n{finished.stderr}"
        assert finished.returncode == 0, said
        assert "Traceback" not in finished.stderr, said
        if block.printed is not None:
            assert finished.stdout.split() == block.printed.split(), said

    def _serve(self, text: str) -> None:
        """On ports that nobody has, since the one service is there."""
        port = free_port(3)
        command = re.sub(r" --port \d+|$", "", text.strip()) + f" --port {port}"
        process = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=self.folder, env=self._environ)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)

    @property
    def _environ(self) -> dict[str, str]:
        """curl fails where the service answers with an error; no setting of this machine counts."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BLITZ_")}
        return {**kept, "CURL_HOME": str(self.folder)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """With the model that `make run` publishes, and the service at work that it starts."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("functions", "shared", "model_build", "docs", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".curlrc").write_text("fail-with-body\n")
    assemble = [
        ".venv/bin/python",
        "-m",
        "model_build.assemble",
        "all-MiniLM-L6-v2",
        "--target",
        "cpu-int8",
    ]
    subprocess.run([*assemble, "--push", "file://.blitz/models"], cwd=folder, check=True)
    with started_service(f"file://{folder}/.blitz/models") as (url, process):
        wait_until_ready(url, process)
        yield Checkout(folder, int(url.rpartition(":")[2]))


@pytest.mark.parametrize("page", RUN)
def test_what_a_page_prints_works(checkout: Checkout, page: str) -> None:
    """One block after the other, in the page's order."""
    for block in ALL[page]:
        if block.language in ("bash", "python") and block.reason is None:
            checkout.run(block)
    if file := FILES.get(page):
        assert file in (ROOT / page).read_text("utf-8")
        wait_until((checkout.folder / file).is_file)


@pytest.mark.parametrize("page", ALL)
def test_every_block_says_what_it_is(page: str) -> None:
    """Commands and Python, which are run, data, or text: in text nobody would see a command fail."""
    for block in ALL[page]:
        assert block.language in ("bash", "python", "json", "text", "mermaid", ""), block.text
        if block.language == "json":
            json.loads(block.text)
        elif block.language not in ("bash", "python"):
            assert not re.search(r"(?m)^\$? ?(?:make|curl|az|azd|cp|\S*python\S*|pip|npm) ", block.text)
    prose = _BLOCK.sub("", (ROOT / page).read_text("utf-8"))
    assert not re.search(r"(?m)^\n {4}\S", prose), "an indented block does not say what it is"


def test_what_is_not_run_is_there() -> None:
    """A reason for a block that has gone hides nothing."""
    for page, part in NOT_RUN:
        assert [block for block in ALL[page] if part in block.text], (page, part)


@pytest.mark.parametrize("page", [page for page in ALL if "/decisions/" not in page])
def test_the_packages_python_is_named(page: str) -> None:
    """A bare `python` or `pip` has none of the packages: only make run's has. Records only mention."""
    text = (ROOT / page).read_text("utf-8")
    bare = re.findall(
        r"(?m)^.*(?<![\w/])(?:python3?(?:\.\d+)? -m|(?<!-m )pip3? install|python docs/).*$", text
    )
    assert bare == []


def test_a_command_is_no_pipe_by_mistake() -> None:
    """`status JOB | cancel JOB` reads as a choice, and is run as a pipe."""
    for blocks in ALL.values():
        for block in blocks:
            if block.language == "bash":
                assert " | " not in block.text
