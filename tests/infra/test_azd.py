"""azure.yaml and the settings for `func start`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shared.settings import PREFIX, Settings
from tests.infra.bicep import INFRA, ROOT, apps_of, of_type

IMAGES = {"SERVICE_GPU_IMAGE_NAME", "SERVICE_CPU_CONTAINER_IMAGE_NAME"}
"""What azd calls the image of a service, once it has built one."""
SCHEMA = ROOT.parent / "shared" / "data" / "schemas" / "azure.yaml.v1.0.json"


@pytest.fixture(scope="module")
def project() -> Any:
    yaml: Any = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "azure.yaml").read_text("utf-8"))


def test_azure_yaml_follows_microsofts_schema(project: Any) -> None:
    """azd stops at a mistake, but only when somebody deploys."""
    if not SCHEMA.exists():
        pytest.skip("Microsoft's schema of azure.yaml is not beside the checkout")
    jsonschema: Any = pytest.importorskip("jsonschema")
    referencing: Any = pytest.importorskip("referencing")
    jsonschema_2019: Any = pytest.importorskip("referencing.jsonschema").DRAFT201909

    def anything(_: str) -> Any:
        # The schemas of azd's extensions for AI hosts, of which there is none here.
        return referencing.Resource(contents=True, specification=jsonschema_2019)

    schema = json.loads(SCHEMA.read_text("utf-8"))
    registry = referencing.Registry(retrieve=anything)
    validator = jsonschema.Draft201909Validator(schema, registry=registry)
    assert [error.message for error in validator.iter_errors(project)] == []
    broken = {**project, "services": {"router": {"host": "function", "remoteBuild": "perhaps"}}}
    assert list(validator.iter_errors(broken))


def test_a_pipeline_is_given_every_parameter(project: Any) -> None:
    """But those that azd hands on by itself. What lets somebody in, and a
    webhook, whose address often does, are masked in its log."""
    read = r"readEnvironmentVariable\(\s*'(\w+)'"
    variables = set(re.findall(read, (INFRA / "main.bicepparam").read_text("utf-8")))
    azds = {"AZURE_ENV_NAME", "AZURE_LOCATION", "AZURE_PRINCIPAL_ID", *IMAGES}
    secrets = {"API_KEY_HASHES", "ALERT_WEBHOOK"}
    assert set(project["pipeline"]["secrets"]) == secrets
    assert set(project["pipeline"]["variables"]) == variables - azds - secrets


def test_the_image_that_takes_longest_is_deployed_last(project: Any) -> None:
    """azd goes by the alphabet otherwise: a GPU build that fails would leave the router empty."""
    uses = {name: service.get("uses", []) for name, service in project["services"].items()}
    assert uses == {
        **{"router": [], "cpu": [], "cpu-container": ["router"]},
        "gpu": ["router", "cpu", "cpu-container"],
    }


def test_services_are_the_apps_that_bicep_makes(project: Any) -> None:
    """azd finds an app by its tag, and nothing else ties the two together."""
    made = [*apps_of("complete").values(), *apps_of("container").values()]
    hosts = {name: service["host"] for name, service in project["services"].items()}
    types = {"Microsoft.Web/sites": "function", "Microsoft.App/containerApps": "containerapp"}
    assert {app["tags"]["azd-service-name"]: types[app["type"]] for app in made} == hosts


def test_containers_keep_bicep_s_api_version(project: Any) -> None:
    """With an older one a deployment would drop the cool-down when it writes the template back."""
    for variant, service in (("complete", "gpu"), ("container", "cpu-container")):
        (app,) = of_type(variant, "Microsoft.App/containerApps")
        assert project["services"][service]["apiVersion"] == app["apiVersion"]


@pytest.mark.parametrize(
    ("host", "deployed"),
    [(None, "cpu"), ("", "cpu"), ("flex", "cpu"), ("container", "cpu-container")],
)
def test_one_parameter_says_which_cpu_app_is_deployed(
    project: Any, host: str | None, deployed: str
) -> None:
    """azd expands a condition as its library does, and takes few words for a truth."""
    found = [
        name
        for name in ("cpu", "cpu-container")
        if _expanded(project["services"][name]["condition"], host or "")
        in {"1", "true", "TRUE", "True", "yes", "YES", "Yes"}
    ]
    assert found == [deployed]


def _expanded(condition: str, host: str) -> str:
    """${CPU_HOST/OLD/NEW}: the value, its first OLD replaced, as github.com/drone/envsubst does it."""
    return re.sub(
        r"\$\{CPU_HOST/(\w+)/(\w*)\}", lambda found: host.replace(found[1], found[2], 1), condition
    )


def test_the_gpu_service_is_left_out_without_a_gpu(project: Any) -> None:
    """azd and Bicep read the same variable, with the same default."""
    assert project["services"]["gpu"]["condition"] == "${GPU_ENABLED=true}"
    parameters = (INFRA / "main.bicepparam").read_text("utf-8")
    assert "param gpuEnabled = bool(readEnvironmentVariable('GPU_ENABLED', 'true'))" in parameters


def test_no_service_has_a_bicep_file_of_its_name(project: Any) -> None:
    """azd would deploy infra/NAME.bicepparam instead of the image."""
    for name in project["services"]:
        assert not list(INFRA.glob(f"{name}.bicep*"))


def test_hooks_are_there_for_both_shells(project: Any) -> None:
    """Each event runs files that exist, with the same name for POSIX and for Windows."""
    run = []
    for hooks in project["hooks"].values():
        for hook in hooks if isinstance(hooks, list) else [hooks]:
            posix, windows = Path(hook["posix"]["run"]), Path(hook["windows"]["run"])
            assert (posix.suffix, windows.suffix) == (".sh", ".ps1")
            assert posix.with_suffix("") == windows.with_suffix("")
            assert (ROOT / posix).is_file()
            run.append(posix.stem)
    assert set(run) == {path.stem for path in (INFRA / "hooks").glob("*.sh")}


def test_scale_rules_do_not_wait_for_a_model(project: Any) -> None:
    """Publishing takes minutes and may fail, and azd then runs no hook after it."""
    run = [Path(hook["posix"]["run"]).stem for hook in project["hooks"]["postdeploy"]]
    assert run == ["scale", "publish"]
    run = [Path(hook["posix"]["run"]).stem for hook in project["hooks"]["postprovision"]]
    assert run == ["scale", "grafana"]


@pytest.mark.parametrize("service", ["gpu", "cpu-container"])
def test_an_image_is_built_from_files_that_exist(project: Any, service: str) -> None:
    """Paths are relative to the service's folder."""
    built = project["services"][service]
    assert (ROOT / built["project"] / built["docker"]["path"]).is_file()
    assert (ROOT / built["project"] / built["docker"]["context"]).resolve() == ROOT


def test_func_start_finds_valid_settings() -> None:
    """The sample runs the router with the CPU backend in its process, storage in Azurite."""
    sample = json.loads((ROOT / "local.settings.sample.json").read_text("utf-8"))
    values: dict[str, str] = sample["Values"]
    settings = Settings.from_env({k: v for k, v in values.items() if k.startswith(PREFIX)})
    assert (settings.role, settings.cpu_backend_url, settings.storage) == ("router", "", "azurite")
    assert values["FUNCTIONS_WORKER_RUNTIME"] == "python"
    assert values["AzureWebJobsStorage"] == values["BulkStorage"] == "UseDevelopmentStorage=true"
