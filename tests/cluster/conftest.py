"""A real Ray of this machine, and the service on it. Not collected where Ray is not installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from shared.models.store import open_store
from shared.settings import Settings
from tests.cluster.models import MODELS, SCORER
from tests.ingestion import Ingestion, running_ingestion
from tests.server import ROOT

collect_ignore_glob = [] if find_spec("ray") else ["*"]

if find_spec("ray"):
    from functions.cluster.start import OPTIONS

    os.environ |= {**OPTIONS, **os.environ}
os.environ["PYTHONPATH"] = str(ROOT)  # of Ray's processes
os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tiny embedding models and a cross-encoder, whose answers numpy can compute."""
    folder = tmp_path_factory.mktemp("store")
    store = open_store(Settings(model_store=f"file://{folder}"))
    for model in (*MODELS, SCORER):
        model.publish(store)
    return folder


@pytest.fixture(scope="module")
def telemetry() -> Iterator[Ingestion]:
    """What all processes of the service send to Azure."""
    with running_ingestion() as ingestion:
        yield ingestion


@pytest.fixture(scope="module")
def service(store_folder: Path, telemetry: Ingestion) -> Iterator[str]:
    """The service with two CPU replicas of three models each; yields its URL."""
    from tests.cluster.running import running_cluster, running_service

    with running_cluster() as port:
        string = telemetry.connection_string
        yield from running_service(store_folder, port, applicationinsights_connection_string=string)
