"""Writes each route of a Router as a folder of its own, with all modules that its texts go through.

A Router (Asym in older versions) has other modules for queries than for documents. It does not know what
is built of the folders.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from model_build.configuration import Module, RouterConfig
from model_build.folder import fields_of, read_json, read_value, refused
from shared.errors import printable
from shared.models.manifest import RouteName

KINDS = ("Router", "Asym")
_ROUTES: tuple[RouteName, ...] = ("document", "query")
_CONFIGURATION = "config_sentence_transformers.json"


def with_routes(folder: Path, out: Path) -> dict[RouteName, Path]:
    """Route -> its folder in the new folder `out`, the default route first; empty without a Router.

    Raises InvalidInput (field "model") for routes other than query and document.
    """
    listed = read_value(folder / "modules.json")
    modules = [] if listed is None else fields_of(listed, list[Module], "modules.json")
    found = [number for number, module in enumerate(modules) if _kind(module.type) in KINDS]
    if not found:
        return {}
    if len(found) > 1:
        raise refused("the model has more than one Router")
    place = _inside(folder, modules[found[0]].path)
    config = _router(place)
    chains = [[(module.type, _inside(folder, module.path)) for module in modules]]
    before, after = chains[0][: found[0]], chains[0][found[0] + 1 :]
    default = config.parameters.default_route or (
        next(iter(config.structure)) if config.parameters.allow_empty_key else "document"
    )
    written: dict[RouteName, Path] = {}
    for route in sorted(_ROUTES, key=lambda name: name != default):
        own = [
            (config.types.get(name, "none"), _inside(place, name)) for name in config.structure[route]
        ]
        written[route] = _write(folder, out / route, [*before, *own, *after])
    return written


def _router(place: Path) -> RouterConfig:
    for name in ("router_config.json", "config.json"):  # the second is that of older versions
        if (stated := read_json(place / name)) is not None:
            break
    else:
        raise refused("there is no router_config.json, which the Router of modules.json needs")
    config = fields_of(stated, RouterConfig, name)
    parameters = config.parameters
    if set(config.structure) != set(_ROUTES) or parameters.default_route not in (None, *_ROUTES):
        raise refused(
            f"the Router has the routes {printable(', '.join(sorted(config.structure)))}; this builder "
            "reads one of query and document"
        )
    if parameters.route_mappings:
        raise refused("the Router has route_mappings, as for images; this builder reads texts alone")
    return config


def _kind(type_name: str) -> str:
    package, _, name = type_name.rpartition(".")
    return name if package.split(".")[0] == "sentence_transformers" else ""


def _inside(folder: Path, path: str) -> Path:
    where = Path(path)
    if where.is_absolute() or ".." in where.parts or "\0" in path:
        raise refused("a module's folder is outside the model")
    return folder / where


def _write(folder: Path, out: Path, chain: list[tuple[str, Path]]) -> Path:
    out.mkdir(parents=True)
    listed = []
    for number, (type_name, place) in enumerate(chain):
        path = f"module_{number}"
        listed.append({"idx": number, "name": str(number), "path": path, "type": type_name})
        if place.is_dir():  # a Normalize has none in a repository
            (out / path).symlink_to(place.resolve())
    (out / "modules.json").write_text(json.dumps(listed), "utf-8")
    if (folder / _CONFIGURATION).is_file():
        shutil.copyfile(folder / _CONFIGURATION, out / _CONFIGURATION)
    return out
