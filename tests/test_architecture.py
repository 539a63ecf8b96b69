"""The house rules that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "shared": {"shared"},
    "functions": {"functions", "shared"},
    "model_build": {"model_build", "shared"},
}
OURS = {"shared", "functions", "model_build", "tests", "infra", "function_app"}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str) -> None:
    """functions -> shared <- model_build, and nothing else."""
    for path in (ROOT / package).rglob("*.py"):
        assert _imports(path) & OURS <= ALLOWED[package], path.name


def test_nothing_that_serves_imports_a_builder_or_a_pickle() -> None:
    """Only the GPU's engine reads models with transformers, and no served byte is unpickled."""
    for package in ("shared", "functions"):
        for path in (ROOT / package).rglob("*.py"):
            forbidden = {"sentence_transformers", "transformers", "pickle", "msgpack_numpy"}
            if path == ROOT / "shared" / "engines" / "torch.py":
                forbidden.remove("transformers")
            assert not _imports(path) & forbidden, path.name


@pytest.mark.parametrize("module", ["functions.router", "functions.cpu", "functions.local"])
def test_router_and_cpu_app_load_no_torch(module: str) -> None:
    """It is not in their zip, and takes seconds and hundreds of megabytes."""
    code = f"import sys, {module}; print({{'torch', 'transformers'}} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "set()\n"


def test_only_settings_and_entry_points_touch_the_environment() -> None:
    """`os.environ` is handed to Settings.from_env by entry points and read nowhere else."""
    entry_points = {
        ROOT / "functions" / "bulk.py",
        ROOT / "functions" / "local.py",
        ROOT / "model_build" / "__main__.py",
    }
    for package in ("shared", "functions", "model_build"):
        for path in set((ROOT / package).rglob("*.py")) - entry_points:
            used = {
                n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
            }
            assert not used & {"environ", "getenv"}, path.name
