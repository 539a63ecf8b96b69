"""infra/hooks/prepare: twice, from an empty azd environment, after somebody else, over a fake Azure."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.infra import fake_azure
from tests.infra.bicep import INFRA, parameters_from, run_bicep

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
EMPTY = {
    "AZURE_ENV_NAME": "test",
    "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
    "AZURE_LOCATION": "swedencentral",
}
PARAMETERS_FILE = (INFRA / "main.bicepparam").read_text("utf-8")
READ = set(re.findall(r"readEnvironmentVariable\(\s*'(\w+)'", PARAMETERS_FILE))
AZDS = {
    *("AZURE_ENV_NAME", "AZURE_LOCATION", "AZURE_PRINCIPAL_ID"),
    *("SERVICE_GPU_IMAGE_NAME", "SERVICE_CPU_CONTAINER_IMAGE_NAME"),
}
"""What azd sets by itself."""


class Azure:
    """A subscription, and one person's checkout with an azd environment in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "azure.json"
        self.state: dict[str, Any] = {
            **{"env": dict(EMPTY), "calls": [], "group": False, "resources": [], "settings": {}},
            **{"image": "", "deployments": [], "applications": [], "principals": []},
            **{"provider": "NotRegistered", "user": "user", "fails": ""},
        }
        shutil.copytree(INFRA / "hooks", folder / "infra" / "hooks")
        (folder / "bin").mkdir()
        for program in ("az", "azd"):
            path = folder / "bin" / program
            words = [sys.executable, "-I", "-S", fake_azure.__file__, str(self._file), program]
            path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            path.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        return self.state["env"]  # type: ignore[no-any-return]

    @property
    def key_file(self) -> Path:
        return self._folder / ".azure" / "test" / "first-key"

    def prepare(self, **environ: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """What `started` gives, in this process: it calls az a dozen times, and each is a Python."""
        self.state["calls"] = []
        code: Any = 0
        with (
            mock.patch.dict(os.environ, {**self.env, **environ}, clear=True),
            contextlib.chdir(self._folder),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            hook = runpy.run_path("infra/hooks/prepare.py")
            programs = {"shutil": mock.Mock(which=lambda program: program)}
            programs["subprocess"] = mock.Mock(run=self._run, PIPE=subprocess.PIPE)
            hook["_run"].__globals__.update(programs)
            try:
                hook["prepare"](hook["Azd"](os.environ))
            except SystemExit as exit_:
                code = exit_.code
                if isinstance(code, str):
                    print(code, file=sys.stderr)
                    code = 1
        ran = subprocess.CompletedProcess(["prepare"], code, out.getvalue(), err.getvalue())
        return ran, self.state["calls"]

    def _run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """az or azd, as its process would answer."""
        try:
            said = fake_azure.answer(self.state, command[0], command[1:])
        except SystemExit as exit_:
            return subprocess.CompletedProcess(command, int(exit_.code or 0), "")
        return subprocess.CompletedProcess(command, 0, "" if said is None else json.dumps(said))

    def started(self, **environ: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """The hook's process as azd starts it, and the commands that it ran."""
        self.state["calls"] = []
        self._file.write_text(json.dumps(self.state), "utf-8")
        search = os.pathsep.join((str(self._folder / "bin"), os.environ["PATH"]))
        ran = subprocess.run(
            ["sh", "infra/hooks/prepare.sh"],
            cwd=self._folder,
            env={"PATH": search, **self.env, **environ},
            capture_output=True,
            text=True,
        )
        self.state = json.loads(self._file.read_text("utf-8"))
        return ran, self.state["calls"]

    def provision(self) -> dict[str, Any]:
        """What Azure and azd hold after it, and the parameters of Bicep that it was given."""
        parameters = parameters_from(self.env)
        self.hold(
            _deployed_parameters(parameters),
            image=parameters["gpuImage"],
            keys=parameters["apiKeyHashes"],
        )
        return parameters

    def hold(self, deployed: dict[str, str], image: str = "image", keys: str = "h") -> None:
        """A deployment that told `deployed`, which azd notes, and its apps."""
        time = f"2026-01-01T00:00:{len(self.state['deployments']):02}Z"
        properties = {"provisioningState": "Succeeded", "timestamp": time}
        outputs = {"outputs": {"deployedParameters": {"type": "Object", "value": deployed}}}
        deployment = {"tags": {"azd-env-name": "test"}, "properties": {**properties, **outputs}}
        self.state["deployments"].append(deployment)
        self.state["group"] = True
        self.state["resources"] = [
            {"id": "/subscriptions/sub/vnet", "tags": None},
            {"id": "/subscriptions/sub/router", "tags": {"azd-service-name": "router"}},
            {"id": "/subscriptions/sub/gpu", "tags": {"azd-service-name": "gpu"}},
            {"id": "/subscriptions/sub/cpu", "tags": {"azd-service-name": "cpu-container"}},
        ]
        self.state["settings"] = {
            "BLITZ_API_KEY_HASHES": keys,
            "BLITZ_DEFAULT_MODEL": "not-to-be-printed",
        }
        self.state["image"] = image
        self.env["deployedParameters"] = json.dumps(deployed)

    def deploy(self, image: str) -> None:
        """azd puts its image into the app, and the name into the environment."""
        self.state["image"] = image
        self.env["SERVICE_GPU_IMAGE_NAME"] = self.env["SERVICE_CPU_CONTAINER_IMAGE_NAME"] = image

    def leave(self) -> None:
        """Somebody else comes, with an empty environment."""
        self.state["env"] = dict(EMPTY)


@cache
def _compiled() -> Any:
    ran = run_bicep("build", "main.bicep", "--stdout")
    return json.loads(ran.stdout)["outputs"]["deployedParameters"]["value"]


def _deployed_parameters(parameters: dict[str, Any]) -> dict[str, str]:
    """Bicep's output of that name, whose few functions are evaluated here."""

    def value(expression: str) -> str:
        name = re.search(r"parameters\('(\w+)'\)", expression)
        assert name is not None
        given = parameters[name[1]]
        shape = expression.replace(name[0], "x").strip("[]")
        shapes = {"x": given, "string(x)": str(given), "toLower(string(x))": str(given).lower()}
        found = ",".join(given) if shape == "join(x, ',')" else shapes[shape]
        assert isinstance(found, str)
        return found

    return {name: value(each) for name, each in _compiled().items()}


@pytest.fixture
def azure(tmp_path: Path) -> Azure:
    return Azure(tmp_path)


def _settled(ran: subprocess.CompletedProcess[str], calls: list[str]) -> None:
    """Nothing was made, set or registered, and nothing was said but that nobody is told of faults."""
    said = re.sub(r"No alert is deployed.*\n", "", ran.stdout)
    assert (ran.returncode, said, ran.stderr) == (0, "", "")
    assert [call for call in calls if re.search(r" (set|create|register) ", call)] == []


def test_a_first_run_makes_what_is_missing(azure: Azure) -> None:
    """An application, its audience and principal; a key in its owner's file, azd knows the hash."""
    ran, calls = azure.started()
    assert ran.returncode == 0, ran.stderr
    asked = [re.sub(r" --subscription \S+| --output json", "", call) for call in calls]
    assert asked == [
        "az group exists --name rg-test",
        "az ad app list --filter displayName eq 'blitz-embedding-test'",
        "az ad app create --display-name blitz-embedding-test --sign-in-audience AzureADMyOrg"
        " --requested-access-token-version 2",
        "az ad app update --id app-id --identifier-uris api://app-id",
        "az ad sp list --filter appId eq 'app-id'",
        "az ad sp create --id app-id --output none",
        "azd env set BACKEND_APP_ID app-id",
        f"azd env set API_KEY_HASHES {azure.env['API_KEY_HASHES']}",
        f"azd env set BUDGET_START {azure.env['BUDGET_START']}",
        "az account show",
        "azd env set AZURE_PRINCIPAL_TYPE User",
    ]
    key = azure.key_file.read_text().strip()
    assert len(key) >= 43
    assert hashlib.sha256(key.encode()).hexdigest() == azure.env["API_KEY_HASHES"]
    assert stat.S_IMODE(azure.key_file.stat().st_mode) == 0o600
    assert key not in ran.stdout + ran.stderr + "".join(calls)
    assert ".azure/test/first-key" in ran.stdout
    assert re.fullmatch(r"\d{4}-\d\d-01", azure.env["BUDGET_START"])


def test_a_second_deployment_changes_nothing(azure: Azure) -> None:
    """Neither before Azure has anything, nor after; and Bicep is given what it was given before."""
    azure.prepare()
    _settled(*azure.prepare())
    azure.hold({"BACKEND_APP_ID": "app-id"}, keys=azure.env["API_KEY_HASHES"])
    azure.deploy("cr.azurecr.io/gpu:1")
    first = azure.provision()
    _settled(*azure.prepare())
    assert azure.provision() == first
    assert first["gpuImage"] == first["cpuImage"] == "cr.azurecr.io/gpu:1"


def test_an_empty_environment_changes_nothing(azure: Azure) -> None:
    """Every parameter, the image and the keys are those that are deployed, whatever the defaults are."""
    chosen = {
        **{"GPU_PROFILE": "Consumption-GPU-NC24-A100", "GPU_MODELS_IN_IMAGE": "true"},
        **{"GPU_MAX_REPLICAS": "3", "GPU_COOLDOWN_SECONDS": "60", "GPU_AHEAD_SECONDS": "9"},
        **{"ALWAYS_READY_ROUTER": "1", "ALWAYS_READY_CPU": "2", "MAX_INSTANCES_ROUTER": "50"},
        **{"MAX_INSTANCES_CPU": "51", "ROUTER_HTTP_CONCURRENCY": "7", "CPU_HTTP_CONCURRENCY": "6"},
        **{"GPU_ENABLED": "false", "GPU_HTTP_CONCURRENCY": "4", "SAMPLE_MODEL": "none"},
        **{"NETWORK_ISOLATED": "true", "ALLOWED_IP_RANGES": "203.0.113.0/24,198.51.100.0/24"},
        **{"API_MANAGEMENT_ENABLED": "true", "API_MANAGEMENT_EMAIL": "o@example.org"},
        **{"RATE_LIMIT_PER_MINUTE": "5", "WARM_MODELS": "a,b", "DEFAULT_MODEL": "a"},
        **{
            "TOKEN_LIMIT_PER_MINUTE": "6",
            "GATEWAY_GPU_TEXTS": "0",
            "CPU_HOST": "container",
            "CPU_OPENVINO": "true",
        },
        **{"BUDGET_AMOUNT": "7", "BUDGET_START": "2025-02-01", "BACKEND_APP_ID": "old-id"},
        **{"API_KEY_HASHES": "h1,h2", "AZURE_PRINCIPAL_TYPE": "User"},
        **{"ALERT_EMAILS": "a@example.org,b@example.org", "ALERT_WEBHOOK": "https://example.org/x"},
        **{"ALERT_P95_SECONDS": "3", "AVAILABILITY_TEST_SECONDS": "300", "GRAFANA_ENABLED": "true"},
        **{"ZONE_REDUNDANT": "true", "SOFT_DELETE_DAYS": "14", "BLOB_VERSIONING": "true"},
        **{"REGISTRY_KEEP_DAYS": "90"},
    }
    assert set(chosen) == READ - AZDS, "a new parameter is tried here too"
    azure.env.update(chosen)
    azure.provision()
    azure.deploy("cr.azurecr.io/gpu:1")
    azure.state["provider"] = "Registered"
    before = parameters_from(azure.env)
    azure.leave()
    ran, calls = azure.prepare()
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert not [call for call in calls if re.search(r" (create|register) ", call)]
    assert azure.provision() == before
    assert not azure.key_file.exists()
    _settled(*azure.prepare())


@pytest.mark.parametrize(
    ("mine", "seen", "deployed", "then"),
    [
        pytest.param(None, None, "b", "b", id="never-set"),
        pytest.param("", None, "b", "b", id="empty-in-a-pipeline"),
        pytest.param("a", "a", "b", "b", id="changed-by-somebody-else"),
        pytest.param("c", "a", "a", "c", id="changed-here"),
        pytest.param("", "a", "a", "", id="emptied-here"),
        pytest.param("c", "a", "b", "c", id="changed-by-both"),
        pytest.param("c", None, "b", "c", id="asked-for-from-the-start"),
    ],
)
def test_a_parameter_stays_where_it_was_asked_for(
    azure: Azure, mine: str | None, seen: str | None, deployed: str, then: str
) -> None:
    """And follows what is deployed where it was not."""
    azure.hold({"WARM_MODELS": deployed})
    del azure.env["deployedParameters"]
    if mine is not None:
        azure.env["WARM_MODELS"] = mine
    if seen is not None:
        azure.env["deployedParameters"] = json.dumps({"WARM_MODELS": seen})
    assert azure.prepare()[0].returncode == 0
    assert azure.env["WARM_MODELS"] == then


@pytest.mark.parametrize(
    ("mine", "seen", "deployed", "then"),
    [
        pytest.param("", "", "a", "a", id="unknown"),
        pytest.param("", "a", "a", "a", id="emptied"),
        pytest.param("a", "a", "a", "a", id="same"),
        pytest.param("a", "a", "a,b", "a,b", id="added-by-somebody-else"),
        pytest.param("a,b", "a,b", "a", "a", id="dropped-by-somebody-else"),
        pytest.param("a,b", "a", "a", "a,b", id="added-here"),
        pytest.param("a", "a,b", "a,b", "a", id="dropped-here"),
        pytest.param("a,b", "", "a", "a,b", id="added-without-having-seen"),
        pytest.param("b", "", "a", None, id="would-lose-one"),
        pytest.param("a,c", "a", "a,b", None, id="both-added"),
        pytest.param("a,b,c", "a,b", "a", None, id="would-bring-one-back"),
        pytest.param("a", "a", "", "a", id="behind-api-management"),
    ],
)
def test_no_key_is_lost_or_comes_back(
    azure: Azure, mine: str, seen: str, deployed: str, then: str | None
) -> None:
    """What two people changed at the same time stops the deployment, before anything is set."""
    azure.env["API_KEY_HASHES"] = deployed
    azure.provision()
    azure.env.update(
        {"API_KEY_HASHES": mine, "deployedParameters": json.dumps({"API_KEY_HASHES": seen})}
    )
    ran, _ = azure.prepare()
    assert not azure.key_file.exists()
    if then is None:
        assert ran.returncode == 1
        assert "API_KEY_HASHES" in ran.stderr
        assert azure.env["API_KEY_HASHES"] == mine
    else:
        assert ran.returncode == 0, ran.stderr
        assert azure.env["API_KEY_HASHES"] == then


def test_the_last_deployment_that_succeeded_counts(azure: Azure) -> None:
    """Of this environment; neither one that failed nor one of an older version, which told nothing."""
    azure.hold({"WARM_MODELS": "right"})
    (right,) = azure.state["deployments"]
    tags, properties = right["tags"], right["properties"]
    outputs = {"deployedParameters": {"value": {"WARM_MODELS": "wrong"}}}
    later = {**properties, "timestamp": "2026-02-02", "outputs": outputs}
    azure.state["deployments"] += [
        {"tags": tags, "properties": {**later, "provisioningState": "Failed"}},
        {"tags": {"azd-env-name": "other"}, "properties": later},
        {"tags": None, "properties": later},
        {"tags": tags, "properties": {**later, "outputs": None}},
        {"tags": tags, "properties": {**later, "timestamp": "2025-02-02"}},
    ]
    azure.leave()
    assert azure.prepare()[0].returncode == 0
    assert azure.env["WARM_MODELS"] == "right"


@pytest.mark.parametrize(
    "command", ["group", "deployment", "resource list", "resource show", "functionapp"]
)
def test_an_az_that_cannot_tell_stops_the_deployment(azure: Azure, command: str) -> None:
    """Or whoever may not read, or is logged in elsewhere, would replace keys and image."""
    azure.hold({})
    azure.leave()
    azure.state["fails"] = f"az {command}"
    ran, calls = azure.prepare()
    assert ran.returncode != 0
    assert command.split()[0] in ran.stderr
    assert not azure.key_file.exists()
    assert azure.env.get("API_KEY_HASHES", "h") == "h"
    assert not [call for call in calls if " create " in call]


def test_the_subscription_is_azds(azure: Azure) -> None:
    """az may be set to another one, in which there is no such group."""
    azure.env["NETWORK_ISOLATED"] = "true"
    azure.hold({})
    _, calls = azure.prepare()
    of_a_subscription = [call for call in calls if not re.match(r"az ad |azd | *.* --ids ", call)]
    assert len(of_a_subscription) >= 5
    assert all(f"--subscription {SUBSCRIPTION}" in call for call in of_a_subscription)


def test_an_application_that_is_there_is_taken(azure: Azure) -> None:
    """A run that was cut off makes no second one; its principal is made if it is missing."""
    azure.state["applications"] = [{"appId": "old-id"}]
    ran, calls = azure.prepare()
    assert ran.returncode == 0, ran.stderr
    assert azure.env["BACKEND_APP_ID"] == "old-id"
    assert [call for call in calls if " create " in call] == [
        "az ad sp create --id old-id --output none"
    ]


def test_a_key_that_azd_did_not_note_is_noted(azure: Azure) -> None:
    """The file is there, azd's variable is not: nobody gets a second key."""
    azure.state["fails"] = "azd env set API_KEY_HASHES"
    assert azure.started()[0].returncode != 0
    key = azure.key_file.read_text()
    azure.state["fails"] = ""
    assert azure.started()[0].returncode == 0
    assert azure.key_file.read_text() == key
    assert azure.env["API_KEY_HASHES"] == hashlib.sha256(key.strip().encode()).hexdigest()


@pytest.mark.parametrize(
    ("given", "is_said"),
    [
        ({}, True),
        ({"ALERT_EMAILS": "", "ALERT_WEBHOOK": ""}, True),
        ({"ALERT_EMAILS": "a@example.org"}, False),
        ({"ALERT_WEBHOOK": "https://example.org/x"}, False),
    ],
)
def test_who_would_be_told_of_nothing_hears_so(
    azure: Azure, given: dict[str, str], is_said: bool
) -> None:
    """Alerts without a receiver are not deployed, and a deployment is the time to name one."""
    azure.env.update(given)
    ran, _ = azure.prepare()
    assert ran.returncode == 0, ran.stderr
    assert ("azd env set ALERT_EMAILS" in ran.stdout) is is_said
    assert "example.org/x" not in ran.stdout


@pytest.mark.parametrize("variable", ["CI", "TF_BUILD"])
def test_a_pipeline_makes_no_key(azure: Azure, variable: str) -> None:
    """Its machine is gone afterwards, and the key with it."""
    ran, calls = azure.started(**{variable: "true"})
    assert ran.returncode == 1
    assert "functions.keys" in ran.stderr
    assert not azure.key_file.exists()
    assert not [call for call in calls if "API_KEY_HASHES" in call]


def test_api_management_needs_no_key(azure: Azure) -> None:
    """It makes its own."""
    azure.env["API_MANAGEMENT_ENABLED"] = "true"
    assert azure.prepare()[0].returncode == 0
    assert "API_KEY_HASHES" not in azure.env
    assert not azure.key_file.exists()


@pytest.mark.parametrize(
    ("isolated", "state", "is_registered"),
    [("true", "NotRegistered", True), ("true", "Registered", False), ("false", "NotRegistered", False)],
)
def test_the_provider_of_delegated_subnets_is_registered(
    azure: Azure, isolated: str, state: str, is_registered: bool
) -> None:
    """Once, and before anything is deployed: without a GPU nothing else does it."""
    azure.env["NETWORK_ISOLATED"] = isolated
    azure.state["provider"] = state
    _, calls = azure.prepare()
    registered = [call for call in calls if "provider register" in call]
    assert bool(registered) is is_registered
    assert all("--namespace Microsoft.App " in call and call.endswith("--wait") for call in registered)


@pytest.mark.parametrize(
    ("user", "type_name"), [("user", "User"), ("servicePrincipal", "ServicePrincipal")]
)
def test_who_deploys_is_a_person_or_a_pipeline(azure: Azure, user: str, type_name: str) -> None:
    """azd tells its id alone to a .bicepparam; a role for the wrong type is refused."""
    azure.state["user"] = user
    azure.prepare()
    assert azure.env["AZURE_PRINCIPAL_TYPE"] == type_name
