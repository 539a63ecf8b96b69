"""infra/*.bicep compile without a word, and say what they are expected to say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.infra.bicep import INFRA, ROOT, VARIANTS, ask_bicep, resources_of, run_bicep

# Each compiled without a warning against the types of Bicep 0.49.2. One version a type: two would drift.
API_VERSIONS = {
    "Microsoft.ApiManagement/service": "2024-05-01",
    "Microsoft.App/containerApps": "2026-03-02-preview",
    "Microsoft.App/managedEnvironments": "2026-03-02-preview",
    "Microsoft.Authorization/roleAssignments": "2022-04-01",
    "Microsoft.Consumption/budgets": "2023-11-01",
    "Microsoft.ContainerRegistry/registries": "2023-07-01",
    "Microsoft.ContainerRegistry/registries/tasks": "2019-04-01",
    "Microsoft.Dashboard/grafana": "2023-09-01",
    "Microsoft.EventGrid/systemTopics": "2025-02-15",
    "Microsoft.Insights/actionGroups": "2023-01-01",
    "Microsoft.Insights/components": "2020-02-02",
    "Microsoft.Insights/diagnosticSettings": "2021-05-01-preview",
    "Microsoft.Insights/metricAlerts": "2018-03-01",
    "Microsoft.Insights/scheduledQueryRules": "2023-12-01",
    "Microsoft.Insights/webtests": "2022-06-15",
    "Microsoft.Insights/workbooks": "2023-06-01",
    "Microsoft.ManagedIdentity/userAssignedIdentities": "2023-01-31",
    "Microsoft.Network/privateDnsZones": "2020-06-01",
    "Microsoft.Network/privateEndpoints": "2024-05-01",
    "Microsoft.Network/virtualNetworks": "2024-05-01",
    "Microsoft.OperationalInsights/workspaces": "2023-09-01",
    "Microsoft.Resources/resourceGroups": "2024-03-01",
    "Microsoft.Storage/storageAccounts": "2023-05-01",
    "Microsoft.Web/serverfarms": "2024-04-01",
    "Microsoft.Web/sites": "2024-04-01",
}
SECRETS = re.compile(
    r"listKeys|listSecrets|AccountKey=|SharedAccessSignature|@secure|sig=|password\s*:", re.I
)


def test_compiles_without_a_warning() -> None:
    """An unknown property is only a warning to the compiler, and a failed deployment to its user."""
    ran = run_bicep("build", "main.bicep", "--stdout")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_parameters_of_azd_compile_with_nothing_set() -> None:
    """azd compiles them before its first hook runs, so no value may be needed yet."""
    ran = run_bicep("build-params", "main.bicepparam", "--stdout")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_every_parameter_can_be_set_through_azd() -> None:
    """A parameter that main.bicepparam leaves out could be changed in the source alone."""
    declared = set(re.findall(r"^param (\w+)", (INFRA / "main.bicep").read_text("utf-8"), re.M))
    given = set(re.findall(r"^param (\w+)", (INFRA / "main.bicepparam").read_text("utf-8"), re.M))
    assert declared == given


def test_every_parameter_is_documented_with_its_default() -> None:
    """In deploy.md's table; but what azd sets by itself is not for people to set."""
    azds = {"AZURE_ENV_NAME", "AZURE_LOCATION", "AZURE_PRINCIPAL_ID"}
    azds |= {"SERVICE_GPU_IMAGE_NAME", "SERVICE_CPU_CONTAINER_IMAGE_NAME"}
    read = r"readEnvironmentVariable\(\s*'(\w+)',\s*'(.*?)'"
    variables = dict(re.findall(read, (INFRA / "main.bicepparam").read_text("utf-8")))
    documented: dict[str, str] = {}
    for row in re.findall(r"^\| `.*$", (ROOT / "docs" / "deploy.md").read_text("utf-8"), re.M):
        names, defaults = (cell.replace("`", "").strip(" ").split(", ") for cell in row.split("|")[1:3])
        # One for each name, or one for all of them.
        documented |= zip(names, defaults if len(defaults) > 1 else defaults * len(names), strict=True)
    assert azds < set(variables)
    for name in set(variables) - azds:
        right = {variables[name]} if variables[name] else {"", "made by prepare"}
        assert documented[name] in right, name


