"""Prints which resources a change of infra/ would change, as Markdown: `review.py BASE HEAD`.

BASE and HEAD are folders with the output of `bicep snapshot`, a NAME.snapshot.json for each variant.
Needs only the standard library. Knows no resource type.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 60_000
"""GitHub refuses a comment of more than 65,536."""
_VALUE_CHARACTERS = 120

Resources = Mapping[str, Any]
"""Resource id -> resource."""


def read_snapshots(folder: Path) -> dict[str, Resources]:
    """Variant -> its resources, from each NAME.snapshot.json in `folder`."""
    return {
        file.name.removesuffix(".snapshot.json"): {
            each["id"]: each for each in json.loads(file.read_text("utf-8"))["predictedResources"]
        }
        for file in sorted(folder.glob("*.snapshot.json"))
    }


def report(base: Mapping[str, Resources], head: Mapping[str, Resources]) -> str:
    """Markdown with the resources made, removed or changed in each variant; cut at MOST_CHARACTERS."""
    parts = ["### What would be deployed differently\n"]
    for variant in sorted({*base, *head}):
        lines = list(_changes(base.get(variant, {}), head.get(variant, {})))
        if lines:
            parts.append(f"<details><summary><b>{variant}</b>: {len(lines)}</summary>\n")
            parts += [*lines, "\n</details>\n"]
    if len(parts) == 1:
        return f"{parts[0]}\nNothing, in any variant of `infra/variants`.\n"
    text = "\n".join(parts)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}\n\n(cut: it is longer)\n"


def _changes(base: Resources, head: Resources) -> Iterator[str]:
    for where in sorted({*base, *head}):
        if where not in base:
            yield f"- made: `{_short(where)}`"
        elif where not in head:
            yield f"- **removed**: `{_short(where)}`"
        elif changed := list(_differences(base[where], head[where])):
            yield f"- changed: `{_short(where)}`"
            for path, old, new in changed:
                yield f"    - `{path}`: `{_shown(old)}` → `{_shown(new)}`"


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Paths of the properties that differ, with both values; None for one that is missing."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
    elif _is_named(old) and _is_named(new):
        yield from _differences(_by_name(old), _by_name(new), path)
    elif old != new:
        yield path, old, new


def _is_named(value: Any) -> bool:
    """Whether `value` is a list of named objects, such as app settings, whose order is irrelevant."""
    return isinstance(value, list) and all(isinstance(each, dict) and "name" in each for each in value)


def _by_name(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        each["name"]: {name: value for name, value in each.items() if name != "name"} for each in items
    }


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    text = text.replace("`", "'")
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}…"


def _short(where: str) -> str:
    """The resource's type and name, without subscription and resource group."""
    return where.rpartition("/providers/")[2] or where


if __name__ == "__main__":
    print(report(*(read_snapshots(Path(folder)) for folder in sys.argv[1:3])))
