"""What each variant deploys: settings, rights, doors, scale."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID
from xml.etree import ElementTree

import pytest
from msgspec.structs import fields
from starlette.requests import HTTPConnection

from functions.api import auth
from functions.bulk.triggers import CONNECTION, EVENTS, blobs_of
from shared.bulk.control import FINISH, SPLIT, queue_of
from shared.context import preference
from shared.settings import PREFIX, Settings
from shared.storage.blobs import OUT, SOURCE
from tests.infra.bicep import (
    INFRA,
    LEFT_AT_DEFAULT,
    ROOT,
    VARIANTS,
    apps_of,
    evaluated,
    of_type,
    resources_of,
    settings_of,
)

QUEUES = {EVENTS, SPLIT, queue_of("cpu"), queue_of("gpu"), FINISH}

ROLE_NAMES = {
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": "Storage Blob Data Owner",
    "ba92f5b4-2d11-453d-a403-e96b0029c9fe": "Storage Blob Data Contributor",
    "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1": "Storage Blob Data Reader",
    "db58b8e5-c6ad-4a2a-8342-4190687cbf4a": "Storage Blob Delegator",
    "19e7f393-937e-4f77-808e-94535e297925": "Storage Queue Data Reader",
    "c6a89b2d-59bc-44d0-9896-0f6e12d7b80a": "Storage Queue Data Message Sender",
    "974c5e8b-45b9-4653-ba55-5f855dd0fb88": "Storage Queue Data Contributor",
    "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3": "Storage Table Data Contributor",
    "3913510d-42f4-4e42-8a64-420c390055eb": "Monitoring Metrics Publisher",
    "7f951dda-4ed3-4680-a7ca-43fe172d538d": "AcrPull",
    "43d0d8ad-25c7-4714-9337-8ba259a9fe05": "Monitoring Reader",
    "22926164-76b3-42b3-bc55-97df8dab3e41": "Grafana Admin",
}
WRITES = {
    "Storage Blob Data Owner",
    "Storage Blob Data Contributor",
    "Storage Queue Data Contributor",
    "Storage Table Data Contributor",
}
GPU_QUEUE = queue_of("gpu")
DEAD_LETTERS = "dead-letters"


def _rights_of_app(app: str) -> set[tuple[str, str]]:
    """What each needs: its own host's account, models to read, bulk's outputs, telemetry."""
    return {
        (f"st{app}", "Storage Blob Data Owner"),
        (f"st{app}", "Storage Table Data Contributor"),
        ("models", "Storage Blob Data Reader"),
        (OUT, "Storage Blob Data Contributor"),
        ("appi-", "Monitoring Metrics Publisher"),
    }


def _reads_queues(*names: str) -> set[tuple[str, str]]:
    """A host reads each and its poison queue, and moves messages from the one to the other."""
    both = [*names, *(f"{name}-poison" for name in names)]
    return {(name, "Storage Queue Data Contributor") for name in both}


def _sends_to(*names: str) -> set[tuple[str, str]]:
    return {(name, "Storage Queue Data Message Sender") for name in names}


RIGHTS = {
    "router": _rights_of_app("router")
    | {("keys", "Storage Blob Data Reader"), ("stdata", "Storage Blob Delegator")}
    | _sends_to(SPLIT, FINISH),
    "cpu": _rights_of_app("cpu")
    | {(SOURCE, "Storage Blob Data Reader"), (GPU_QUEUE, "Storage Queue Data Reader")}
    | _reads_queues(EVENTS, SPLIT, queue_of("cpu"), FINISH)
    | _sends_to(GPU_QUEUE),
    "gpu": _rights_of_app("gpu") | {("cr", "AcrPull")} | _reads_queues(GPU_QUEUE) | _sends_to(FINISH),
    "events": _sends_to(EVENTS) | {(DEAD_LETTERS, "Storage Blob Data Contributor")},
    "deployer": {(container, "Storage Blob Data Contributor") for container in ("models", "keys")},
}
"""Identity -> scope and role. Nobody has a right to a whole account but a host to its own.

The router may sign for one, which lets nobody do more than the router may.
"""
WITH_GRAFANA = {
    "grafana": {("rg-review", "Monitoring Reader")},
    "deployer": RIGHTS["deployer"] | {("amg-", "Grafana Admin")},
}
WITHOUT_GPU = {"gpu-off", "container"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_setting_in_bicep_is_one_the_code_reads(variant: str) -> None:
    """A name that is not a setting stops the app's start; a value that is not valid does too."""
    for app in apps_of(variant).values():
        ours = {
            name: "https://x" if value.startswith("[") else value
            for name, value in settings_of(app).items()
            if name.startswith(PREFIX)
        }
        Settings.from_env(ours)


