"""Who carries the pager: what tells them, what Azure logs of itself, what it keeps and for how long."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import yaml

from functions.api.auth import OPEN_PATH
from tests.infra.bicep import INFRA, VARIANTS, of_type, resources_of

RULES: list[dict[str, Any]] = json.loads((INFRA / "dashboards" / "azure-alerts.json").read_text("utf-8"))
TOLD = ["apim", "complete", "gpu-off"]
"""Variants in which somebody is named."""
INSIGHTS = "Microsoft.Insights"
WORKSPACE = ".outputs.workspaceId.value"
"""How a snapshot names the workspace, which another module makes."""

# What alerts of Log Analytics may have.
EVERY = {f"PT{minutes}M" for minutes in (1, 5, 10, 15, 30, 45)} | {
    f"PT{hours}H" for hours in range(1, 7)
}
EVERY |= {"P1D"}

OF_THE_PLATFORM = {
    # By an availability test, which asks from outside.
    "BlitzNotReady",
    "BlitzGone",
}
"""Prometheus' alerts that no query here stands for."""


def _rules_of(variant: str) -> dict[str, dict[str, Any]]:
    found = of_type(variant, f"{INSIGHTS}/scheduledQueryRules")
    return {each["name"].removeprefix("blitz-"): each["properties"] for each in found}


def test_every_alert_of_prometheus_has_one_in_azure() -> None:
    """What wakes somebody on one machine wakes somebody in Azure, too."""
    file = yaml.safe_load((INFRA / "dashboards" / "alerts.yml").read_text("utf-8"))
    names = {rule["alert"] for rule in file["groups"][0]["rules"]}
    stands_for = [name for rule in RULES for name in rule["as"]]
    assert len(stands_for) == len(set(stands_for))
    assert set(stands_for) | OF_THE_PLATFORM == names
    assert not OF_THE_PLATFORM & set(stands_for)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rules_of_the_file_are_deployed_where_somebody_is_told(variant: str) -> None:
    """Each with its query, and with the group; without a receiver none, which nobody would get."""
    found = _rules_of(variant)
    absent = {"gpu-"} if variant == "gpu-off" else set()
    absent |= {"gateway-"} if variant != "apim" else set()
    expected = [
        rule
        for rule in RULES
        if variant in TOLD and not any(rule["name"].startswith(each) for each in absent)
    ]
    assert set(found) == {rule["name"] for rule in expected}
    for rule in expected:
        deployed = found[rule["name"]]
        (group,) = of_type(variant, f"{INSIGHTS}/actionGroups")
        assert deployed["actions"]["actionGroups"] == [group["id"]]
        (condition,) = deployed["criteria"]["allOf"]
        assert condition["query"] == rule["query"].replace("{p95Seconds}", "10")
        assert (condition["operator"], condition["threshold"]) == ("GreaterThan", 0)
        assert deployed["severity"] == rule["severity"] in range(5)
        assert {deployed["evaluationFrequency"], deployed["windowSize"]} <= EVERY
        (scope,) = deployed["scopes"]
        assert (WORKSPACE if rule["asks"] == "workspace" else "/components/appi-") in scope


def test_a_window_is_no_shorter_than_the_time_between_two_looks() -> None:
    """Or what happens between them is seen by nobody."""
    minutes = {"PT5M": 5, "PT10M": 10, "PT15M": 15, "PT30M": 30, "PT6H": 360, "P1D": 1440}
    for rule in RULES:
        assert minutes[rule["window"]] >= minutes[rule["every"]], rule["name"]


def test_receivers_are_those_that_were_named() -> None:
    """Mail and webhook, in the schema that all kinds of alerts share."""
    (group,) = of_type("complete", f"{INSIGHTS}/actionGroups")
    properties = group["properties"]
    assert len(properties["groupShortName"]) <= 12
    mails = [each["emailAddress"] for each in properties["emailReceivers"]]
    assert mails == ["oncall@example.org", "second@example.org"]
    assert [each["serviceUri"] for each in properties["webhookReceivers"]] == [
        "https://pager.example.org/v1"
    ]
    receivers = properties["emailReceivers"] + properties["webhookReceivers"]
    assert all(each["useCommonAlertSchema"] is True for each in receivers)
    (group,) = of_type("apim", f"{INSIGHTS}/actionGroups")
    assert group["properties"]["webhookReceivers"] == []


