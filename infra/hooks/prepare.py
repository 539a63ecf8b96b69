"""Before provisioning: what Bicep cannot make, and what Azure knows that this azd environment does not.

Whoever deploys from an empty environment over a service that is there must not put back a default,
an older image or another set of keys. So what is deployed is read first, and each difference has
one of three answers: what this environment never changed follows Azure, what only it changed is
asked for and stays, and callers' keys that both sides changed stop the deployment. Knows no
template; runs on a plain Python, with az and azd.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEPLOYED = "deployedParameters"
"""Bicep's output, which azd keeps: variable -> value, as this environment last saw them deployed."""
KEYS = "API_KEY_HASHES"
IMAGES = {"gpu": "SERVICE_GPU_IMAGE_NAME", "cpu-container": "SERVICE_CPU_CONTAINER_IMAGE_NAME"}
"""azd's variable for the image of each service that is a container."""
UNHEARD = (
    "No alert is deployed, because nobody would get it: `azd env set ALERT_EMAILS you@example.org` or "
    "ALERT_WEBHOOK names who does."
)


class Azd:
    """The azd environment: its variables, which changes reach for later steps and for azd itself."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._values = dict(environ)
        self.name = environ["AZURE_ENV_NAME"]
        self.seen: dict[str, str] = json.loads(environ.get(DEPLOYED) or "{}")

    def get(self, name: str) -> str:
        """Empty if it is not set."""
        return self._values.get(name, "")

    def set(self, name: str, value: str) -> None:
        """Write a value of the azd environment, unless it is that already."""
        if self._values.get(name) != value:
            _run("azd", "env", "set", name, value)
            self._values[name] = value

    def follow(self, name: str, deployed: str) -> None:
        """Take what is deployed, unless somebody set another value here since it was last seen.

        An empty value is one only where something was seen: pipelines pass on as empty what nobody set.
        """
        mine = self._values.get(name)
        if not self.seen:
            mine = mine or None
        if mine is None and self.seen.get(name) == deployed:
            return
        if mine is None or mine == self.seen.get(name):
            self.set(name, deployed)


def prepare(azd: Azd) -> None:
    """All steps in order; each leaves alone what an earlier run or the user has set."""
    register_provider(azd)
    recall(azd)
    make_application(azd)
    make_first_key(azd)
    if not azd.get("BUDGET_START"):
        azd.set("BUDGET_START", datetime.date.today().strftime("%Y-%m-01"))
    if not azd.get("AZURE_PRINCIPAL_TYPE"):
        is_user = _ask("account", "show", *_subscription(azd))["user"]["type"] == "user"
        azd.set("AZURE_PRINCIPAL_TYPE", "User" if is_user else "ServicePrincipal")
    if not (azd.get("ALERT_EMAILS") or azd.get("ALERT_WEBHOOK")):
        print(UNHEARD)


def register_provider(azd: Azd) -> None:
    """Subnets are delegated to Microsoft.App, which without a GPU no resource has Azure register."""
    provider = ("--namespace", "Microsoft.App", *_subscription(azd))
    if azd.get("NETWORK_ISOLATED") != "true":
        return
    if _ask("provider", "show", *provider)["registrationState"] != "Registered":
        _run("az", "provider", "register", *provider, "--wait")


def recall(azd: Azd) -> None:
    """Learn what is deployed. An az that cannot tell stops the deployment: unknown is not absent."""
    group = f"rg-{azd.name}"
    if not _ask("group", "exists", "--name", group, *_subscription(azd)):
        return
    deployed = _last_deployed(azd)
    for name, value in deployed.items():
        if name != KEYS:
            azd.follow(name, value)
    for resource in _ask("resource", "list", "--resource-group", group, *_subscription(azd)):
        service = (resource.get("tags") or {}).get("azd-service-name")
        if service in IMAGES:
            app = _ask("resource", "show", "--ids", resource["id"])
            # Always: whoever deployed last, the next provisioning keeps their image.
            azd.set(IMAGES[service], app["properties"]["template"]["containers"][0]["image"])
        elif service == "router":
            found = _ask("functionapp", "config", "appsettings", "list", "--ids", resource["id"])
            settings = {each["name"]: each["value"] for each in found}
            _follow_keys(azd, settings.get("BLITZ_API_KEY_HASHES") or "")


def _last_deployed(azd: Azd) -> dict[str, str]:
    """Parameters of the last deployment that succeeded; none of a version that did not tell them."""
    found = [
        each["properties"]
        for each in _ask("deployment", "sub", "list", *_subscription(azd))
        if (each.get("tags") or {}).get("azd-env-name") == azd.name
        and each["properties"]["provisioningState"] == "Succeeded"
        and DEPLOYED in (each["properties"].get("outputs") or {})
    ]
    if not found:
        return {}
    last = max(found, key=lambda properties: str(properties["timestamp"]))
    values: dict[str, str] = last["outputs"][DEPLOYED]["value"]
    return values


def _follow_keys(azd: Azd, deployed: str) -> None:
    """As `Azd.follow`; but two sides that both changed them would lose a key, or bring one back."""
    mine, seen, theirs = (
        set(filter(None, each.split(","))) for each in (azd.get(KEYS), azd.seen.get(KEYS, ""), deployed)
    )
    if not theirs:
        return
    if not mine or mine == seen:
        azd.set(KEYS, deployed)
    elif (theirs - mine - seen) or ((mine & seen) - theirs):
        sys.exit(
            f"{KEYS}: callers' keys were changed here and in what is deployed. "
            f"`azd env set {KEYS} ''` and another run take the deployed ones; then add or remove yours."
        )


def make_application(azd: Azd) -> None:
    """The Entra application that stands for the backends, found by its name or made."""
    if azd.get("BACKEND_APP_ID"):
        return
    name = f"blitz-embedding-{azd.name}"
    # A --display-name would find every app whose name begins so.
    found = _ask("ad", "app", "list", "--filter", f"displayName eq '{name}'")
    if not found:
        version = ("--requested-access-token-version", "2")
        made = ("--display-name", name, "--sign-in-audience", "AzureADMyOrg", *version)
        found = [_ask("ad", "app", "create", *made)]
    app_id = found[0]["appId"]
    _run("az", "ad", "app", "update", "--id", app_id, "--identifier-uris", f"api://{app_id}")
    # Without a service principal in the tenant the router gets no token for it.
    if not _ask("ad", "sp", "list", "--filter", f"appId eq '{app_id}'"):
        _run("az", "ad", "sp", "create", "--id", app_id, "--output", "none")
    azd.set("BACKEND_APP_ID", app_id)


def make_first_key(azd: Azd) -> None:
    """Into a file for its owner alone; never to a log. API Management has keys of its own."""
    if azd.get(KEYS) or azd.get("API_MANAGEMENT_ENABLED") == "true":
        return
    if os.environ.get("CI") or os.environ.get("TF_BUILD"):
        sys.exit(f"set {KEYS}: a pipeline makes no key, nobody would get it. `python -m functions.keys`")
    file = Path(".azure", azd.name, "first-key")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        # A run that was cut off had made it: callers may have it already.
        key = file.read_text("ascii").strip()
    else:
        key = secrets.token_urlsafe(32)
        with open(
            os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii"
        ) as out:
            out.write(key + "\n")
    azd.set(KEYS, hashlib.sha256(key.encode()).hexdigest())
    print(f"A key for callers is in {file.as_posix()}: keep it elsewhere, then delete the file.")


def _subscription(azd: Azd) -> tuple[str, ...]:
    """azd's, which need not be the one that az would take."""
    given = azd.get("AZURE_SUBSCRIPTION_ID")
    return ("--subscription", given) if given else ()


def _ask(*arguments: str) -> Any:
    """What az answers, in JSON: whole answers, because cmd.exe would not pass a query on as it is."""
    return json.loads(_run("az", *arguments, "--output", "json") or "null")


def _run(program: str, *arguments: str) -> str:
    """What it prints, which nobody sees: an app's settings are among it. Its errors go where ours go."""
    # On Windows both may be files that only a full path starts.
    found = shutil.which(program)
    if found is None:
        sys.exit(f"{program} is not installed, or not on PATH")
    ran = subprocess.run([found, *arguments], stdout=subprocess.PIPE, text=True)  # noqa: S603
    if ran.returncode != 0:
        sys.exit(f"{program} {' '.join(arguments[:3])} failed: {ran.returncode}")
    return ran.stdout


if __name__ == "__main__":
    prepare(Azd(os.environ))