def test_every_setting_is_set_or_left_at_its_default_knowingly() -> None:
    """A new setting makes somebody decide what deployments do with it."""
    names = {name for app in apps_of("complete").values() for name in settings_of(app)}
    set_here = {name.removeprefix(PREFIX).lower() for name in names if name.startswith(PREFIX)}
    for name in ("APPLICATIONINSIGHTS_CONNECTION_STRING", "APPLICATIONINSIGHTS_AUTHENTICATION_STRING"):
        assert name in names
        set_here.add(name.lower())
    assert set_here.isdisjoint(LEFT_AT_DEFAULT)
    assert set_here | LEFT_AT_DEFAULT == {field.name for field in fields(Settings)}


def test_each_app_is_the_role_that_it_is_named_after() -> None:
    """Router and CPU app run the same package: only this setting tells them apart."""
    roles = {name: settings_of(app)["BLITZ_ROLE"] for name, app in apps_of("complete").items()}
    assert roles == {"router": "router", "cpu": "cpu", "gpu": "gpu"}


@pytest.mark.parametrize("service", ["router", "cpu", "gpu"])
def test_apps_reach_storage_by_identity(service: str) -> None:
    """Models and bulk files are in one account, each host's own blobs in another; no key for any."""
    app = apps_of("complete")[service]
    settings = {name: evaluated(value) for name, value in settings_of(app).items()}
    data = settings["BLITZ_STORAGE"]
    assert re.fullmatch(r"https://stdata\w+\.blob\.core\.windows\.net", data)
    assert settings["BLITZ_MODEL_STORE"] == f"{data}/models"
    assert settings[f"{CONNECTION}__queueServiceUri"] == data.replace(".blob.", ".queue.")
    for kind in ("blob", "table"):
        assert settings[f"AzureWebJobsStorage__{kind}ServiceUri"] == data.replace(
            "stdata", f"st{service}"
        ).replace(".blob.", f".{kind}.")
    for connection in ("AzureWebJobsStorage", CONNECTION):
        assert connection not in settings
        assert settings[f"{connection}__credential"] == "managedidentity"
        assert settings[f"{connection}__clientId"] == settings["AZURE_CLIENT_ID"]
    (identity,) = app["identity"]["userAssignedIdentities"]
    assert f"/id-{service}-" in identity
    assert identity in settings["AZURE_CLIENT_ID"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_rights_are_exactly_these(variant: str) -> None:
    """Least privilege: a right that nobody listed here is a mistake, and so is one that is missing."""
    found: dict[str, set[tuple[str, str]]] = {}
    for who, scope, role in _assignments(variant):
        right = (re.sub(r"(st[a-z]+|appi-|cr|amg-)\w{13}$", r"\1", scope.rpartition("/")[2]), role)
        rights = found.setdefault(who, set())
        assert right not in rights
        rights.add(right)
    has_gpu = variant not in WITHOUT_GPU
    expected = {who: rights for who, rights in RIGHTS.items() if who != "gpu" or has_gpu}
    if variant == "complete":
        expected |= WITH_GRAFANA
    if not has_gpu:
        expected["cpu"] = {right for right in expected["cpu"] if right[0] != GPU_QUEUE}
    if variant == "container":
        expected["cpu"].add(("cr", "AcrPull"))
    assert found == expected


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("service", ["router", "cpu"])
def test_an_apps_code_is_written_by_no_other_app(variant: str, service: str) -> None:
    """Whoever takes one app over must not have the next one run code of theirs.

    Its own identity must: the platform puts there, as the app, what is deployed.
    """
    app = apps_of(variant)[service]
    if app["type"] == "Microsoft.App/containerApps":
        pytest.skip("an image, which nobody but who deploys writes into the registry")
    deployment = app["properties"]["functionAppConfig"]["deployment"]
    package = evaluated(deployment["storage"]["value"])
    account, container = re.findall(r"^https://(\w+)\.blob\.[^/]+/([\w-]+)$", package)[0]
    (found,) = (
        each["id"]
        for each in of_type(variant, "Microsoft.Storage/storageAccounts/blobServices/containers")
        if each["id"].endswith(f"/{account}/blobServices/default/containers/{container}")
    )
    writers = {
        who
        for who, scope, role in _assignments(variant)
        if role in WRITES and (found == scope or found.startswith(f"{scope}/"))
    }
    assert writers == {service}


def _assignments(variant: str) -> Iterator[tuple[str, str, str]]:
    """Who has it, on which resource's id, the role's name."""
    for assignment in of_type(variant, "Microsoft.Authorization/roleAssignments"):
        properties = assignment["properties"]
        who = re.search(r"/id-(\w+)-", properties["principalId"])
        scope = assignment["id"].partition("/providers/Microsoft.Authorization/")[0]
        role = ROLE_NAMES[properties["roleDefinitionId"].rpartition("/")[2]]
        systems = {"/systemTopics/": "events", "/grafana/": "grafana"}
        own = [name for part, name in systems.items() if part in properties["principalId"]]
        yield who[1] if who else own[0] if own else "deployer", scope, role


# Of Microsoft's list of what the Flex Consumption plan refuses, as site properties and as settings.
REFUSED_PROPERTIES = {
    *("alwaysOn", "ftpsState", "functionAppScaleLimit", "javaVersion", "linuxFxVersion"),
    *("minimumElasticInstanceCount", "netFrameworkVersion", "powerShellVersion", "pythonVersion"),
    *("preWarmedInstanceCount", "use32BitWorkerProcess", "vnetPrivatePortsCount", "vnetRouteAllEnabled"),
    *("windowsFxVersion", "containerSize", "isReserved", "isXenon"),
}
REFUSED_SETTINGS = {
    *("ENABLE_ORYX_BUILD", "FUNCTIONS_EXTENSION_VERSION", "FUNCTIONS_MAX_HTTP_CONCURRENCY"),
    *("FUNCTIONS_WORKER_DYNAMIC_CONCURRENCY_ENABLED", "FUNCTIONS_WORKER_PROCESS_COUNT"),
    *("FUNCTIONS_WORKER_RUNTIME", "FUNCTIONS_WORKER_RUNTIME_VERSION", "SCM_DO_BUILD_DURING_DEPLOYMENT"),
    *("WEBSITE_CONTENTAZUREFILECONNECTIONSTRING", "WEBSITE_CONTENTOVERVNET", "WEBSITE_CONTENTSHARE"),
    *("WEBSITE_DNS_SERVER", "WEBSITE_MAX_DYNAMIC_APPLICATION_SCALE_OUT", "WEBSITE_RUN_FROM_PACKAGE"),
    *("WEBSITE_SKIP_CONTENTSHARE_VALIDATION", "WEBSITE_VNET_ROUTE_ALL"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_flex_is_given_nothing_that_it_refuses(variant: str) -> None:
    """The types take each of them, and so does the compiler; the platform does not."""
    for site in of_type(variant, "Microsoft.Web/sites"):
        properties = site["properties"]
        assert (set(properties) | set(properties["siteConfig"])).isdisjoint(REFUSED_PROPERTIES)
        assert set(settings_of(site)).isdisjoint(REFUSED_SETTINGS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_host_lets_through_what_the_router_takes(variant: str) -> None:
    """A file and its form; the platform ends at 210 MB, and the host by itself at 100 MiB."""
    limit = int(settings_of(apps_of(variant)["router"])["FUNCTIONS_REQUEST_BODY_SIZE_LIMIT"])
    assert Settings().max_file_bytes + 1_000_000 <= limit <= 210_000_000
    assert Settings().max_body_bytes < 104_857_600


def test_a_stand_in_image_listens_where_the_ingress_leads() -> None:
    """The base image alone listens on 80, and a revision that nobody reaches fails the deployment."""
    app = apps_of("complete")["gpu"]
    port = app["properties"]["configuration"]["ingress"]["targetPort"]
    assert settings_of(app)["ASPNETCORE_URLS"] == f"http://+:{port}"


def test_requests_do_not_wait_for_a_cold_gpu_by_their_number_alone() -> None:
    """It takes minutes to come: the router goes by the time that it expects."""
    assert settings_of(apps_of("complete")["router"])["BLITZ_ROUTING"] == "adaptive"


@pytest.mark.parametrize("variant", VARIANTS)
def test_telemetry_is_let_in_by_identity_alone(variant: str) -> None:
    """Each app shows its own identity's token; a key that many may read lets nobody write."""
    (component,) = of_type(variant, "Microsoft.Insights/components")
    assert component["properties"]["DisableLocalAuth"] is True
    for app in apps_of(variant).values():
        settings = settings_of(app)
        string = settings["APPLICATIONINSIGHTS_AUTHENTICATION_STRING"]
        client_id = settings["AZURE_CLIENT_ID"].removeprefix("[").removesuffix("]")
        assert string == f"[format('ClientId={{0}};Authorization=AAD', {client_id})]"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_workbook_asks_application_insights(variant: str) -> None:
    """It is the file's, and its queries, which name no resource, ask the component."""
    (component,) = of_type(variant, "Microsoft.Insights/components")
    (workbook,) = of_type(variant, "Microsoft.Insights/workbooks")
    UUID(workbook["name"])
    assert workbook["kind"] == "shared"
    assert workbook["properties"]["sourceId"] == component["id"]
    deployed = json.loads(workbook["properties"]["serializedData"])
    file = json.loads((INFRA / "dashboards" / "workbook.json").read_text("utf-8"))
    assert deployed == {**file, "fallbackResourceIds": [component["id"]]}
    assert "crossComponentResources" not in json.dumps(file)


@pytest.mark.parametrize("variant", VARIANTS)
def test_storage_has_no_keys_and_no_public_blobs(variant: str) -> None:
    """One for each app's host and one for data: for identities alone, over TLS 1.2."""
    accounts = of_type(variant, "Microsoft.Storage/storageAccounts")
    hosts = {f"st{service}" for service in apps_of(variant)}
    assert {each["name"][:-13] for each in accounts} == hosts | {"stdata"}
    for account in accounts:
        # Azure's rule for names, which are the whole world's.
        assert re.fullmatch(r"[a-z0-9]{3,24}", account["name"])
        properties = account["properties"]
        assert properties["allowSharedKeyAccess"] is False
        assert properties["allowBlobPublicAccess"] is False
        assert properties["supportsHttpsTrafficOnly"] is True
        assert properties["minimumTlsVersion"] == "TLS1_2"


def test_containers_and_queues_are_those_of_the_code() -> None:
    """Models, keys, bulk, each queue with its poison queue, and a package container for each zip app."""
    containers = _last_names("Microsoft.Storage/storageAccounts/blobServices/containers")
    assert containers == {"models", "keys", SOURCE, OUT, DEAD_LETTERS, "deploy-router", "deploy-cpu"}
    queues = _last_names("Microsoft.Storage/storageAccounts/queueServices/queues")
    assert queues == QUEUES | {f"{name}-poison" for name in QUEUES}
    assert _bulk_names() <= containers | queues
    for service in ("router", "cpu"):
        deployment = apps_of("complete")[service]["properties"]["functionAppConfig"]["deployment"]
        assert evaluated(deployment["storage"]["value"]).endswith(f".net/deploy-{service}")


def test_new_blobs_become_messages_that_the_code_reads() -> None:
    """Event Grid writes bulk-in's blobs to the queue of the code's trigger, as its own identity."""
    (subscription,) = of_type("complete", "Microsoft.EventGrid/systemTopics/eventSubscriptions")
    properties = subscription["properties"]
    assert "destination" not in properties
    delivery = properties["deliveryWithResourceIdentity"]
    # Its own: with a storage firewall a user-assigned one cannot deliver to a queue.
    assert delivery["identity"] == {"type": "SystemAssigned"}
    (topic,) = of_type("complete", "Microsoft.EventGrid/systemTopics")
    assert topic["identity"] == {"type": "SystemAssigned"}
    assert delivery["destination"]["endpointType"] == "StorageQueue"
    assert delivery["destination"]["properties"]["queueName"] == EVENTS
    subject = properties["filter"]["subjectBeginsWith"]
    event = {"subject": f"{subject}a/b.jsonl", "data": {"eTag": "0x1"}}
    assert blobs_of(json.dumps(event).encode()) == ([("a/b.jsonl", "0x1")], 0)
    dead = properties["deadLetterWithResourceIdentity"]
    assert dead["identity"] == delivery["identity"]
    assert dead["deadLetterDestination"]["properties"] == {
        "resourceId": delivery["destination"]["properties"]["resourceId"],
        "blobContainerName": DEAD_LETTERS,
    }


@pytest.mark.parametrize("service", ["router", "cpu", "gpu"])
def test_memory_that_was_freed_is_not_kept_in_an_arena_a_thread(service: str) -> None:
    """What a long text takes goes back to the system, as on one machine."""
    assert settings_of(apps_of("complete")[service])["MALLOC_ARENA_MAX"] == "2"


def test_the_cpu_app_knows_whether_there_is_a_gpu() -> None:
    """It sends bulk jobs to the GPU's queue only where somebody reads it."""
    assert settings_of(apps_of("complete")["cpu"])["BLITZ_GPU_BACKEND_URL"].startswith("[")
    assert settings_of(apps_of("gpu-off")["cpu"])["BLITZ_GPU_BACKEND_URL"] == ""
    assert settings_of(apps_of("gpu-off")["router"])["BLITZ_GPU_BACKEND_URL"] == ""


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_router_calls_a_backend(variant: str) -> None:
    """Whoever else has a token of the tenant, or none, gets 401."""
    backends = {name: app for name, app in apps_of(variant).items() if name != "router"}
    assert set(backends) == ({"cpu"} if variant in WITHOUT_GPU else {"cpu", "gpu"})
    for app in backends.values():
        auth = _auth_of(variant, app)
        assert auth["platform"]["enabled"] is True
        assert auth["globalValidation"]["unauthenticatedClientAction"] == "Return401"
        assert auth["globalValidation"].get("requireAuthentication", True) is True
        assert not auth["globalValidation"].get("excludedPaths")
        (allowed,) = _validation(auth)["defaultAuthorizationPolicy"]["allowedApplications"]
        assert "/id-router-" in allowed
        assert (
            settings_of(apps_of(variant)["router"])["BLITZ_BACKEND_AUDIENCE"]
            in (_validation(auth)["allowedAudiences"])
        )


def test_callers_come_with_keys_or_through_the_gateway() -> None:
    """Without API Management the router checks keys; behind it, it takes only the gateway's token."""
    router = apps_of("complete")["router"]
    assert settings_of(router)["BLITZ_API_KEY_HASHES"]
    keys = evaluated(settings_of(router)["BLITZ_API_KEYS"])
    assert re.fullmatch(r"https://stdata\w+\.blob\.core\.windows\.net/keys/keys\.json", keys)
    assert _auth_of("complete", router) == {}
    router = apps_of("apim")["router"]
    assert settings_of(router)["BLITZ_API_KEY_HASHES"] == ""
    assert settings_of(router)["BLITZ_API_KEYS"] == ""
    auth = _auth_of("apim", router)
    (allowed,) = _validation(auth)["defaultAuthorizationPolicy"]["allowedApplications"]
    assert "/id-gateway-" in allowed
    assert auth["globalValidation"]["requireAuthentication"] is True


def test_the_gateway_asks_for_keys_and_limits_each() -> None:
    """Its policy has no placeholder left, and hands the router a token instead of the caller's key."""
    (api,) = of_type("apim", "Microsoft.ApiManagement/service/apis")
    assert api["properties"]["subscriptionRequired"] is True
    (policy,) = of_type("apim", "Microsoft.ApiManagement/service/apis/policies")
    value = policy["properties"]["value"]
    # Written as an expression of replacements, because the client id is not known yet.
    for placeholder in ("{audience}", "{clientId}", "{rateLimitPerMinute}"):
        assert placeholder in (INFRA / "apim-policy.xml").read_text("utf-8")
        assert f"'{placeholder}'" in value or placeholder not in value
    assert "rate-limit-by-key" in value
    assert "authentication-managed-identity" in value


class _Places:
    """Stands for a request's headers or query, has nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def get(self, name: str, default: str) -> str:
        self.asked.add(name.lower())
        return default


def test_no_key_of_a_caller_passes_the_gateway() -> None:
    """It ends wherever the router would look for one, and where the gateway itself takes one."""
    headers, query = _Places(), _Places()
    request = cast(HTTPConnection, SimpleNamespace(headers=headers, query_params=query))
    assert not list(auth._keys_in(request))
    (api,) = of_type("apim", "Microsoft.ApiManagement/service/apis")
    taken = api["properties"]["subscriptionKeyParameterNames"]
    assert {"authorization", taken["header"]} <= headers.asked
    assert taken["query"] in query.asked
    inbound = ElementTree.parse(INFRA / "apim-policy.xml").find("inbound")
    assert inbound is not None
    steps = [(each.tag, each.get("name", "").lower(), each.get("exists-action")) for each in inbound]
    assert {("set-header", name, "delete") for name in headers.asked} <= set(steps)
    assert {("set-query-parameter", name, "delete") for name in query.asked} <= set(steps)
    # The gateway's own token comes last: nothing takes it away again.
    assert steps[-1][0] == "authentication-managed-identity"
    # And after the products' policies: none of them brings a key back.
    order = [tag for tag, _, _ in steps]
    base = order.index("base")
    assert all(steps.index(("set-header", name, "delete")) > base for name in headers.asked)


def test_a_keys_product_says_which_backend_comes_first() -> None:
    """The gateway takes the header from nobody, before the products' policies run, which set it."""
    policy = ElementTree.parse(INFRA / "apim-policy.xml").find("inbound")
    assert policy is not None
    first, base = policy[:2]
    assert (first.tag, base.tag) == ("set-header", "base")
    assert first.attrib == {"name": preference.HEADER, "exists-action": "delete"}
    found = {}
    for each in of_type("apim", "Microsoft.ApiManagement/service/products/policies"):
        inbound = ElementTree.fromstring(each["properties"]["value"]).find("inbound")
        assert inbound is not None
        base, header = inbound
        assert base.tag == "base"
        assert header.attrib == {"name": preference.HEADER, "exists-action": "override"}
        found[each["name"].split("/")[1]] = header.findtext("value")
    assert found == {device: device for device in preference.DEVICES}
    products = of_type("apim", "Microsoft.ApiManagement/service/products")
    assert {each["name"].split("/")[1] for each in products} == set(found)
    assert all(each["properties"]["subscriptionRequired"] is True for each in products)
    served = of_type("apim", "Microsoft.ApiManagement/service/products/apis")
    assert sorted(each["name"].split("/")[1:] for each in served) == [
        ["cpu", "embeddings"],
        ["gpu", "embeddings"],
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_scales_to_zero(variant: str) -> None:
    """By default nothing that is idle costs instance time."""
    for app in apps_of(variant).values():
        if app["type"] == "Microsoft.App/containerApps":
            scale = app["properties"]["template"]["scale"]
            assert (scale["minReplicas"], scale["maxReplicas"], scale["cooldownPeriod"]) == (0, 10, 300)
        else:
            config = app["properties"]["functionAppConfig"]["scaleAndConcurrency"]
            assert config["alwaysReady"] == []
            assert config["maximumInstanceCount"] == 40
            assert config["triggers"]["http"]["perInstanceConcurrency"] > 1


def test_scale_is_what_the_parameters_say() -> None:
    """Each one arrives at its own app."""
    given = {
        **{"alwaysReadyRouter": 1, "maxInstancesRouter": 50, "routerHttpConcurrency": 11},
        **{"alwaysReadyCpu": 2, "maxInstancesCpu": 60, "cpuHttpConcurrency": 12},
        **{"gpuMaxReplicas": 3, "gpuCooldownSeconds": 120, "gpuAheadSeconds": 90},
    }
    apps = apps_of("complete", "".join(f"param {name} = {value}\n" for name, value in given.items()))
    for name, ready, most, requests in (("router", 1, 50, 11), ("cpu", 2, 60, 12)):
        config = apps[name]["properties"]["functionAppConfig"]["scaleAndConcurrency"]
        assert config["alwaysReady"] == [{"name": "http", "instanceCount": ready}]
        assert config["maximumInstanceCount"] == most
        assert config["triggers"]["http"]["perInstanceConcurrency"] == requests
    scale = apps["gpu"]["properties"]["template"]["scale"]
    assert (scale["minReplicas"], scale["maxReplicas"], scale["cooldownPeriod"]) == (0, 3, 120)
    router = settings_of(apps["router"])
    assert (router["BLITZ_GPU_IDLE_S"], router["BLITZ_GPU_AHEAD_S"]) == ("120", "90")


def test_the_gpu_runs_on_its_profile() -> None:
    """The replica asks for all that the profile has, and consumption profiles take no counts."""
    app = apps_of("complete")["gpu"]
    (environment,) = of_type("complete", "Microsoft.App/managedEnvironments")
    profiles = {each["name"]: each for each in environment["properties"]["workloadProfiles"]}
    assert profiles[app["properties"]["workloadProfileName"]] == {
        "name": "gpu",
        "workloadProfileType": "Consumption-GPU-NC8as-T4",
    }
    assert app["kind"] == "functionapp"
    (container,) = app["properties"]["template"]["containers"]
    assert container["resources"] == {"cpu": 8, "memory": "56Gi"}
    assert settings_of(app)["AzureWebJobsSecretStorageType"] == "Files"


def test_a_gpu_is_asked_for_by_as_many_chunks_as_it_takes_at_once() -> None:
    """The platform's rules go by the setting, those of the hooks by their own number."""
    setting = "AzureFunctionsJobHost__extensions__queues__batchSize"
    chunks = settings_of(apps_of("complete")["gpu"])[setting]
    for name in ("scale.sh", "scale.ps1"):
        text = (ROOT / "infra" / "hooks" / name).read_text()
        assert re.findall(r'"queueLength": "(\d+)"', text) == [chunks]


def test_a_cpu_app_in_a_container_is_the_blogs() -> None:
    """4 vCPU, 16 GiB, 0 to 10 replicas, a new one for 10 requests at a time or a CPU that is 70 % busy.

    Such a machine is a profile of its own; and without a kind the platform derives no rule for a queue.
    """
    app = apps_of("container")["cpu"]
    assert app["tags"]["azd-service-name"] == "cpu-container"
    assert app.get("kind") is None
    template = app["properties"]["template"]
    assert template["containers"][0]["resources"] == {"cpu": 4, "memory": "16Gi"}
    (environment,) = of_type("container", "Microsoft.App/managedEnvironments")
    profiles = {each["name"]: each for each in environment["properties"]["workloadProfiles"]}
    machine = {"workloadProfileType": "D4", "minimumCount": 0, "maximumCount": 10}
    assert profiles[app["properties"]["workloadProfileName"]] == {"name": "cpu", **machine}
    scale = template["scale"]
    assert (scale["minReplicas"], scale["maxReplicas"]) == (0, 10)
    http, busy, *queues = scale["rules"]
    assert http == {"name": "http", "http": {"metadata": {"concurrentRequests": "10"}}}
    assert busy["custom"] == {"type": "cpu", "metadata": {"type": "Utilization", "value": "70"}}
    read = {EVENTS, SPLIT, queue_of("cpu"), FINISH}
    names = {rule["custom"]["metadata"]["queueName"] for rule in queues}
    assert names == read | {f"{name}-poison" for name in read}
    assert all("/id-cpu-" in rule["custom"]["identity"] for rule in queues)


def test_a_container_has_the_settings_of_the_app_on_flex() -> None:
    """All but those of the host and of the memory, of which it has more."""
    flex, container = (settings_of(apps_of(variant)["cpu"]) for variant in ("gpu-off", "container"))
    differ = {name for name in flex | container if flex.get(name) != container.get(name)}
    assert differ == {
        *("AzureWebJobsSecretStorageType", "ASPNETCORE_URLS"),
        *("BLITZ_CACHE_MEMORY_BYTES", "BLITZ_BATCH_MEMORY_BYTES"),
    }
    taken = sum(int(container[f"BLITZ_{name}_MEMORY_BYTES"]) for name in ("CACHE", "BATCH"))
    assert taken <= 0.85 * 16 * 2**30


def test_memory_for_models_fits_the_machine() -> None:
    """Half of the GPU's 16 GB at most; and the CPU app's models leave the instance room to work."""
    cache = {
        name: int(settings_of(app)["BLITZ_CACHE_MEMORY_BYTES"])
        for name, app in apps_of("complete").items()
        if name != "router"
    }
    instance_mb = apps_of("complete")["cpu"]["properties"]["functionAppConfig"]["scaleAndConcurrency"][
        "instanceMemoryMB"
    ]
    assert cache["cpu"] <= 0.65 * instance_mb * 2**20
    assert cache["gpu"] <= 8e9


@pytest.mark.parametrize("variant", VARIANTS)
def test_web_traffic_is_encrypted_and_passwords_are_off(variant: str) -> None:
    """HTTPS alone, TLS 1.2, no FTP, no publishing password, no plain ingress."""
    for site in of_type(variant, "Microsoft.Web/sites"):
        assert site["properties"]["httpsOnly"] is True
        assert site["properties"]["siteConfig"]["minTlsVersion"] == "1.2"
    policies = of_type(variant, "Microsoft.Web/sites/basicPublishingCredentialsPolicies")
    sites = of_type(variant, "Microsoft.Web/sites")
    assert [each["properties"]["allow"] for each in policies] == [False] * 2 * len(sites)
    for app in of_type(variant, "Microsoft.App/containerApps"):
        assert app["properties"]["configuration"]["ingress"]["allowInsecure"] is False
    for registry in of_type(variant, "Microsoft.ContainerRegistry/registries"):
        assert registry["properties"]["adminUserEnabled"] is False


def test_isolated_apps_and_accounts_have_no_open_door() -> None:
    """Storage, CPU app and GPU environment are reached through the virtual network alone."""
    for account in of_type("isolated", "Microsoft.Storage/storageAccounts"):
        acls = account["properties"]["networkAcls"]
        assert acls["defaultAction"] == "Deny"
        assert [rule["value"] for rule in acls["ipRules"]] == ["203.0.113.0/24"]
    apps = apps_of("isolated")
    assert apps["cpu"]["properties"]["siteConfig"]["ipSecurityRestrictionsDefaultAction"] == "Deny"
    assert apps["router"]["properties"]["siteConfig"]["ipSecurityRestrictionsDefaultAction"] == "Allow"
    for name in ("router", "cpu"):
        assert apps[name]["properties"]["virtualNetworkSubnetId"].endswith(f"/subnets/{name}")
    (environment,) = of_type("isolated", "Microsoft.App/managedEnvironments")
    network = environment["properties"]["vnetConfiguration"]
    assert network["internal"] is True
    assert network["infrastructureSubnetId"].endswith("/subnets/gpu")
    endpoints = of_type("isolated", "Microsoft.Network/privateEndpoints")
    kinds = sorted(
        each["properties"]["privateLinkServiceConnections"][0]["properties"]["groupIds"][0]
        for each in endpoints
    )
    # The hosts' accounts have no queue that anybody may use.
    assert kinds == [*["blob"] * 4, "queue", "sites", *["table"] * 3]
    accounts = {each["name"] for each in of_type("isolated", "Microsoft.Storage/storageAccounts")}
    reached = {each["name"].split("-")[1] for each in endpoints}
    assert accounts | {"cpu"} == reached


@pytest.mark.parametrize("variant", VARIANTS)
def test_links_to_files_are_for_callers_that_reach_them(variant: str) -> None:
    """With isolation nobody outside reaches the account that a link would lead to."""
    setting = settings_of(apps_of(variant)["router"])["BLITZ_LINK_DOWNLOADS"]
    assert setting == ("false" if variant == "isolated" else "true")


def test_variants_differ_as_they_say() -> None:
    """No network without isolation, no gateway without API Management, no GPU's things without a GPU."""
    types = {variant: {each["type"] for each in resources_of(variant)} for variant in VARIANTS}
    assert set(types) == {"apim", "complete", "container", "gpu-off", "isolated"}
    for variant, present in types.items():
        assert any(each.startswith("Microsoft.Network/") for each in present) == (variant == "isolated")
        assert ("Microsoft.ApiManagement/service" in present) == (variant == "apim")
        assert ("Microsoft.App/containerApps" in present) == (variant != "gpu-off")
        assert ("Microsoft.ContainerRegistry/registries" in present) == (variant != "gpu-off")
        profiles = str(of_type(variant, "Microsoft.App/managedEnvironments"))
        assert ("GPU" in profiles) == (variant not in WITHOUT_GPU)
        assert ("Microsoft.Consumption/budgets" in present) == (variant == "complete")
        assert ("Microsoft.Dashboard/grafana" in present) == (variant == "complete")
        assert ("Microsoft.Insights/actionGroups" in present) == (
            variant not in {"container", "isolated"}
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_deployed_holds_a_secret(variant: str) -> None:
    """Application Insights' connection string, which says where telemetry goes, is the only one."""
    text = json.dumps(resources_of(variant))
    assert not re.search(r"list(Keys|Secrets)\(|AccountKey|SharedAccess", text)
    for app in apps_of(variant).values():
        named = {
            name for name in settings_of(app) if re.search(r"key|secret|password|connection", name, re.I)
        }
        assert named <= {
            "APPLICATIONINSIGHTS_CONNECTION_STRING",
            "AzureWebJobsSecretStorageType",
            "BLITZ_API_KEY_HASHES",
            "BLITZ_API_KEYS",
        }


def _last_names(type_name: str) -> set[str]:
    return {each["name"].rpartition("/")[2] for each in of_type("complete", type_name)}


def _auth_of(variant: str, app: dict[str, Any]) -> dict[str, Any]:
    """The properties of an app's authentication; {} if it has none."""
    for suffix in ("/config/authsettingsV2", "/authConfigs/current"):
        for resource in resources_of(variant):
            if resource["id"] == app["id"] + suffix:
                properties: dict[str, Any] = resource["properties"]
                return properties
    return {}


def _validation(auth: dict[str, Any]) -> Any:
    return auth["identityProviders"]["azureActiveDirectory"]["validation"]


def _bulk_names() -> set[str]:
    """Every string of the code that looks like the name of a bulk container or queue."""
    return {
        node.value
        for package in ("functions", "shared")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"bulk-[a-z]+(-poison)?", node.value)
    }
