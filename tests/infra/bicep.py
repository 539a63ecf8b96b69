"""What a deployment would hold, from the Bicep CLI, offline. Knows no rule about it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
VARIANTS = sorted(path.stem for path in (INFRA / "variants").glob("*.bicepparam"))

_BESIDE = ROOT.parent / "shared" / "tools" / "bicep"
_SCOPE = (
    "--subscription-id=00000000-0000-0000-0000-000000000001",
    "--tenant-id=00000000-0000-0000-0000-000000000002",
    "--location=swedencentral",
)
# Of a program that ends in seconds .NET need compile nothing a second time: a third less CPU time.
_ONCE = {"DOTNET_TieredCompilation": "0", "DOTNET_gcConcurrent": "0"}
_FORMAT = re.compile(r"format\('([^']*)'((?:, '[^']*')+)\)")


_kept: Path | None = None


def keep_in(folder: Path) -> None:
    """What was compiled is kept there from now on, for all processes of this run."""
    global _kept
    _kept = folder
    _kept.mkdir(exist_ok=True)


def run_bicep(
    *arguments: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What the CLI says of infra/, asked once for each `environ`: see `ask_bicep`."""
    key = json.dumps([arguments, sorted((environ or {}).items())])
    done = _once(key, lambda: _parts_of(ask_bicep(*arguments, environ=environ)))
    return subprocess.CompletedProcess(arguments, done["code"], done["out"], done["err"])


def _parts_of(ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return {"code": ran.returncode, "out": ran.stdout, "err": ran.stderr}


def _once(key: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, as JSON holds it: a compilation takes seconds, and many tests look at one."""
    if _kept is None:
        return make()
    file = _kept / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            made = json.dumps(make())
            file.write_text(made, "utf-8")
    return json.loads(file.read_text("utf-8"))


def ask_bicep(
    *arguments: str, cwd: Path = INFRA, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Skips the test where there is no CLI. Of a deployer's variables none but `environ` reaches it."""
    cli = shutil.which("bicep") or (str(_BESIDE) if _BESIDE.exists() else None)
    if cli is None:
        pytest.skip("the Bicep CLI is neither on PATH nor beside the checkout")
    known = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [cli, *arguments],
        cwd=cwd,
        env={**known, **_ONCE, **(environ or {})},
        capture_output=True,
        text=True,
    )


def parameters_from(environ: Mapping[str, str]) -> dict[str, Any]:
    """What main.bicepparam makes of azd's variables, as Azure gets it: parameter -> value."""
    text = (INFRA / "main.bicepparam").read_text("utf-8")
    read = set(re.findall(r"readEnvironmentVariable\(\s*'(\w+)'", text))
    return dict(_parameters_from(tuple(sorted((n, v) for n, v in environ.items() if n in read))))


@cache
def _parameters_from(environ: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    ran = run_bicep("build-params", "main.bicepparam", "--stdout", environ=dict(environ))
    assert (ran.returncode, ran.stderr) == (0, "")
    given = json.loads(json.loads(ran.stdout)["parametersJson"])["parameters"]
    return {name: each["value"] for name, each in given.items()}


@cache
def resources_of(variant: str, parameters: str = "") -> list[dict[str, Any]]:
    """Every resource that infra/variants/`variant`.bicepparam deploys, as `bicep snapshot` predicts it.

    parameters: lines of Bicep to end that file with. What only Azure can know stays an expression:
    "[reference(...)]".
    """
    key = json.dumps(["snapshot", variant, parameters])
    resources: list[dict[str, Any]] = _once(key, lambda: _predicted(variant, parameters))
    return resources


def _predicted(variant: str, parameters: str) -> list[dict[str, Any]]:
    with TemporaryDirectory() as scratch:
        infra = shutil.copytree(INFRA, Path(scratch) / "infra")
        with (infra / "variants" / f"{variant}.bicepparam").open("a", encoding="utf-8") as file:
            file.write(parameters)
        ran = ask_bicep("snapshot", f"{variant}.bicepparam", *_SCOPE, cwd=infra / "variants")
        assert (ran.returncode, ran.stderr) == (0, "")
        snapshot = json.loads((infra / "variants" / f"{variant}.snapshot.json").read_text("utf-8"))
    assert snapshot["diagnostics"] == []
    resources: list[dict[str, Any]] = snapshot["predictedResources"]
    return resources


def of_type(variant: str, type_name: str) -> list[dict[str, Any]]:
    return [resource for resource in resources_of(variant) if resource["type"] == type_name]


def apps_of(variant: str, parameters: str = "") -> dict[str, dict[str, Any]]:
    """The three apps by role. Which of its two services the CPU app is, its tag tells."""
    types = ("Microsoft.Web/sites", "Microsoft.App/containerApps")
    apps = [each for each in resources_of(variant, parameters) if each["type"] in types]
    return {app["tags"]["azd-service-name"].removesuffix("-container"): app for app in apps}


def settings_of(app: Mapping[str, Any]) -> dict[str, str]:
    """An app's settings, whether they are a site's or a container's."""
    properties = app["properties"]
    if "siteConfig" in properties:
        pairs = properties["siteConfig"]["appSettings"]
    else:
        pairs = properties["template"]["containers"][0]["env"]
    return {pair["name"]: pair["value"] for pair in pairs}


def evaluated(value: str) -> str:
    """An expression as it is in Azure's public cloud; left as far as it is known if Azure must help."""
    value = value.replace("environment().suffixes.storage", "'core.windows.net'")
    while call := _FORMAT.search(value):
        parts = re.findall(r"'([^']*)'", call[2])
        value = value.replace(call[0], f"'{call[1].format(*parts)}'")
    return value[2:-2] if re.fullmatch(r"\['[^']*'\]", value) else value


# Settings that a deployment leaves alone, each for a reason.
LEFT_AT_DEFAULT = {
    # For use without Azure's identities, or without a GPU: never right in a deployment.
    *("storage_connection_string", "backend_secret", "allow_cpu"),
    # Suits the platform as it is: Flex has 0.8 GB of temporary storage, 230 s a request.
    *("cache_dir", "request_timeout_s", "threads", "batch_tokens", "batch_texts"),
    # Matters of taste and of measurement: `az functionapp config appsettings set` changes them.
    *("gpu_min_texts", "gpu_wake_s", "part_texts", "backend_concurrency", "torch_compile"),
    *("max_file_bytes", "refresh_s", "max_wait_ms", "queue_tokens", "max_queue_s", "allow_token_ids"),
    *("max_requests", "max_pending_bytes", "max_body_bytes", "max_inputs", "max_request_tokens"),
    *("key_files", "key_file_bytes", "key_batches", "file_expiry_days"),
    *("max_job_bytes", "max_job_rows"),
    # It does no harm where keys are on, and whoever wants none says so.
    "page",
    # What callers name, and whose pages they are, only their operator knows.
    *("model_aliases", "cors_origins"),
    # Connections are the platform's.
    *("max_connections", "keep_alive_s"),
    # The Functions host writes the logs.
    "log_format",
}
