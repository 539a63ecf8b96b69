"""The images of the GPU app and of a CPU app in a container: what is in them, and who runs them."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from tests.infra.bicep import INFRA, ROOT, apps_of
from tests.infra.dockerfile import CPU, GPU, arguments, instructions
from tests.infra.linters import lint

both = pytest.mark.parametrize("file", [GPU, CPU], ids=["gpu", "cpu"])


@both
def test_hadolint_has_no_remark(file: Path) -> None:
    """The linter of Dockerfiles, and in it ShellCheck for what they run."""
    lint("hadolint", file)


@both
def test_the_base_is_the_functions_image_of_our_python(file: Path) -> None:
    """One stage, a tag that names host and Python, and no other registry."""
    assert arguments("FROM", file) == ["mcr.microsoft.com/azure-functions/python:4-python3.11"]


@both
def test_it_does_not_run_as_root(file: Path) -> None:
    """The last USER is a number, which platforms can check, and not 0; its port is one it may open."""
    assert arguments("USER", file) == ["10001"]
    (port,) = arguments("EXPOSE", file)
    assert int(port) > 1024
    assert f"ASPNETCORE_URLS=http://+:{port} " in " ".join(arguments("ENV", file))


@both
def test_a_start_compiles_nothing(file: Path) -> None:
    """Bytecode is made of the code that was copied, before a user who may not write takes over."""
    steps = instructions(file)
    compiled = steps.index(("RUN", "python -m compileall -q /home/site/wwwroot"))
    code = [n for n, (name, rest) in enumerate(steps) if name == "COPY" and "wwwroot" in rest]
    assert code
    assert max(code) < compiled < steps.index(("USER", "10001"))


@pytest.mark.parametrize(
    ("file", "variant", "app"), [(GPU, "complete", "gpu"), (CPU, "container", "cpu")], ids=["gpu", "cpu"]
)
def test_the_ingress_leads_to_its_port(file: Path, variant: str, app: str) -> None:
    """Dockerfile and Bicep name the same port, and the same role."""
    found = apps_of(variant)[app]["properties"]
    assert arguments("EXPOSE", file) == [str(found["configuration"]["ingress"]["targetPort"])]
    assert f"BLITZ_ROLE={app}" in " ".join(arguments("ENV", file)).split()


def test_the_cpu_app_s_image_has_no_torch() -> None:
    """What the zip apps install, and OpenVINO beside it where it is asked for."""
    installs = [rest for rest in arguments("RUN", CPU) if "pip" in rest]
    assert len(installs) == 1
    always, _, asked = installs[0].partition('if [ "${OPENVINO}" = true ]; then')
    found = [re.findall(r"--requirement ([^\s;]+)", each) for each in (always, asked)]
    assert found == [["/build/requirements.txt"], ["/build/requirements-openvino.txt"]]
    assert arguments("ARG", CPU) == ["OPENVINO=false"]
    copied = "requirements.txt infra/cpu/requirements-openvino.txt /build/"
    assert ("COPY", copied) in instructions(CPU)


def test_azd_builds_the_cpu_app_s_image_with_what_was_asked_for() -> None:
    """CPU_OPENVINO is the image's argument; where nobody set it, its default."""
    described = (ROOT / "azure.yaml").read_text("utf-8")
    _, _, docker = described.partition("path: infra/cpu/Dockerfile")
    assert "- OPENVINO=${CPU_OPENVINO=false}" in docker.partition("  gpu:")[0]


def test_the_largest_layer_is_the_lowest_and_code_the_highest() -> None:
    """A push and a pull then move what changed: code alone, or packages and code, seldom torch."""
    steps = [rest for name, rest in instructions() if name in ("RUN", "COPY")]
    torch, packages, models, code = (
        next(number for number, rest in enumerate(steps) if re.match(pattern, rest))
        for pattern in (
            r"if .*TORCH_INDEX",
            r"pip .*/build/requirements\.txt",
            r"\$\{MODELS\}",
            "function_app",
        )
    )
    assert torch < packages < models < code


def test_pip_leaves_no_cache_and_installs_what_is_locked() -> None:
    """Gigabytes of wheels would stay in the layer; hashes go for all but an index of one's own."""
    installs = re.findall(r"pip install ([^&;]+)", " ".join(arguments("RUN")))
    files = [re.findall(r"--requirement /build/(\S+)", each) for each in installs]
    assert files == [
        ["requirements-torch.txt"],
        [],
        ["requirements.txt", "infra/gpu/requirements.txt"],
    ]
    assert all("--no-cache-dir" in each for each in installs)
    # Builds for CUDA 12: the platform's driver is too old for PyPI's.
    index = dict(each.split("=", 1) for each in arguments("ARG"))["TORCH_INDEX"]
    assert re.fullmatch(r"https://download\.pytorch\.org/whl/cu12\d", index)
    command = re.search(r"\$\((grep .+?)\)", installs[1])
    assert command is not None
    words = shlex.split(command[1].replace("/build/", f"{INFRA}/gpu/"))
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"torch==[\d.]+\n", found)


@both
def test_no_secret_is_baked_in(file: Path) -> None:
    """Build arguments and variables stay readable in every layer."""
    for value in arguments("ARG", file) + arguments("ENV", file):
        assert not re.search(r"key|secret|token|password|connection", value, re.I)


@both
def test_everything_it_copies_is_in_the_context_and_nothing_private(file: Path) -> None:
    """.dockerignore lets through what COPY names: code, pins and the folder of models."""
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    default = dict(each.split("=", 1) for each in arguments("ARG", file)).get("MODELS", "")
    copied = [
        source.replace("${MODELS}", default)
        for rest in arguments("COPY", file)
        for source in rest.split()[:-1]
    ]
    assert {"function_app.py", "host.json", "functions", "shared"} <= set(copied)
    for source in [*copied, file.relative_to(ROOT).as_posix()]:
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