@pytest.mark.parametrize(
    ("without", "reason"), [("apiKeyHashes", "API_KEY_HASHES"), ("backendAppId", "BACKEND_APP_ID")]
)
def test_an_open_router_is_not_deployed(without: str, reason: str, tmp_path: Path) -> None:
    """Without keys for callers, or an audience for the backends, the deployment stops and says why."""
    infra = shutil.copytree(INFRA, tmp_path / "infra")
    complete = (infra / "variants" / "complete.bicepparam").read_text("utf-8")
    emptied = re.sub(rf"^(param {without}) = .*$", r"\1 = ''", complete, flags=re.M)
    (infra / "variants" / "open.bicepparam").write_text(emptied, "utf-8")
    ran = ask_bicep("snapshot", "open.bicepparam", "--location=x", cwd=infra / "variants")
    assert ran.returncode != 0
    assert f"set {reason}" in ran.stderr + ran.stdout


REFUSED = {
    # Wanted, with containers, in a network, behind API Management.
    "zonesOf(true, true, false, false)": (
        "set NETWORK_ISOLATED=true, or GPU_ENABLED=false and CPU_HOST=flex"
    ),
    "zonesOf(true, false, true, true)": "set API_MANAGEMENT_ENABLED=false",
    "isContainer('flex', true)": "set CPU_HOST=container, or CPU_OPENVINO=false",
    "testSecondsOf(60)": "set AVAILABILITY_TEST_SECONDS to 0, 300, 600 or 900",
}
TAKEN = {
    "isContainer('flex', false)": False,
    "isContainer('container', true)": True,
    "zonesOf(false, true, false, true)": False,
    "zonesOf(true, true, true, false)": True,
    "zonesOf(true, false, false, false)": True,
    "testSecondsOf(0)": 0,
    "testSecondsOf(900)": 900,
}


def _tell(expressions: Iterable[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A deployment of a group that is tagged with what the functions of shared.bicep say."""
    shutil.copy(INFRA / "shared.bicep", folder)
    tags = "\n".join(f"'{number}': string({each})" for number, each in enumerate(expressions))
    (folder / "asks.bicep").write_text(
        "import { isContainer, zonesOf, testSecondsOf } from 'shared.bicep'\n"
        "targetScope = 'subscription'\n"
        "resource group 'Microsoft.Resources/resourceGroups@2024-03-01' = {\n"
        f"name: 'x'\nlocation: 'x'\ntags: {{\n{tags}\n}}\n}}\n"
    )
    (folder / "asks.bicepparam").write_text("using 'asks.bicep'\n")
    return ask_bicep("snapshot", "asks.bicepparam", "--location=x", cwd=folder)


@pytest.mark.parametrize("expression", REFUSED)
def test_what_azure_has_not_is_refused_at_once(expression: str, tmp_path: Path) -> None:
    """Or Azure would say so in the middle of a deployment."""
    ran = _tell([expression], tmp_path)
    assert ran.returncode != 0
    assert REFUSED[expression] in ran.stderr + ran.stdout


def test_what_azure_has_is_taken(tmp_path: Path) -> None:
    """As it was asked for."""
    ran = _tell(TAKEN, tmp_path)
    assert ran.returncode == 0, ran.stderr
    (group,) = json.loads((tmp_path / "asks.snapshot.json").read_text("utf-8"))["predictedResources"]
    assert list(group["tags"].values()) == [str(value) for value in TAKEN.values()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_api_versions_are_the_tested_ones(variant: str) -> None:
    """A newer version may have other rules; it is taken here first."""
    for resource in resources_of(variant):
        assert resource["apiVersion"] == API_VERSIONS.get(_tested(resource["type"])), resource["type"]


def test_every_tested_version_is_in_use() -> None:
    """The list holds nothing that no variant deploys."""
    used = {_tested(each["type"]) for variant in VARIANTS for each in resources_of(variant)}
    assert set(API_VERSIONS) <= used


def _tested(type_name: str) -> str:
    """What the table has of a type: itself, or what it belongs to."""
    return type_name if type_name in API_VERSIONS else "/".join(type_name.split("/")[:2])


def test_no_file_holds_or_asks_for_a_secret() -> None:
    """Identities do it all; the names of secrets' functions stand nowhere."""
    found = {
        path.relative_to(INFRA).as_posix()
        for path in INFRA.rglob("*")
        if path.suffix in {".bicep", ".bicepparam", ".json", ".xml", ".sh", ".ps1", ".yaml"}
        if SECRETS.search(path.read_text("utf-8"))
    }
    assert found == set()


def test_no_module_comes_from_a_registry() -> None:
    """They would be downloaded at each compilation, and could not be compiled offline."""
    for path in INFRA.rglob("*.bicep"):
        for source in re.findall(r"^module \w+ '([^']+)'", path.read_text("utf-8"), re.M):
            assert (path.parent / source).is_file(), source


def test_main_only_composes() -> None:
    """It makes the resource group; every other resource is in the file of its concern."""
    text = (INFRA / "main.bicep").read_text("utf-8")
    assert re.findall(r"^resource (\w+) ", text, re.M) == ["group"]
