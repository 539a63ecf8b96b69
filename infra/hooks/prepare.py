"""Hook before provisioning: creates what Bicep cannot, and reads the deployed values into azd.

A deployment from an empty azd environment must not reset parameters, the image or the keys of an
existing service. So the deployed values are read first, by three rules: a value that was not changed
in this environment follows what is deployed; a value that was changed only here stays; if callers'
keys were changed on both sides, the deployment stops. Does not know the templates. Needs only the
standard library, az and azd.
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
"""Bicep's output, which azd stores: variable -> value at this environment's last deployment."""
KEYS = "API_KEY_HASHES"
IMAGES = {"gpu": "SERVICE_GPU_IMAGE_NAME", "cpu-container": "SERVICE_CPU_CONTAINER_IMAGE_NAME"}
"""Service that is a container -> azd's variable for its image."""
UNHEARD = (
    "No alert is deployed, because nobody would get it: `azd env set ALERT_EMAILS you@example.org` or "
    "ALERT_WEBHOOK names who does."
)


class Azd:
    """The azd environment: its variables. Changes are written to azd and seen by later steps."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._values = dict(environ)
        self.name = environ["AZURE_ENV_NAME"]
        self.seen: dict[str, str] = json.loads(environ.get(DEPLOYED) or "{}")

    def get(self, name: str) -> str:
        """The variable's value; "" if it is not set."""
        return self._values.get(name, "")

    def set(self, name: str, value: str) -> None:
        """Set a variable of the azd environment, unless it has that value already."""
        if self._values.get(name) != value:
            _run("azd", "env", "set", name, value)
            self._values[name] = value

    def follow(self, name: str, deployed: str) -> None:
        """Take the deployed value, unless another one was set here since the last deployment.

        Before the first deployment from here an empty value counts as not set: pipelines pass unset
        variables on as empty.
        """
        mine = self._values.get(name)
        if not self.seen:
            mine = mine or None
        if mine is None and self.seen.get(name) == deployed:
            return
        if mine is None or mine == self.seen.get(name):
            self.set(name, deployed)


def prepare(azd: Azd) -> None:
    """Run all steps in order. A step keeps values that an earlier run or the user set."""
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
    """Register Microsoft.App, which isolated subnets need. Without a GPU no resource triggers that."""
    provider = ("--namespace", "Microsoft.App", *_subscription(azd))
    if azd.get("NETWORK_ISOLATED") != "true":
        return
    if _ask("provider", "show", *provider)["registrationState"] != "Registered":
        _run("az", "provider", "register", *provider, "--wait")


def recall(azd: Azd) -> None:
    """Read the deployed values into the azd environment. Exits if az cannot read them."""
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
            # Unconditionally, so that provisioning keeps the image of the latest deployment.
            azd.set(IMAGES[service], app["properties"]["template"]["containers"][0]["image"])
        elif service == "router":
            found = _ask("functionapp", "config", "appsettings", "list", "--ids", resource["id"])
            settings = {each["name"]: each["value"] for each in found}
            _follow_keys(azd, settings.get("BLITZ_API_KEY_HASHES") or "")


def _last_deployed(azd: Azd) -> dict[str, str]:
    """Parameters of the last successful deployment; empty for versions without that output."""
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
    """As `Azd.follow`, but exits if both sides changed keys: a key would be lost or restored."""
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
    """Find by name, or create, the Entra application that represents the backends."""
    if azd.get("BACKEND_APP_ID"):
        return
    name = f"blitz-embedding-{azd.name}"
    # --display-name would match every app whose name begins with it.
    found = _ask("ad", "app", "list", "--filter", f"displayName eq '{name}'")
    if not found:
        version = ("--requested-access-token-version", "2")
        made = ("--display-name", name, "--sign-in-audience", "AzureADMyOrg", *version)
        found = [_ask("ad", "app", "create", *made)]
    app_id = found[0]["appId"]
    _run("az", "ad", "app", "update", "--id", app_id, "--identifier-uris", f"api://{app_id}")
    # The router gets no token for an application without a service principal in the tenant.
    if not _ask("ad", "sp", "list", "--filter", f"appId eq '{app_id}'"):
        _run("az", "ad", "sp", "create", "--id", app_id, "--output", "none")
    azd.set("BACKEND_APP_ID", app_id)


def make_first_key(azd: Azd) -> None:
    """Write a first key to a file that only its owner can read, never to a log.

    Not with API Management, which has its own keys.
    """
    if azd.get(KEYS) or azd.get("API_MANAGEMENT_ENABLED") == "true":
        return
    if os.environ.get("CI") or os.environ.get("TF_BUILD"):
        sys.exit(f"set {KEYS}: a pipeline makes no key, nobody would get it. `python -m functions.keys`")
    file = Path(".azure", azd.name, "first-key")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        # Made by an earlier run that was interrupted; callers may use it already.
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
    """The option for azd's subscription, which may differ from az's default."""
    given = azd.get("AZURE_SUBSCRIPTION_ID")
    return ("--subscription", given) if given else ()


def _ask(*arguments: str) -> Any:
    """az's decoded JSON answer. Without --query, which cmd.exe would not pass on unchanged."""
    return json.loads(_run("az", *arguments, "--output", "json") or "null")


def _run(program: str, *arguments: str) -> str:
    """The program's stdout, never printed: it may have an app's settings. stderr is inherited."""
    # On Windows both may be scripts that start only by their full path.
    found = shutil.which(program)
    if found is None:
        sys.exit(f"{program} is not installed, or not on PATH")
    ran = subprocess.run([found, *arguments], stdout=subprocess.PIPE, text=True)  # noqa: S603
    if ran.returncode != 0:
        sys.exit(f"{program} {' '.join(arguments[:3])} failed: {ran.returncode}")
    return ran.stdout


if __name__ == "__main__":
    prepare(Azd(os.environ))
