"""The GPU app's image: what goes into it, and who runs it."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
from pathlib import PurePosixPath

from tests.infra.bicep import INFRA, ROOT, apps_of
from tests.infra.dockerfile import DOCKERFILE, arguments
from tests.infra.linters import lint


def test_hadolint_has_no_remark() -> None:
    """The linter of Dockerfiles, and in it ShellCheck for what they run."""
    lint("hadolint", DOCKERFILE)


def test_the_base_is_the_functions_image_of_our_python() -> None:
    """One stage, a tag that names host and Python, and no other registry."""
    assert arguments("FROM") == ["mcr.microsoft.com/azure-functions/python:4-python3.11"]


def test_it_does_not_run_as_root() -> None:
    """The last USER is a number, which platforms can check, and not 0; its port is one it may open."""
    assert arguments("USER") == ["10001"]
    (port,) = arguments("EXPOSE")
    assert int(port) > 1024
    assert f"ASPNETCORE_URLS=http://+:{port} " in " ".join(arguments("ENV"))


def test_the_ingress_leads_to_its_port() -> None:
    """Dockerfile and Bicep name the same port."""
    ingress = apps_of("complete")["gpu"]["properties"]["configuration"]["ingress"]
    assert arguments("EXPOSE") == [str(ingress["targetPort"])]


def test_pip_leaves_no_cache_and_installs_what_is_locked() -> None:
    """Gigabytes of wheels would stay in the layer; hashes go for all but an index of one's own."""
    installs = re.findall(r"pip install ([^&;]+)", " ".join(arguments("RUN")))
    files = [re.findall(r"--requirement /build/(\S+)", each) for each in installs]
    assert files == [
        ["requirements.txt", "infra/gpu/requirements.txt"],
        ["infra/gpu/requirements-torch.txt"],
        [],
    ]
    assert all("--no-cache-dir" in each for each in installs)
    # Builds for CUDA 12: the platform's driver is too old for PyPI's.
    index = dict(each.split("=", 1) for each in arguments("ARG"))["TORCH_INDEX"]
    assert re.fullmatch(r"https://download\.pytorch\.org/whl/cu12\d", index)
    command = re.search(r"\$\((grep .+?)\)", installs[2])
    assert command is not None
    words = shlex.split(command[1].replace("/build/", f"{ROOT}/"))
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"torch==[\d.]+\n", found)


def test_no_secret_is_baked_in() -> None:
    """Build arguments and variables stay readable in every layer."""
    for value in arguments("ARG") + arguments("ENV"):
        assert not re.search(r"key|secret|token|password|connection", value, re.I)


def test_everything_it_copies_is_in_the_context_and_nothing_private() -> None:
    """.dockerignore lets through what COPY names: code, pins and the folder of models."""
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    default = dict(each.split("=", 1) for each in arguments("ARG"))["MODELS"]
    copied = [
        source.replace("${MODELS}", default)
        for rest in arguments("COPY")
        for source in rest.split()[:-1]
    ]
    assert {"function_app.py", "host.json", "functions", "shared"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not _is_ignored(source, rules), source
    for private in (
        *("local.settings.json", ".env", ".azure/test/.env", ".git/config", ".venv/bin/python"),
        *(
            "infra/main.bicep",
            "tests/conftest.py",
            "model_build/export.py",
            "functions/__pycache__/x.pyc",
        ),
    ):
        assert _is_ignored(private, rules), private


def test_the_image_has_the_models_where_bicep_says() -> None:
    """Baked-in models are read from the folder that COPY fills."""
    targets = {rest.split()[0]: rest.split()[1] for rest in arguments("COPY")}
    assert f"'file://{targets['${MODELS}']}'" in (INFRA / "app" / "gpu.bicep").read_text("utf-8")


def _is_ignored(path: str, rules: list[str]) -> bool:
    """As Docker has it: the last rule that matches the path or a folder above it decides."""
    parts = [
        str(each) for each in (PurePosixPath(path), *PurePosixPath(path).parents) if str(each) != "."
    ]
    ignored = False
    for rule in rules:
        pattern = rule.lstrip("!")
        if not rule or rule.startswith("#"):
            continue
        if any(_matches(part, pattern) for part in parts):
            ignored = not rule.startswith("!")
    return ignored


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(PurePosixPath(path).name, pattern[3:])
    names, wanted = path.split("/"), pattern.split("/")
    return len(names) == len(wanted) and all(map(fnmatch.fnmatch, names, wanted))
