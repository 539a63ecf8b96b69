"""infra/smoke.py and .ci/deploy: what a pipeline asks a service that it has just deployed."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.infra.bicep import INFRA, ROOT
from tests.infra.scripts import load
from tests.server import started_service

KEY = "a-key-of-the-smoke-test"
NEAR, FAR = [1.0, 0.0], [0.0, 1.0]


@pytest.fixture(scope="module")
def smoke() -> ModuleType:
    return load(INFRA / "smoke.py")


def test_a_service_on_this_machine_passes(minilm_store: Path) -> None:
    """The real one over HTTP, with a real model; the key comes on stdin and is printed nowhere."""
    hashed = hashlib.sha256(KEY.encode()).hexdigest()
    store, environ = f"file://{minilm_store}", {"BLITZ_API_KEY_HASHES": hashed}
    with started_service(store, environ=environ) as (url, _):
        ran = subprocess.run(
            [sys.executable, "-I", "-S", INFRA / "smoke.py", url, "--wait-s", "60"],
            input=f"{KEY}\n",
            capture_output=True,
            text=True,
        )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "embeds in 384 dimensions with all-MiniLM-L6-v2" in ran.stdout
    assert KEY not in ran.stdout


class Answers:
    """A service of recorded answers: of a path, one after the other, the last one for ever."""

    def __init__(self, smoke: ModuleType, **changed: list[tuple[int, Any]]) -> None:
        rows = [{"index": i, "embedding": row} for i, row in enumerate([NEAR, NEAR, FAR, NEAR])]
        refusal = {"error": {"message": "no"}}
        self._answers: dict[str, list[tuple[int, Any]]] = {
            "models": [(200, {"data": [{"id": "m"}]})],
            "embeddings": [(200, {"data": rows})],
            "keyless": [(401, refusal)],
            "empty": [(400, refusal)],
            **changed,
        }
        self.service = smoke.Service("http://service", KEY, 0.0)
        self.service.ask = self.ask

    def ask(self, path: str, body: Any = None, *, with_key: bool = True) -> tuple[int, Any]:
        name = path.rpartition("/")[2] if with_key else "keyless"
        if name == "embeddings" and "input" not in body:
            name = "empty"
        answers = self._answers[name]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def _rows(*vectors: list[float]) -> list[tuple[int, Any]]:
    return [(200, {"data": [{"index": i, "embedding": row} for i, row in enumerate(vectors)]})]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("no model", {"models": [(200, {"data": []})]}, "no model"),
    ("refused", {"models": [(403, "no")]}, "403"),
    ("for ever cold", {"models": [(503, "wait")]}, "503"),
    ("nobody there", {"models": [(0, "TimeoutError")]}, "no answer"),
    ("no unit length", {"embeddings": _rows([2.0, 0.0], NEAR, FAR, NEAR)}, "length 1"),
    ("too few", {"embeddings": _rows(NEAR, NEAR, FAR)}, "each text"),
    ("another vector", {"embeddings": _rows(NEAR, NEAR, FAR, [0.6, 0.8])}, "two vectors"),
    ("no meaning", {"embeddings": _rows(NEAR, FAR, NEAR, NEAR)}, "nearer"),
    ("open to all", {"keyless": [(200, {})]}, "no key"),
    ("takes nothing", {"empty": [(200, {})]}, "no input"),
]


@pytest.mark.parametrize(
    ("changed", "says"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG]
)
def test_what_is_wrong_is_told(smoke: ModuleType, changed: dict[str, Any], says: str) -> None:
    """Each by its own words, once the time is up."""
    with pytest.raises(smoke.Wrong, match=says):
        smoke.check(Answers(smoke, **changed).service, "")


def test_a_cold_start_and_a_new_key_are_waited_for(
    smoke: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the time is up."""
    monkeypatch.setattr(smoke, "_PAUSE_S", 0)
    models = [(401, "new key"), (0, "URLError"), (503, "cold"), (200, {"data": [{"id": "m"}]})]
    answers = Answers(smoke, models=models)
    answers.service._ends = float("inf")
    assert len(smoke.check(answers.service, "")) == 4


@pytest.fixture
def run_step(tmp_path: Path) -> Any:
    """`.ci/deploy STEP` where azd, make and python only take notes; python's stdin is among them."""
    notes = tmp_path / "notes"
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "deploy"
    script.write_text((ROOT / ".ci" / "deploy").read_text())
    script.chmod(0o755)
    answers = {
        "bin/azd": 'case "$3" in SERVICE_URL) echo https://service;; KEYS_URL) echo https://keys;; esac',
        "bin/make": "",
        "bin/python3": '[ "$1" != -c ] || exec "$REAL" "$@"; cat >"$0.stdin"; exit "$SMOKED"',
        ".venv/bin/python": """case "$*" in *" add "*) cat >"$0.stdin";; esac""",
    }
    for name, answer in answers.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        note = f'echo "${{0##*/}} $* GPU=${{GPU_ENABLED-unset}}" >>"{notes}"'
        path.write_text(f"#!/bin/sh\n{note}\n{answer}\n")
        path.chmod(0o755)

    def run(step: str, **environ: str) -> tuple[subprocess.CompletedProcess[str], list[str], list[str]]:
        search = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        given = {"PATH": search, "SMOKED": "0", "REAL": sys.executable, **environ}
        ran = subprocess.run([script, step], env=given, capture_output=True, text=True)
        sent = [
            path.read_text().strip()
            for name in ("bin/python3", ".venv/bin/python")
            if (path := tmp_path / f"{name}.stdin").exists()
        ]
        return ran, notes.read_text().splitlines(), sent

    return run


def test_a_variable_that_nobody_set_is_none(run_step: Any) -> None:
    """GitHub hands it on as empty, which Bicep refuses as a number or as a truth."""
    for step in ("provision", "deploy"):
        ran, calls, _ = run_step(step, GPU_ENABLED="")
        assert ran.returncode == 0, ran.stderr
        assert calls[-1].startswith(f"azd {step} ")
        assert calls[-1].endswith("--no-prompt GPU=unset")
    _, calls, _ = run_step("provision", GPU_ENABLED="false")
    assert calls[-1].endswith("GPU=false")


@pytest.mark.parametrize("smoked", [0, 1])
def test_the_key_of_the_questions_is_made_and_taken_back(run_step: Any, smoked: int) -> None:
    """Even if they fail. It is good for an hour, and in no argument and no log."""
    ran, calls, sent = run_step("smoke", GITHUB_RUN_ID="7", SMOKED=str(smoked))
    assert ran.returncode == smoked
    add, asked, revoke = (call for call in calls if re.search("functions.keys|smoke.py", call))
    assert re.search(r"add smoke-7 --stdin --document https://keys --expires \d{4}-\d\d-\d\dT\S+Z ", add)
    assert asked.startswith("python3 infra/smoke.py https://service ")
    assert "revoke smoke-7 --document https://keys " in revoke
    key, *others = set(sent)
    assert others == []
    assert len(key) >= 43
    assert key not in ran.stdout + ran.stderr + "".join(calls)


def test_a_key_that_there_is_is_taken(run_step: Any) -> None:
    """Where the storage keeps the pipeline out, or a gateway has keys of its own."""
    ran, calls, sent = run_step("smoke", SMOKE_KEY=KEY)
    assert ran.returncode == 0
    assert sent == [KEY]
    assert not [call for call in calls if "functions.keys" in call]