def test_the_budget_tells_them_too() -> None:
    """Beside the owners, at each of its thresholds."""
    (group,) = of_type("complete", f"{INSIGHTS}/actionGroups")
    (budget,) = of_type("complete", "Microsoft.Consumption/budgets")
    for notification in budget["properties"]["notifications"].values():
        assert notification["contactRoles"] == ["Owner"]
        assert notification["contactGroups"] == [group["id"]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_service_is_asked_from_outside(variant: str) -> None:
    """At the one address that needs no key; behind the gateway, which asks for one, that it does so."""
    tests = of_type(variant, f"{INSIGHTS}/webtests")
    alerts = {each["name"]: each for each in of_type(variant, f"{INSIGHTS}/metricAlerts")}
    if variant not in ("apim", "complete"):
        assert (tests, "blitz-availability" in alerts) == ([], False)
        return
    (test,) = tests
    properties = test["properties"]
    assert OPEN_PATH == "/health"
    assert properties["Request"]["RequestUrl"].startswith("[format('{0}/health', ")
    asked = "apiManagement-" if variant == "apim" else "router-"
    assert f"'{asked}{{0}}'" in properties["Request"]["RequestUrl"]
    rules = properties["ValidationRules"]
    assert rules["ExpectedHttpStatusCode"] == (401 if variant == "apim" else 200)
    assert rules["SSLCheck"] is True
    assert rules["SSLCertRemainingLifetimeCheck"] == 14
    assert len({each["Id"] for each in properties["Locations"]}) == 5
    (component,) = of_type(variant, f"{INSIGHTS}/components")
    # The portal finds the test by it.
    assert test["tags"][f"hidden-link:{component['id']}"] == "Resource"
    alert = alerts["blitz-availability"]["properties"]
    assert alert["scopes"] == [test["id"], component["id"]]
    assert alert["criteria"]["webTestId"] == test["id"]
    (group,) = of_type(variant, f"{INSIGHTS}/actionGroups")
    assert alert["actions"] == [{"actionGroupId": group["id"]}]


@pytest.mark.parametrize("variant", VARIANTS)
def test_dead_letters_are_told_of_by_a_metric(variant: str) -> None:
    """The platform's, which a workspace that has reached its cap does not silence."""
    found = [
        each
        for each in of_type(variant, f"{INSIGHTS}/metricAlerts")
        if each["name"] == "blitz-dead-letters"
    ]
    assert bool(found) is (variant in TOLD)
    for alert in found:
        (topic,) = of_type(variant, "Microsoft.EventGrid/systemTopics")
        assert alert["properties"]["scopes"] == [topic["id"]]


LOGGED = {
    "/blobServices/default": {"StorageWrite", "StorageDelete"},
    "/queueServices/default": {"StorageWrite"},
    "/systemTopics/evgt-": {"DeliveryFailures"},
    "/registries/cr": {"ContainerRegistryRepositoryEvents", "ContainerRegistryLoginEvents"},
    "/managedEnvironments/cae-": {"ContainerAppConsoleLogs", "ContainerAppSystemLogs"},
    "/service/apim-": {"GatewayLogs"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_azures_services_log_into_the_workspace(variant: str) -> None:
    """Whichever of them the variant has; reads of storage, which are most of it, are left out."""
    found: dict[str, set[str]] = {}
    for setting in of_type(variant, f"{INSIGHTS}/diagnosticSettings"):
        (of,) = (part for part in LOGGED if part in setting["id"])
        assert WORKSPACE in setting["properties"]["workspaceId"]
        found[of] = {each["category"] for each in setting["properties"]["logs"] if each["enabled"]}
    absent = {"/registries/cr", "/managedEnvironments/cae-"} if variant == "gpu-off" else set()
    if variant != "apim":
        absent = absent | {"/service/apim-"}
    assert found == {of: logs for of, logs in LOGGED.items() if of not in absent}


def test_no_key_of_a_caller_is_in_the_gateways_log() -> None:
    """It may come in a header, or in the address as ?code=KEY; bodies are texts of callers."""
    (logged,) = of_type("apim", "Microsoft.ApiManagement/service/diagnostics")
    (api,) = of_type("apim", "Microsoft.ApiManagement/service/apis")
    assert api["properties"]["subscriptionKeyParameterNames"]["query"] == "code"
    properties = logged["properties"]
    assert properties["loggerId"].endswith("/loggers/azuremonitor")
    for side in (properties["frontend"], properties["backend"]):
        for told in (side["request"], side["response"]):
            assert told["body"] == {"bytes": 0}
            assert told["headers"] == []
            assert told["dataMasking"]["queryParams"] == [{"value": "*", "mode": "Hide"}]


def test_old_images_are_purged_but_never_the_last_ones() -> None:
    """Those to go back to stay, and the one that a replica starts from is the newest."""
    (task,) = of_type("complete", "Microsoft.ContainerRegistry/registries/tasks")
    (registry,) = of_type("complete", "Microsoft.ContainerRegistry/registries")
    assert task["id"].startswith(registry["id"])
    step = yaml.safe_load(base64.b64decode(task["properties"]["step"]["encodedTaskContent"]))
    (command,) = (each["cmd"] for each in step["steps"])
    assert command == "acr purge --filter '.*:.*' --ago 30d --keep 5 --untagged"
    (timer,) = task["properties"]["trigger"]["timerTriggers"]
    assert timer["schedule"] == "0 3 * * 0"


@pytest.mark.parametrize("variant", ["complete", "isolated"])
def test_zones_are_asked_for_everywhere_or_nowhere(variant: str) -> None:
    """An app over three zones whose storage is in one is in one."""
    zoned = variant == "isolated"
    skus = {each["sku"]["name"] for each in of_type(variant, "Microsoft.Storage/storageAccounts")}
    assert skus == {"Standard_ZRS" if zoned else "Standard_LRS"}
    for plan in of_type(variant, "Microsoft.Web/serverfarms"):
        assert plan["properties"]["zoneRedundant"] is zoned
    (environment,) = of_type(variant, "Microsoft.App/managedEnvironments")
    assert environment["properties"]["zoneRedundant"] is zoned
    for grafana in of_type(variant, "Microsoft.Dashboard/grafana"):
        assert grafana["properties"]["zoneRedundancy"] == "Disabled"


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_is_in_the_region_that_was_asked_for(variant: str) -> None:
    """But for what Azure has in no region."""
    nowhere = ("/actionGroups", "/metricAlerts", "/privateDnsZones", "/virtualNetworkLinks")
    for resource in resources_of(variant):
        if "location" in resource:
            expected = "global" if resource["type"].endswith(nowhere) else "swedencentral"
            assert resource["location"] == expected, resource["type"]


@pytest.mark.parametrize(
    ("variant", "days", "versions"), [("complete", 7, False), ("isolated", 30, True)]
)
def test_what_was_deleted_can_be_brought_back(variant: str, days: int, versions: bool) -> None:
    """Blobs and containers of the data account, for as long as was asked; then it goes by itself."""
    (blobs,) = (
        each["properties"]
        for each in of_type(variant, "Microsoft.Storage/storageAccounts/blobServices")
        if "/stdata" in each["id"]
    )
    for policy in ("deleteRetentionPolicy", "containerDeleteRetentionPolicy"):
        assert blobs[policy] == {"enabled": True, "days": days}
    assert blobs["isVersioningEnabled"] is versions
    (management,) = of_type(variant, "Microsoft.Storage/storageAccounts/managementPolicies")
    rules = {
        rule["name"]: rule["definition"]["actions"]
        for rule in management["properties"]["policy"]["rules"]
    }
    assert rules.pop("dead-letters") == {
        "baseBlob": {"delete": {"daysAfterModificationGreaterThan": 30}}
    }
    expected = {"version": {"delete": {"daysAfterCreationGreaterThan": days}}}
    assert rules == ({"versions": expected} if versions else {})
