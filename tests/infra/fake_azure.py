"""Stands for az and azd in the hooks' tests: notes what they are asked, answers from a file.

Knows no hook. The file, JSON: `env`, azd's variables; `calls`, in order; and what there is in
Azure: `group` (whether it exists), `resources`, `settings` of the router, `image` of the GPU app,
`deployments`, `applications`, `principals`, `provider` (its state), `user` (type of who is logged
in), `fails` (how a command that fails begins).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_QUERIES: dict[str, Any] = {
    "group exists": lambda azure: azure["group"],
    "resource list": lambda azure: azure["resources"],
    "resource show": lambda azure: {
        "properties": {"template": {"containers": [{"image": azure["image"]}]}}
    },
    "functionapp config appsettings list": lambda azure: [
        {"name": name, "value": value} for name, value in azure["settings"].items()
    ],
    "deployment sub list": lambda azure: azure["deployments"],
    "ad app list": lambda azure: azure["applications"],
    "ad sp list": lambda azure: azure["principals"],
    "account show": lambda azure: {"user": {"type": azure["user"], "name": "somebody"}},
    "provider show": lambda azure: {"registrationState": azure["provider"]},
}


def answer(azure: dict[str, Any], program: str, words: list[str]) -> Any:
    """What the program prints, as JSON; None: nothing. Changes `azure` as Azure and azd would change."""
    command = " ".join(words)
    azure["calls"].append(f"{program} {command}")
    if azure["fails"] and f"{program} {command}".startswith(azure["fails"]):
        raise SystemExit(1)
    if program == "azd" and words[:2] == ["env", "set"]:
        azure["env"][words[2]] = words[3]
        return None
    if command.startswith("ad app create"):
        azure["applications"] = [{"appId": "app-id"}]
        return azure["applications"][0]
    if command.startswith("ad sp create"):
        azure["principals"] = [{"appId": "app-id"}]
        return None
    if command.startswith("provider register"):
        azure["provider"] = "Registered"
        return None
    if command.startswith("ad app update"):
        return None
    (query,) = (each for each in _QUERIES if command.startswith(each))
    return _QUERIES[query](azure)


if __name__ == "__main__":
    _file = Path(sys.argv[1])
    _azure = json.loads(_file.read_text("utf-8"))
    try:
        _said = answer(_azure, sys.argv[2], sys.argv[3:])
        if _said is not None:
            print(json.dumps(_said))
    finally:
        _file.write_text(json.dumps(_azure), "utf-8")
