"""What the generator writes, and the manifest has, is what this version of Ray takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from functions.cluster.config import serve_config
from functions.cluster.serve import build
from functions.cluster.sizes import Sizes
from tests.server import ROOT


def test_ray_takes_the_generated_file_and_the_manifests() -> None:
    """By its own schema, which refuses unknown fields."""
    generated = serve_config({"BLITZ_MODEL_STORE": "file://models"}, Sizes(max_gpu_replicas=2))
    manifest = (ROOT / "infra" / "kuberay" / "rayservice.yaml").read_text("utf-8")
    *_, service = yaml.safe_load_all(manifest)
    for config in (generated, yaml.safe_load(service["spec"]["serveConfigV2"])):
        (application,) = ServeDeploySchema.model_validate(config).applications
        assert application.import_path == f"{build.__module__}:{build.__name__}"


def test_the_builder_makes_every_deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Ray calls it, with the file's args and its environment."""
    monkeypatch.setenv("BLITZ_MODEL_STORE", f"file://{tmp_path}")
    application = build({"cpu_replicas": 2, "max_cpu_replicas": 3, "max_gpu_replicas": 1})
    assert application._bound_deployment.name == "router"
    handles = application._bound_deployment.init_args[1]
    assert {device: handle._bound_deployment.name for device, handle in handles.items()} == {
        "cpu": "cpu",
        "gpu": "gpu",
    }
