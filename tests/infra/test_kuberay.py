"""The manifest for KubeRay on AKS: of the operator's form, and what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from functions.cluster.config import serve_config
from functions.cluster.sizes import Sizes, sizes_of
from shared.errors import Misconfigured

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "infra" / "kuberay" / "rayservice.yaml"
ACCOUNT, SERVICE = yaml.safe_load_all(MANIFEST.read_text("utf-8"))
CONFIG: dict[str, Any] = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
(APPLICATION,) = CONFIG["applications"]
SIZES = sizes_of(APPLICATION["args"])
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}

_NAMES = {"type": "object", "additionalProperties": {"type": "string"}}
_POD = {
    "type": "object",
    "additionalProperties": False,
    "required": ["metadata", "spec"],
    "properties": {
        "metadata": {"type": "object", "properties": {"labels": _NAMES}, "additionalProperties": False},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["serviceAccountName", "containers"],
            "properties": {
                "serviceAccountName": {"type": "string"},
                "securityContext": {"type": "object"},
                "containers": {"type": "array", "minItems": 1, "maxItems": 1},
                "terminationGracePeriodSeconds": {"type": "integer"},
                "nodeSelector": _NAMES,
                "tolerations": {"type": "array"},
            },
        },
    },
}
_GROUP = {
    "type": "object",
    "additionalProperties": False,
    "required": ["groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    "properties": {
        "groupName": {"type": "string"},
        **{
            name: {"type": "integer", "minimum": 0}
            for name in ("replicas", "minReplicas", "maxReplicas")
        },
        "rayStartParams": _NAMES,
        "template": _POD,
    },
}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayService"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["serveConfigV2", "rayClusterConfig"],
            "properties": {
                "serveConfigV2": {"type": "string"},
                "rayClusterConfig": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "enableInTreeAutoscaling": {"type": "boolean"},
                        "autoscalerOptions": {"type": "object"},
                        "headGroupSpec": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["rayStartParams", "template"],
                            "properties": {"rayStartParams": _NAMES, "template": _POD},
                        },
                        "workerGroupSpecs": {"type": "array", "minItems": 1, "items": _GROUP},
                    },
                },
            },
        },
    },
}
"""Of the operator's custom resource, version 1, what the manifest uses, and nothing else."""


def test_the_manifest_has_the_operators_form() -> None:
    """A field that the operator does not know is dropped silently by some, and refused by others."""
    jsonschema: Any = pytest.importorskip("jsonschema")
    jsonschema.validate(SERVICE, SCHEMA)


def test_the_config_is_what_the_generator_writes() -> None:
    """And all of it is valid: sizes and settings."""
    assert serve_config(APPLICATION["runtime_env"]["env_vars"], SIZES) == CONFIG


def test_ray_is_the_one_that_is_locked() -> None:
    """A cluster of mixed versions does not start."""
    lock = (ROOT / "functions/cluster/requirements.txt").read_text("utf-8")
    (version,) = re.findall(r"(?m)^ray==(\S+)", lock)
    assert CLUSTER["rayVersion"] == version


def test_replicas_fit_their_nodes() -> None:
    """At the least and at the most; Ray gives seven tenths of a node's memory to replicas."""
    (container,) = GROUPS["cpu"]["template"]["spec"]["containers"]
    cpus = int(container["resources"]["limits"]["cpu"])
    memory_gb = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30 / 1e9
    by_cpus = int((cpus - SIZES.router_cpus) // SIZES.replica_cpus)
    assert by_cpus >= 2
    assert by_cpus * SIZES.replica_memory_gb <= 0.7 * memory_gb
    assert by_cpus * GROUPS["cpu"]["maxReplicas"] >= SIZES.max_cpu_replicas
    assert GROUPS["gpu"]["maxReplicas"] == SIZES.max_gpu_replicas
    (container,) = GROUPS["gpu"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_pods_have_an_identity_and_no_key() -> None:
    """Workload identity reads the store; draining ends before a pod is killed."""
    assert "azure.workload.identity/client-id" in ACCOUNT["metadata"]["annotations"]
    for spec in (CLUSTER["headGroupSpec"], *GROUPS.values()):
        template = spec["template"]
        assert template["spec"]["serviceAccountName"] == ACCOUNT["metadata"]["name"]
        assert template["metadata"]["labels"]["azure.workload.identity/use"] == "true"
        assert template["spec"]["securityContext"]["runAsNonRoot"]
    assert "key" not in json.dumps(CONFIG).lower()
    for group in GROUPS.values():
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > SIZES.drain_s


@pytest.mark.parametrize(
    ("environ", "args", "told"),
    [
        ({"BLITZ_BACKEND_SECRET": "x"}, {}, "BLITZ_BACKEND_SECRET must not stand in a file"),
        ({"BLITZ_CACHE_MODEL": "x"}, {}, "did you mean BLITZ_CACHE_MODELS"),
        ({}, {"routers": 0}, "routers"),
        ({}, {"routers": 2, "max_routers": 1}, "max_routers is less than routers"),
        ({}, {"replicas": 2}, "unknown field `replicas`"),
    ],
)
def test_what_cannot_be_is_refused(environ: dict[str, str], args: dict[str, Any], told: str) -> None:
    with pytest.raises(Misconfigured, match=told):
        serve_config(environ, sizes_of(args))


def test_the_cpu_covers_for_the_gpu_unless_told_otherwise() -> None:
    """A node takes minutes to come."""
    routing = [
        serve_config(environ, Sizes(max_gpu_replicas=1))["applications"][0]["runtime_env"]["env_vars"]
        for environ in ({}, {"BLITZ_ROUTING": "fixed"})
    ]
    assert routing == [{"BLITZ_ROUTING": "adaptive"}, {"BLITZ_ROUTING": "fixed"}]
