"""azd's hooks: what they do on a machine without Azure, whose az, azd and python only take notes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tree_sitter_powershell
from tree_sitter import Language, Parser

from shared.bulk.control import queue_of
from tests.infra.bicep import INFRA, ROOT
from tests.infra.linters import lint

HOOKS = INFRA / "hooks"
NAMES = sorted(path.stem for path in HOOKS.glob("*.sh"))
AZURE = {
    "AZURE_ENV_NAME": "test",
    "GPU_APP_ID": "/subscriptions/sub/app",
    "GPU_IDENTITY_ID": "/subscriptions/sub/id-gpu",
    "DATA_ACCOUNT_NAME": "stdata",
    "MODEL_STORE_URL": "https://store/models",
    "HOOK_PAUSE_S": "0",
}

Run = Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]


@pytest.fixture
def run_hook(tmp_path: Path) -> Run:
    """Run a hook in a copy of the repository; gives its process and the commands that it called.

    answers: shell code that a command runs after noting its arguments.
    """
    shutil.copytree(HOOKS, tmp_path / "infra" / "hooks")
    shutil.copytree(ROOT / "model_build" / "recipes", tmp_path / "model_build" / "recipes")
    notes = tmp_path / "notes"

    def run(
        name: str, answers: dict[str, str] | None = None, **environ: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        notes.write_text("")
        commands = {name: tmp_path / "bin" / name for name in ("az", "azd", "make")}
        commands["python"] = tmp_path / ".venv" / "bin" / "python"
        for command, path in commands.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            answer = (answers or {}).get(command, "")
            path.write_text(f'#!/bin/sh\necho "{command} $*" >>"{notes}"\n{answer}\n')
            path.chmod(0o755)
        search = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        hook = tmp_path / "infra" / "hooks" / f"{name}.sh"
        ran = subprocess.run(
            ["sh", hook], env={"PATH": search, **AZURE, **environ}, capture_output=True, text=True
        )
        return ran, notes.read_text().splitlines()

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_posix_shell_takes_the_hooks(name: str) -> None:
    """Whatever sh is there."""
    subprocess.run(["sh", "-n", str(HOOKS / f"{name}.sh")], check=True)


@pytest.mark.parametrize(
    "script",
    [*sorted(HOOKS.glob("*.sh")), *sorted((ROOT / ".ci").iterdir())],
    ids=lambda path: str(path.name),
)
def test_shellcheck_has_no_remark(script: Path) -> None:
    """Each is read as what its first line says: the hooks as POSIX sh, those of .ci as bash."""
    lint("shellcheck", script)


@pytest.mark.parametrize("name", NAMES)
def test_a_grammar_of_powershell_takes_the_hooks(name: str) -> None:
    """PowerShell itself has no package in a registry; its words in a wrong order are no error here."""
    parser = Parser(Language(tree_sitter_powershell.language()))
    script = (HOOKS / f"{name}.ps1").read_bytes()
    assert not parser.parse(script).root_node.has_error
    assert parser.parse(script.replace(b"(", b"", 1)).root_node.has_error


@pytest.mark.parametrize("name", NAMES)
def test_both_shells_call_the_same_commands(name: str) -> None:
    """The PowerShell twin cannot be run everywhere: but it calls az and azd the same way."""
    twins = [_commands((HOOKS / f"{name}.{suffix}").read_text("utf-8")) for suffix in ("sh", "ps1")]
    assert twins[0] == twins[1]


def test_every_hook_has_a_twin() -> None:
    """Whoever deploys from Windows has the same hooks."""
    assert sorted(path.stem for path in HOOKS.glob("*.ps1")) == NAMES


def test_publish_assembles_the_sample_for_each_backend(run_hook: Run) -> None:
    """With the GPU on both targets are published, to the deployment's store; neither needs torch."""
    ran, calls = run_hook("publish")
    assert ran.returncode == 0, ran.stderr
    publish = "python -m model_build.assemble all-MiniLM-L6-v2 --target {} --push https://store/models"
    of_cpu, of_gpu = (
        ["make -B .venv/serve", publish.format(target)] for target in ("cpu-int8", "gpu-fp16")
    )
    assert calls == of_cpu + of_gpu
    _, calls = run_hook("publish", GPU_ENABLED="false")
    assert calls == of_cpu


def test_publish_builds_a_model_that_has_no_recipe(run_hook: Run) -> None:
    """Which takes torch."""
    ran, calls = run_hook("publish", GPU_ENABLED="false", SAMPLE_MODEL="e5-small-v2")
    assert ran.returncode == 0, ran.stderr
    assert calls == [
        "make -B .venv/build",
        "python -m model_build e5-small-v2 --target cpu-int8 --push https://store/models",
    ]


def test_publish_can_be_turned_off(run_hook: Run) -> None:
    """SAMPLE_MODEL=none."""
    ran, calls = run_hook("publish", SAMPLE_MODEL="none")
    assert (ran.returncode, calls) == (0, [])


@pytest.mark.parametrize(("code", "tries"), [(4, 10), (3, 1)])
def test_publish_waits_for_the_store_alone(run_hook: Run, code: int, tries: int) -> None:
    """A role that is not known yet is worth waiting for; a model that fails its gate is not."""
    answer = f'case "$*" in *model_build*) exit {code};; esac'
    ran, calls = run_hook("publish", {"python": answer})
    assert ran.returncode == code
    assert len([call for call in calls if "model_build" in call]) == tries


def test_scale_leaves_the_platforms_rules_alone_if_told(run_hook: Run) -> None:
    """And does nothing without a GPU app."""
    for environ in ({"GPU_HTTP_CONCURRENCY": "0"}, {"GPU_HTTP_CONCURRENCY": "4", "GPU_APP_ID": ""}):
        ran, calls = run_hook("scale", **environ)
        assert (ran.returncode, calls) == (0, [])


