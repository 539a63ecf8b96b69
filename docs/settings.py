"""Writes docs/settings.md, the reference of all settings: `.venv/bin/python -m docs.settings`.

From shared/settings.py (names, types, defaults, what each does) and infra (which app gets which in
Azure). Knows no setting by name. A test fails while the page is not what this
would write.
"""

from __future__ import annotations

import inspect
import re
import tempfile
from pathlib import Path

from msgspec.structs import FieldInfo, fields

from shared.settings import CHOICES, Settings, variable_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"

_UNITS = {
    "s": "seconds",
    "ms": "milliseconds",
    "days": "days",
    "bytes": "bytes",
    "tokens": "tokens",
    "texts": "texts",
    "rows": "rows",
    "models": "models",
    "requests": "requests",
    "connections": "connections",
    "files": "files",
    "batches": "batches",
    "inputs": "texts",
    "threads": "threads",
    "concurrency": "calls",
}
"""By the last word of a number's name."""

_TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "`1` or `0`",
    "Path": "folder",
}

_APPS = {
    "shared.bicep": "all",
    "app/router.bicep": "router",
    "app/cpu.bicep": "CPU",
    "app/gpu.bicep": "GPU",
}
"""Which apps each file of infra sets its settings for."""

_HEAD = """# Settings

<!-- Written by `.venv/bin/python -m docs.settings` from shared/settings.py and infra. Edit those. -->

Settings are environment variables, read once at the start. A variable that begins with `BLITZ_` and is
no setting stops the start, and so does a value that cannot be right; the message names the variable.
In lists, commas separate the items. In Azure these are application settings of the three apps.

The column *Azure* says which apps `azd up` sets the variable for, with which value, or by which
parameter of [deploy.md](deploy.md#parameters). Where it is empty the default applies, and
`az functionapp config appsettings set` changes it (for the GPU app
`az containerapp update --set-env-vars`).
"""


def render() -> str:
    """The whole page."""
    described = _described()
    rows = [_row(field, described[field.name]) for field in fields(Settings)]
    head = [
        "| variable | type, unit | default | Azure | what it does |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([_HEAD, *head, *rows, ""])


def _described() -> dict[str, str]:
    """Settings' docstring by field. Fields that share an entry share its text.

    Raises LookupError for a field that has no entry, and for an entry that is no field.
    """
    text = re.sub(r"\n {4,}", " ", inspect.cleandoc(Settings.__doc__ or ""))
    entries = re.findall(r"(?m)^([a-z_]+(?:, [a-z_]+)*): (.+)$", text)
    described = {name: told for names, told in entries for name in names.split(", ")}
    if differing := set(described) ^ {field.name for field in fields(Settings)}:
        raise LookupError(
            f"of Settings' fields and its docstring only one has: {', '.join(sorted(differing))}"
        )
    return described


def _row(field: FieldInfo, told: str) -> str:
    cells = (
        f"`{variable_of(field.name)}`",
        _type(field),
        _default(field),
        _azure(field.name),
        _linked(told),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _linked(told: str) -> str:
    """With the other settings that it names as the variables that they are."""
    names = "|".join(field.name for field in fields(Settings) if "_" in field.name)
    return re.sub(
        rf"\b(?:{names})\b", lambda found: f"`{variable_of(found[0])}`", told.replace("*", "\\*")
    )


def _type(field: FieldInfo) -> str:
    if choices := CHOICES.get(field.name):
        return " or ".join(f"`{each}`" for each in choices)
    kind = Settings.__annotations__[field.name]
    if kind.startswith("tuple"):
        return "list"
    unit = _UNITS.get(field.name.rpartition("_")[2]) if kind in ("int", "float") else None
    return _TYPES[kind] + (f", {unit}" if unit else "")


def _default(field: FieldInfo) -> str:
    default = field.default
    if isinstance(default, bool):
        return f"`{int(default)}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, Path):
        return f"`{default}`".replace(tempfile.gettempdir(), "TEMPORARY-FOLDER")
    return f"`{default}`" if default not in ("", ()) else ""


def _azure(name: str) -> str:
    """Which apps are given it, with which value or by which of azd's parameters."""
    infra = ROOT / "infra"
    parameters = dict(
        re.findall(
            r"param (\w+) = [^\n]*?readEnvironmentVariable\(\s*'(\w+)'",
            (infra / "main.bicepparam").read_text("utf-8"),
        )
    )
    found = []
    for file, app in _APPS.items():
        for value in re.findall(rf"\b{variable_of(name)}: (.+)", (infra / file).read_text("utf-8")):
            by = [f"`{parameters[word]}`" for word in re.findall(r"\w+", value) if word in parameters]
            literal = re.fullmatch(r"'([^$']+)'", value)
            told = f" `{literal[1]}`" if literal else f" by {', '.join(by)}" if by else ""
            found.append(f"{app}{told}")
    return "; ".join(found)


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
