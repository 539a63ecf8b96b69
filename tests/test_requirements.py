"""Lock files: whole, with hashes, as their sources and what is installed have it; used everywhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from sys import version_info

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SERVED = "requirements.txt"
SAMPLE = "model_build/requirements-sample.txt"
BUILDER = "model_build/requirements.txt"
CPU_TORCH = "model_build/requirements-torch.txt"
GPU = "infra/gpu/requirements.txt"
GPU_TORCH = "infra/gpu/requirements-torch.txt"
OPENVINO = "infra/cpu/requirements-openvino.txt"
NNCF = "model_build/requirements-nncf.txt"
TESTS = "tests/requirements.txt"
WORKER = "tests/requirements-worker.txt"
BENCH = "tests/benchmarks/requirements.txt"
INFINITY = "tests/benchmarks/requirements-infinity.txt"
CLIENTS = "tests/clients/requirements.txt"
CLUSTER = "functions/cluster/requirements.txt"
AUDIT = ".github/requirements.txt"
BROWSER = "tests/page/requirements.txt"

INSTALLED_WITH = {
    SERVED: (),
    SAMPLE: (SERVED,),
    BUILDER: (SERVED, SAMPLE, CPU_TORCH),
    CPU_TORCH: (SERVED, SAMPLE, BUILDER),
    GPU: (SERVED, GPU_TORCH),
    GPU_TORCH: (SERVED, GPU),
    OPENVINO: (SERVED,),
    NNCF: (SERVED, SAMPLE, BUILDER, CPU_TORCH, OPENVINO),
    TESTS: (SERVED, SAMPLE, BUILDER, CPU_TORCH),
    WORKER: (SERVED, SAMPLE, BUILDER, CPU_TORCH, TESTS),
    BENCH: (SERVED, SAMPLE, BUILDER, CPU_TORCH, TESTS, OPENVINO, NNCF),
    CLUSTER: (SERVED,),
    CLIENTS: (),
    INFINITY: (CPU_TORCH,),
    AUDIT: (),
    BROWSER: (),
}
"""Each lock file, and those that are always in the same environment."""
HERE = (SERVED, SAMPLE, BUILDER, CPU_TORCH, TESTS, WORKER)
"""What `make test` installs, and so whoever runs this."""
NOT_HERE = (GPU_TORCH, BENCH, AUDIT, OPENVINO, NNCF)
NOT_NEEDED = {"azurefunctions-extensions-base", "sentence-transformers"}
"""Only SDK-type bindings need the first, of which no app has one: see tests/requirements-worker.in. Only
the code of the sample model's package needs the other: see model_build/requirements-sample.in."""
APART = (CLIENTS, INFINITY, AUDIT, BROWSER)
"""Environments of their own, which need not agree with the others."""
CLIENTS_PACKAGES = (
    ROOT / ".venv" / "clients" / "lib" / f"python{version_info[0]}.{version_info[1]}" / "site-packages"
)


def _entries(lock: str) -> list[str]:
    """Each requirement with its hashes, on one line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / lock).read_text("utf-8"), flags=re.M)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def _locked(lock: str) -> dict[str, Requirement]:
    """Name -> what stands before the hashes."""
    found: dict[str, Requirement] = {}
    for entry in _entries(lock):
        if not entry.startswith("--"):
            requirement = Requirement(entry.partition(" --hash")[0])
            found[canonicalize_name(requirement.name)] = requirement
    return found


def _together(lock: str) -> dict[str, Requirement]:
    return {name: each for file in (lock, *INSTALLED_WITH[lock]) for name, each in _locked(file).items()}


def _version(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def _asked(source: Path) -> Iterator[Requirement]:
    """What a .in asks for, and those that it includes."""
    for line in source.read_text("utf-8").splitlines():
        if line.startswith("-r "):
            yield from _asked(source.parent / line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            yield Requirement(line)


def _applies(requirement: Requirement, extras: set[str] | None = None) -> bool:
    """Whether it is for this Python and platform, by one of the extras or without any."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": each}) for each in ("", *(extras or ())))


def test_every_lock_file_is_listed() -> None:
    """A file that nobody listed would be checked by nothing below."""
    files = {path for path in ROOT.rglob("requirements*.txt") if not _is_foreign(path)}
    assert {path.relative_to(ROOT).as_posix() for path in files} == set(INSTALLED_WITH)
    sources = {path for path in ROOT.rglob("requirements*.in") if not _is_foreign(path)}
    made = {path.with_suffix(".txt").relative_to(ROOT).as_posix() for path in sources}
    # The one that is written by hand, because uv takes no package from two places.
    assert made == set(INSTALLED_WITH) - {CPU_TORCH}


def _is_foreign(path: Path) -> bool:
    return bool({".venv", "node_modules", ".blitz"} & set(path.relative_to(ROOT).parts))


