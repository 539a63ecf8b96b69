"""The house rules that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).parents[1]
OURS = {"shared", "functions", "model_build"}

# The rooms, and whom each may import beside itself and ROOT: the table of docs/architecture.md.
ROOT = (
    "contracts errors settings cards names vectors request_size partition compression command_line "
    "wording"
)
ROOMS = {
    # shared: what every role is made of
    "shared": "",
    "shared.contracts": "",  # its names are open to all like ROOT's, its files are its own
    "shared.context": "",
    "shared.wire": "",
    "shared.storage": "",
    "shared.observability": "context",
    "shared.models": "storage observability",
    "shared.engines": "models",
    "shared.inference": "engines models observability",
    "shared.backends": "wire context",
    "shared.dialects": "wire",
    "shared.routing": "backends context observability storage",
    "shared.bulk": "storage dialects backends routing observability context",
    # functions: the hosts
    "functions.http": "context observability",
    "functions.api": "http context observability storage models backends routing wire dialects bulk",
    "functions.bulk": "storage models backends routing bulk",
    "functions.backend": (
        "http functions.bulk storage observability models engines inference backends wire"
    ),
    "functions.embed": "models backends wire",
    "functions.local": "http api backend functions.bulk storage observability models backends bulk",
    "functions.cluster": "http api local observability models inference routing context wire",
    "functions": "http api backend observability engines inference routing",
    # what makes models
    "model_build": "storage models engines inference",
}


def _room(module: str) -> str:
    """The room of a dotted module: its folder, or the package at whose top level it stands."""
    package, _, rest = module.partition(".")
    inner = f"{package}.{rest.partition('.')[0]}"
    return inner if inner in ROOMS else package


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted module of each of our modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                file = TREE.joinpath(*module.split("."))
                is_module = file.is_dir() or file.with_suffix(".py").exists()
                yield node.lineno, module if is_module else node.module


def _allowed(room: str) -> set[str]:
    """Room names as the table abbreviates them: `storage` is shared.storage where there is one."""
    written = (each if "." in each else f"shared.{each}" for each in ROOMS[room].split())
    return {each if each in ROOMS else each.replace("shared.", "functions.") for each in written}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_table_says(room: str) -> None:
    """And all of it: what nobody needs any more is not allowed either."""
    package = TREE.joinpath(*room.split("."))
    is_top = any(other.startswith(f"{room}.") for other in ROOMS)
    root = {"shared", *(f"shared.{name}" for name in ROOT.split())}
    used = set()
    for path in sorted(package.glob("*.py") if is_top else package.rglob("*.py")):
        for line, module in _imported(path):
            if module.split(".")[0] not in OURS or _room(module) == room:
                continue
            where = f"{path.relative_to(TREE)}:{line}"
            assert module in root or _room(module) in _allowed(room), f"{where}: {room} imports {module}"
            used.add(_room(module))
    assert _allowed(room) <= used


def test_the_table_names_every_room() -> None:
    found = {
        ".".join(path.relative_to(TREE).parts)
        for package in ("shared", "functions")
        for path in (TREE / package).iterdir()
        if path.is_dir() and any(path.glob("*.py"))
    }
    assert found == {room for room in ROOMS if "." in room}
    top = {path.stem for path in (TREE / "shared").glob("*.py")} - {"__init__"}
    assert top | {"contracts"} == set(ROOT.split())
    roles = {path.stem for path in (TREE / "functions").glob("*.py")} - {"__init__"}
    assert roles == {"router", "cpu", "gpu", "keys"}


def test_the_page_has_the_same_table() -> None:
    """docs/architecture.md: a row a room, its last column whom it may import."""
    page = (TREE / "docs" / "architecture.md").read_text("utf-8")
    told: dict[str, set[str]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        room = (
            cells[0]
            .split(",")[0]
            .strip("`")
            .replace("/", ".")
            .replace("functions.router.py", "functions")
        )
        if len(cells) == 3 and room in ROOMS:
            names = (each.strip().replace("/", ".") for each in cells[2].split(",") if each.strip())
            told[room] = {
                each
                if "." in each
                else f"shared.{each}"
                if f"shared.{each}" in ROOMS
                else f"functions.{each}"
                for each in names
            }
    assert told == {room: _allowed(room) for room in ROOMS if room != "shared"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports at the top of a module, which run in order; those within functions may go round."""
    graph: dict[str, set[str]] = {}
    for package in sorted(OURS):
        for path in (TREE / package).rglob("*.py"):
            module = ".".join(path.relative_to(TREE).with_suffix("").parts)
            tree = ast.parse(path.read_text())
            top = {node.lineno for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
            graph[module] = {name for line, name in _imported(path) if line in top}
    graphlib.TopologicalSorter(graph).prepare()


def test_calling_a_backend_is_apart_from_how_it_is_reached() -> None:
    """A policy, a dispatcher or a host of another kind needs neither aiohttp nor stamina."""
    code = (
        "import sys, shared.backends.base, shared.routing.dispatch, shared.bulk.pipeline\n"
        "print({'aiohttp', 'stamina'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "set()\n"), ran.stderr


def _imports(path: Path) -> set[str]:
    return {module.split(".")[0] for _, module in _imported(path)}


def test_nothing_that_serves_imports_a_builder_or_a_pickle() -> None:
    """Only the GPU's engine reads models with transformers, and no served byte is unpickled."""
    for package in ("shared", "functions"):
        for path in (TREE / package).rglob("*.py"):
            forbidden = {"sentence_transformers", "transformers", "pickle", "msgpack_numpy"}
            if path == TREE / "shared" / "engines" / "torch.py":
                forbidden.remove("transformers")
            assert not _imports(path) & forbidden, path.name


def test_only_the_cluster_imports_ray() -> None:
    """It is not in the other hosts' requirements; what the cluster decides by needs it as little."""
    uses = {
        str(path.relative_to(TREE))
        for package in OURS
        for path in (TREE / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(n.name.split(".")[0] == "ray" for n in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
    }
    pure = {"call", "config", "placement", "rows", "scaling", "sizes", "units"}
    cluster = {f"functions/cluster/{path.name}" for path in TREE.glob("functions/cluster/*.py")}
    assert uses <= cluster - {f"functions/cluster/{name}.py" for name in pure}


@pytest.mark.parametrize("module", ["functions.router", "functions.cpu", "functions.local"])
def test_router_and_cpu_app_load_no_torch(module: str) -> None:
    """It is not in their zip, and takes seconds and hundreds of megabytes."""
    code = f"import sys, {module}; print({{'torch', 'transformers'}} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "set()\n"


def test_only_settings_and_entry_points_touch_the_environment() -> None:
    """`os.environ` is handed to Settings.from_env by entry points and read nowhere else."""
    entry_points = {
        TREE / "functions" / "__init__.py",  # sets what numpy reads
        TREE / "functions" / "keys.py",
        TREE / "functions" / "bulk" / "__main__.py",
        TREE / "functions" / "embed" / "__main__.py",
        TREE / "functions" / "local" / "__main__.py",
        TREE / "functions" / "cluster" / "__main__.py",
        TREE / "functions" / "cluster" / "serve.py",  # `serve deploy` calls it
        TREE / "functions" / "cluster" / "config.py",
        TREE / "functions" / "cluster" / "data.py",
        TREE / "model_build" / "__main__.py",
        TREE / "model_build" / "assemble.py",
        TREE / "model_build" / "rollout.py",
    }
    for package in ("shared", "functions", "model_build"):
        for path in set((TREE / package).rglob("*.py")) - entry_points:
            used = {
                n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
            }
            assert not used & {"environ", "getenv"}, path.name


def test_no_test_module_imports_another() -> None:
    """What several of them need stands in a module of its own: stand-ins in tests/fakes."""
    tests = TREE / "tests"
    rooms = sorted(room.parent for room in tests.glob("*/__init__.py"))  # and no node_modules
    for path in [*sorted(tests.glob("*.py")), *(path for room in rooms for path in room.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for module in modules:
                is_ours = module.startswith("tests.")
                named = [name for name in module.split(".") if name.startswith(("test_", "conftest"))]
                where = f"{path.relative_to(TREE)}:{node.lineno}"
                assert not (is_ours and named), f"{where} imports {module}"


def test_stand_ins_stand_in_one_place() -> None:
    """A fake in a test's own file is written once more by the next one who needs it."""
    tests = TREE / "tests"
    rooms = sorted(room.parent for room in tests.glob("*/__init__.py") if room.parent.name != "fakes")
    for path in [*tests.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]:
        for node in ast.parse(path.read_text()).body:
            named = isinstance(node, ast.ClassDef) and node.name.startswith(("Fake", "Memory"))
            assert not named, f"{path.relative_to(TREE)}:{node.lineno}: tests/fakes is the place for it"


_IMPORT = re.compile(r"\b(?:from|import) ((?:shared|functions|model_build)(?:\.[a-z_]\w*)+)")


def test_programs_in_strings_import_modules_that_are_there() -> None:
    """Neither a type checker nor a move of a module looks into a string that a new process runs."""
    missing = [
        f"{path.relative_to(TREE)}: {module}"
        for package in (*sorted(OURS), "tests")
        for path in sorted((TREE / package).rglob("*.py"))
        for module in _IMPORT.findall(path.read_text())
        if not TREE.joinpath(*module.split(".")).with_suffix(".py").exists()
        and not TREE.joinpath(*module.split("."), "__init__.py").exists()
    ]
    assert missing == []


def test_no_class_name_stands_twice() -> None:
    """A name that a reader meets in two files means the same thing in both."""
    found: dict[str, list[str]] = {}
    for package in sorted(OURS):
        for path in sorted((TREE / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, []).append(str(path.relative_to(TREE)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_the_keys_of_a_jobs_state_are_spelled_in_one_file() -> None:
    """Whoever moves a state blob must find one place."""
    spelled = {
        str(path.relative_to(TREE))
        for package in ("shared", "functions")
        for path in (TREE / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"/?(jobs|active|events)/|/?(job|split|final|status|manifest)\.json$", node.value)
    }
    assert spelled == {"shared/bulk/paths.py", "shared/models/manifest.py"}