@pytest.mark.parametrize(("given", "requests"), [({}, "10"), ({"GPU_HTTP_CONCURRENCY": "4"}, "4")])
def test_scale_sets_rules_for_all_that_the_gpu_app_does(
    run_hook: Run, tmp_path: Path, given: dict[str, str], requests: str
) -> None:
    """In one PATCH, whose body is gone afterwards; the platform adds no rule to one's own."""
    keep = f'for each; do case "$each" in @*) cp "${{each#@}}" {tmp_path}/body;; esac; done'
    ran, (call,) = run_hook("scale", {"az": keep}, **given)
    assert ran.returncode == 0, ran.stderr
    assert "--method PATCH --url /subscriptions/sub/app?api-version=2026-03-02-preview" in call
    scale = json.loads((tmp_path / "body").read_text())["properties"]["template"]["scale"]
    assert scale["allowScalingRuleOverride"] is True
    http, *queues = scale["rules"]
    assert http == {"name": "http", "http": {"metadata": {"concurrentRequests": requests}}}
    for rule in queues:
        assert rule["custom"]["type"] == "azure-queue"
        assert rule["custom"]["identity"] == "/subscriptions/sub/id-gpu"
        assert rule["custom"]["metadata"]["accountName"] == "stdata"
    names = [rule["custom"]["metadata"]["queueName"] for rule in queues]
    assert names == [queue_of("gpu"), f"{queue_of('gpu')}-poison"]
    sent = re.search(r"@(\S+)", call)
    assert sent is not None
    assert not Path(sent[1]).exists()


GRAFANA = {
    "GRAFANA_NAME": "amg",
    "AZURE_RESOURCE_GROUP": "rg-test",
    "AZURE_SUBSCRIPTION_ID": "sub",
    "APPLICATION_INSIGHTS_ID": "/subscriptions/sub/components/appi",
}


def test_grafana_is_left_alone_where_there_is_none(run_hook: Run) -> None:
    """Which is the default."""
    ran, calls = run_hook("grafana", GRAFANA_NAME="")
    assert (ran.returncode, calls) == (0, [])


def test_grafana_is_given_both_dashboards(run_hook: Run, tmp_path: Path) -> None:
    """The file as it is, and each query of the workbook over the component."""
    shutil.copytree(INFRA / "dashboards", tmp_path / "infra" / "dashboards")
    keep = (
        f'while [ "$1" != --definition ]; do shift; done; cat "$2" >>{tmp_path}/given\n'
        f"echo >>{tmp_path}/given; echo $AZURE_EXTENSION_USE_DYNAMIC_INSTALL >>{tmp_path}/asks"
    )
    ran, calls = run_hook("grafana", {"az": keep}, **GRAFANA)
    assert ran.returncode == 0, ran.stderr
    wanted = "az grafana dashboard create --name amg --resource-group rg-test --overwrite true"
    assert [call[: len(wanted)] for call in calls] == [wanted] * 2
    assert all(call.endswith("--output none --subscription sub") for call in calls)
    assert set((tmp_path / "asks").read_text().split()) == {"yes_without_prompt"}
    azure, file = map(json.loads, (tmp_path / "given").read_text().splitlines())
    assert file == json.loads((INFRA / "dashboards" / "grafana.json").read_text("utf-8"))
    workbook = json.loads((INFRA / "dashboards" / "workbook.json").read_text("utf-8"))
    parts = [item["content"] for item in workbook["items"] if "query" in item["content"]]
    assert [panel["title"] for panel in azure["panels"]] == [part["title"] for part in parts]
    for panel, part in zip(azure["panels"], parts, strict=True):
        (target,) = panel["targets"]
        asked = target["azureLogAnalytics"]
        assert target["queryType"] == "Azure Log Analytics"
        assert asked["query"].replace("$__interval", "{TimeRange:grain}") == part["query"]
        assert asked["resources"] == [GRAFANA["APPLICATION_INSIGHTS_ID"]]
        assert (asked["resultFormat"] == "table") is (part["visualization"] == "table")
    assert azure["uid"] != file["uid"]
    cells = [
        (at["x"] + x, at["y"] + y)
        for at in (panel["gridPos"] for panel in azure["panels"])
        for x in range(at["w"])
        for y in range(at["h"])
    ]
    assert len(cells) == len(set(cells)), "a panel lies on another one"
    assert max(x for x, _ in cells) < 24


def test_grafana_is_asked_again_while_the_role_is_not_known(run_hook: Run, tmp_path: Path) -> None:
    """It takes minutes; and one that is never known ends the hook with a reason."""
    shutil.copytree(INFRA / "dashboards", tmp_path / "infra" / "dashboards")
    first = f"[ -e {tmp_path}/asked ] && exit 0; touch {tmp_path}/asked; exit 1"
    ran, calls = run_hook("grafana", {"az": first}, **GRAFANA)
    assert (ran.returncode, len(calls)) == (0, 3)
    ran, calls = run_hook("grafana", {"az": "exit 1"}, **GRAFANA)
    assert (ran.returncode, len(calls)) == (1, 10)
    assert "could not be put into Grafana" in ran.stderr


def _commands(script: str) -> list[tuple[str, list[str]]]:
    """Every call of az and azd: its words up to the first option or value, and its options."""
    calls = []
    for line in re.sub(r"[\\`]\n", " ", script).splitlines():
        call = re.search(r"(?<![\w-])(azd? [a-z]+(?: [a-z]+)*)(.*)", line)
        if call and not line.lstrip().startswith("#"):
            calls.append((call[1], re.findall(r"(?<=\s)--[a-z-]+", call[2])))
    return calls