@pytest.mark.parametrize("lock", INSTALLED_WITH)
def test_everything_locked_is_one_version_with_hashes(lock: str) -> None:
    """Wheels alone: a source distribution would run, and what it takes to build it nobody has locked."""
    options = [entry for entry in _entries(lock) if entry.startswith("-")]
    # No index, no other place to look, and no editable.
    assert options == ["--only-binary :all:"]
    for entry in _entries(lock):
        if entry not in options:
            pinned = r"[a-z0-9][a-z0-9-]*==[\w.]+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+"
            assert re.fullmatch(pinned, entry), entry[:80]


@pytest.mark.parametrize("lock", [each for each in INSTALLED_WITH if each != CPU_TORCH])
def test_what_is_asked_for_is_locked(lock: str) -> None:
    """A version changed in the .in without `make lock` would be installed nowhere."""
    together = _together(lock)
    asked = list(_asked((ROOT / lock).with_suffix(".in")))
    assert asked
    for each in asked:
        assert _version(together[canonicalize_name(each.name)]) == _version(each), each.name


@pytest.mark.parametrize("lock", INSTALLED_WITH)
def test_files_that_are_installed_together_agree(lock: str) -> None:
    """None says again, and so perhaps otherwise, what one beside it says."""
    for other in INSTALLED_WITH[lock]:
        assert not _locked(lock).keys() & _locked(other).keys()


def test_all_lock_files_agree() -> None:
    """What serves in a test serves in the image."""
    versions: dict[str, Version] = {}
    for lock in INSTALLED_WITH:
        if lock not in APART:
            for name, each in _locked(lock).items():
                assert versions.setdefault(name, _version(each)) == _version(each), name


def test_what_is_installed_is_what_is_locked() -> None:
    """Each package that the lock files name for this platform, at the version that they name."""
    for lock in HERE:
        for name, each in _locked(lock).items():
            if _applies(each):
                installed = Version(metadata.version(name))
                # A CPU build of torch has a name of its own after the version.
                assert Version(installed.public) == _version(each), name


def test_the_clients_are_what_is_locked_and_need_only_boto3() -> None:
    """In their own environment, where litellm lacks what only its Bedrock provider imports."""
    found = list(metadata.distributions(path=[str(CLIENTS_PACKAGES)]))
    if not found and "CI" not in os.environ:
        pytest.skip("the clients are not installed: make .venv/clients/installed")
    installed: dict[str, metadata.Distribution] = {canonicalize_name(each.name): each for each in found}
    missing: set[str] = set()
    for name, each in _locked(CLIENTS).items():
        if _applies(each):
            assert Version(installed[name].version) == _version(each), name
            needs = [need for need in map(Requirement, installed[name].requires or ()) if _applies(need)]
            missing |= {canonicalize_name(need.name) for need in needs} - installed.keys()
    assert missing == {"boto3"}


@pytest.mark.parametrize("lock", [each for each in INSTALLED_WITH if each not in (CLIENTS, INFINITY)])
def test_what_locked_packages_need_is_locked(lock: str) -> None:
    """The whole tree, as the packages themselves tell it: pip is told to look for nothing more."""
    together = _together(lock)
    for name in _locked(lock):
        try:
            needs = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            apart = (GPU_TORCH, BENCH, CLUSTER, AUDIT, OPENVINO, NNCF, BROWSER)
            assert lock in apart or not _applies(together[name]), name
            continue
        for need in map(Requirement, needs):
            key = canonicalize_name(need.name)
            if _applies(need, set(together[name].extras)) and key not in NOT_NEEDED:
                assert key in together, f"{name} needs {need}"
                version = _version(together[key])
                assert need.specifier.contains(version, prereleases=True), f"{name} needs {need}"


def test_torch_is_in_its_own_lock_files_alone() -> None:
    """Flex Consumption builds requirements.txt into router and CPU app, which have no room for it; and a
    newcomer's first minute has none either."""
    holds = {lock for lock in INSTALLED_WITH if "torch" in _locked(lock)}
    assert holds == {CPU_TORCH, GPU_TORCH}
    # The second engine and what builds for it are in no app unless they are asked for.
    for name, only in (("openvino", OPENVINO), ("nncf", NNCF)):
        assert {lock for lock in INSTALLED_WITH if name in _locked(lock)} == {only}
    heavy = {"sentence-transformers", "transformers", "onnx", "scipy"}
    front_door = _together(SAMPLE).keys()
    assert not heavy & front_door
    assert not [name for name in front_door if name.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.parametrize(
    "file",
    [
        *("Makefile", "infra/gpu/Dockerfile", "infra/cpu/Dockerfile", "infra/hooks/publish.ps1"),
        ".github/workflows/ci.yml",
    ],
)
def test_pip_is_always_told_to_check_hashes(file: str) -> None:
    """And to install nothing but the lock files' packages."""
    text = re.sub(r"[\\`]\n", " ", (ROOT / file).read_text("utf-8"))
    installs = re.findall(r"\bpip install [^&|;\n]*", text)
    assert installs
    for each in installs:
        # The index that who builds the image chose: it has builds whose hashes we do not know.
        if '--index-url "$TORCH_INDEX"' not in each:
            assert "--require-hashes" in each
            assert "--no-deps" in each
