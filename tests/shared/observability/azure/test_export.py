"""The export against a fake ingestion endpoint: opencensus' real transport over real HTTP."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.core.credentials import TokenCredential
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.identity import CredentialUnavailableError
from prometheus_client import CollectorRegistry

from shared.context import trace
from shared.contracts import DecodeResult, Timings
from shared.errors import Misconfigured
from shared.observability.azure.export import AzureExport
from shared.observability.logs import FAILURE, Failure
from shared.observability.metrics import Telemetry
from shared.observability.start import start_export
from shared.settings import Settings
from shared.storage.connect import open_storage
from tests.fakes.credential import FakeCredential
from tests.ingestion import Ingestion, running_ingestion
from tests.patience import PATIENCE_S, wait_until
from tests.server import ROOT, running_service
from tests.tiny import Tiny, publish_all

# opencensus (1.1.15) uses what Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

TEXT = "w1 zebra-that-nobody-may-log"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def ingestion() -> Iterator[Ingestion]:
    with running_ingestion() as running:
        yield running


@pytest.fixture
def metrics() -> Telemetry:
    return Telemetry(CollectorRegistry())


@pytest.fixture
def export(ingestion: Ingestion, metrics: Telemetry, tmp_path: Path) -> Iterator[AzureExport]:
    """Sends when it is closed."""
    export = _export(ingestion, metrics, tmp_path)
    yield export
    export.close()


def _export(
    ingestion: Ingestion,
    metrics: Telemetry,
    folder: Path,
    *,
    credential: TokenCredential | None = None,
    **kwargs: float,
) -> AzureExport:
    arguments = {"send_s": 600.0, **kwargs}
    export = AzureExport(
        ingestion.connection_string,
        "router",
        metrics,
        credential=credential,
        folder=folder,
        **arguments,  # type: ignore[arg-type]
    )
    export.start()
    return export


def test_a_request_and_its_call_of_a_backend_are_one_operation(
    export: AzureExport, ingestion: Ingestion, metrics: Telemetry
) -> None:
    """The caller's trace id, ids that point at each other, durations, codes, and figures of the work."""
    with trace.serving(CALLER) as request:
        request.name, request.status = "POST /embed", 200
        with trace.calling("POST /embed", "backend:80") as call:
            call.status = 503
        timings = Timings(tokenization_s=0.001, queue_s=0.5, inference_s=0.25)
        result = DecodeResult(("a", "b"), (3, 4), "m", "r", timings)
        metrics.request_succeeded(result, inputs=2, duration_s=1.0)
    export.close()
    (answered,) = ingestion.of_type("RequestData")
    (dependency,) = ingestion.of_type("RemoteDependencyData")
    assert dependency["tags"]["ai.operation.id"] == answered["tags"]["ai.operation.id"] == CALLER[3:35]
    assert answered["tags"]["ai.operation.parentId"] == CALLER[36:52]
    assert answered["tags"]["ai.cloud.role"] == "blitz-router"
    assert answered["iKey"] == ingestion.key
    assert answered["name"] == "Microsoft.ApplicationInsights.Request"
    data = answered["data"]["baseData"]
    assert dependency["tags"]["ai.operation.parentId"] == data["id"] == request.span_id
    assert (data["name"], data["responseCode"], data["success"]) == ("POST /embed", "200", True)
    assert re.fullmatch(r"0\.00:0\d:\d\d\.\d+", data["duration"])
    assert data["properties"] == {"model": "m"}
    assert data["measurements"]["queue_s"] == 0.5
    assert data["measurements"]["tokens"] == 7
    called = dependency["data"]["baseData"]
    assert (called["target"], called["resultCode"], called["success"]) == ("backend:80", "503", False)


def test_a_call_without_an_answer_tells_what_came_instead(
    export: AzureExport, ingestion: Ingestion
) -> None:
    """The class of the error stands where the status would."""
    with pytest.raises(ConnectionError), trace.serving(), trace.calling("POST /embed", "backend:80"):
        raise ConnectionError
    export.close()
    (called,) = ingestion.of_type("RemoteDependencyData")
    assert called["data"]["baseData"]["resultCode"] == "ConnectionError"
    assert called["data"]["baseData"]["success"] is False


def test_a_step_is_a_request_without_a_status(export: AzureExport, ingestion: Ingestion) -> None:
    """Its result is ok, or the class of what it raised."""
    with trace.working("bulk embed"):
        trace.note({"job": "j"}, {"rows": 2})
    with pytest.raises(ConnectionError), trace.working("bulk finish"):
        raise ConnectionError
    export.close()
    done, failed = (each["data"]["baseData"] for each in ingestion.of_type("RequestData"))
    assert (done["name"], done["responseCode"], done["success"]) == ("bulk embed", "ok", True)
    assert (done["properties"], done["measurements"]) == ({"job": "j"}, {"rows": 2})
    assert (failed["responseCode"], failed["success"]) == ("ConnectionError", False)


def test_exceptions_come_with_their_frames_and_without_their_message(
    export: AzureExport, ingestion: Ingestion
) -> None:
    """In the operation they happened in; whichever way they were logged."""
    log = logging.getLogger("functions.test")
    with trace.serving(CALLER) as request:
        try:
            raise ValueError(TEXT)
        except ValueError as error:
            log.error("unexpected", extra={FAILURE: Failure.of(error)})
            log.exception("unexpected")
    export.close()
    first, second = ingestion.of_type("ExceptionData")
    for each in (first, second):
        (told,) = each["data"]["baseData"]["exceptions"]
        assert (told["typeName"], told["message"]) == ("ValueError", "unexpected")
        assert told["parsedStack"][0]["method"] == (
            "test_exceptions_come_with_their_frames_and_without_their_message"
        )
        assert each["tags"]["ai.operation.id"] == CALLER[3:35]
        assert each["tags"]["ai.operation.parentId"] == request.span_id
    assert TEXT.encode() not in b"".join(ingestion.bodies)


def test_our_logs_are_sent_and_those_of_libraries_are_not(
    export: AzureExport, ingestion: Ingestion
) -> None:
    """With severity, logger and fields; a library may log whatever it was given."""
    logging.getLogger("azure.core").error(TEXT)
    logging.getLogger("shared.test").warning("a %s", "warning", extra={"texts": 3})
    logging.getLogger("shared.test").debug("too much")
    export.close()
    (message,) = ingestion.of_type("MessageData")
    data = message["data"]["baseData"]
    assert (data["message"], data["severityLevel"]) == ("a warning", 2)
    assert data["properties"] == {"logger": "shared.test", "texts": "3"}


def test_counters_and_histograms_are_sent_as_what_was_added(
    ingestion: Ingestion, metrics: Telemetry, tmp_path: Path
) -> None:
    """So that sums over pushes are totals; gauges as they are, and what did not change not at all."""
    export = _export(ingestion, metrics, tmp_path, send_s=0.001, metrics_s=0.0)
    metrics.cache_hit()
    metrics.batch_ran(texts=3, padded_tokens=30)
    metrics.batch_ran(texts=1, padded_tokens=10)
    metrics.cache_holds(models=2, memory_bytes=100)
    for _ in range(3):  # several pushes, each begun after what was counted above
        ingestion.posted.clear()
        assert ingestion.posted.wait(PATIENCE_S)
    export.close()
    sums = ingestion.metrics()
    assert sums["blitz_cache_hits"] == 1
    assert sums["te_batch_next_size"] == 4
    assert "te_request_count" not in sums
    points = [each["data"]["baseData"]["metrics"][0] for each in ingestion.of_type("MetricData")]
    assert sum(point["count"] for point in points if point["name"] == "te_batch_next_size") == 2
    assert {point["value"] for point in points if point["name"] == "blitz_cache_models"} <= {0, 2}
    assert points.count({"name": "blitz_cache_hits", "value": 1.0, "count": 1}) == 1


def test_labels_become_properties(export: AzureExport, ingestion: Ingestion, metrics: Telemetry) -> None:
    """One envelope a series."""
    metrics.backend_called("gpu", "ok")
    metrics.backend_called("cpu", "unavailable")
    export.close()
    found = [
        each["data"]["baseData"]["properties"]
        for each in ingestion.of_type("MetricData")
        if each["data"]["baseData"]["metrics"][0]["name"] == "blitz_backend_requests"
    ]
    assert {"backend": "gpu", "outcome": "ok"} in found
    assert {"backend": "cpu", "outcome": "unavailable"} in found


def test_what_a_full_queue_has_no_room_for_is_counted(
    ingestion: Ingestion, metrics: Telemetry, tmp_path: Path
) -> None:
    """Dropped at once, and the number shows on /metrics."""
    export = _export(ingestion, metrics, tmp_path, queue_items=2)
    for _ in range(5):
        with trace.serving():
            pass
    assert b"blitz_telemetry_dropped 3.0" in metrics.render()
    export.close()
    assert len(ingestion.of_type("RequestData")) == 2


def test_a_hanging_endpoint_holds_nobody_and_loses_nothing(
    ingestion: Ingestion, metrics: Telemetry, tmp_path: Path
) -> None:
    """Requests end while a post hangs; at the end all lies in files, which the next process sends."""
    ingestion.open.clear()
    ingestion.status = 503  # once what hangs ends, it was not taken
    export = _export(ingestion, metrics, tmp_path, send_s=0.001, metrics_s=600)
    with trace.serving() as first:
        pass
    assert ingestion.posted.wait(PATIENCE_S)
    with trace.serving() as second:
        pass
    export.close(grace_s=0)
    assert ingestion.bodies == []
    ingestion.status = 200
    ingestion.open.set()
    _export(ingestion, metrics, tmp_path).close(grace_s=PATIENCE_S)
    ids = {each["data"]["baseData"]["id"] for each in ingestion.of_type("RequestData")}
    assert ids == {first.span_id, second.span_id}


def test_a_credentials_token_is_shown_with_every_post(
    ingestion: Ingestion, metrics: Telemetry, tmp_path: Path
) -> None:
    """Of Azure Monitor's audience; without a credential no post has an Authorization header."""
    credential = FakeCredential()
    export = _export(ingestion, metrics, tmp_path, credential=credential)
    with trace.serving():
        pass
    export.close(grace_s=PATIENCE_S)
    assert len(ingestion.of_type("RequestData")) == 1
    shown = {f"Bearer token-{n + 1}" for n in range(len(credential.scopes))}
    assert shown
    assert set(ingestion.authorizations) <= shown
    assert set(credential.scopes) == {("https://monitor.azure.com//.default",)}
    ingestion.authorizations.clear()
    _export(ingestion, metrics, tmp_path).close(grace_s=PATIENCE_S)
    assert set(ingestion.authorizations) == {""}


@pytest.mark.parametrize(
    "error",
    [
        CredentialUnavailableError("no managed identity endpoint"),
        ClientAuthenticationError("no such identity"),
        ServiceRequestError("nobody listens"),
        RuntimeError("a defect"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_token_nothing_is_posted_and_nothing_lost(
    error: Exception, ingestion: Ingestion, metrics: Telemetry, tmp_path: Path
) -> None:
    """Whatever the credential raises, requests go on, and a later process sends what lies in files."""
    export = _export(
        ingestion, metrics, tmp_path, credential=FakeCredential(error), send_s=0.001, metrics_s=600
    )
    spans = []
    for _ in range(3):
        with trace.serving() as span:
            spans.append(span.span_id)
    export.close(grace_s=PATIENCE_S)
    assert ingestion.authorizations == []
    _export(ingestion, metrics, tmp_path, credential=FakeCredential()).close(grace_s=PATIENCE_S)
    ids = [each["data"]["baseData"]["id"] for each in ingestion.of_type("RequestData")]
    assert sorted(ids) == sorted(spans)


# 401 and 403: the identity's role is not known yet, minutes after its assignment.
@pytest.mark.parametrize("status", [401, 403, 429, 503, None])
def test_what_was_not_taken_is_sent_later(
    ingestion: Ingestion, metrics: Telemetry, tmp_path: Path, status: int | None
) -> None:
    """After an answer that asks for it, and if nobody listens."""
    ingestion.status = status or 200
    string = ingestion.connection_string
    if status is None:
        string = f"InstrumentationKey={ingestion.key};IngestionEndpoint=http://127.0.0.1:1"
    export = AzureExport(string, "router", metrics, folder=tmp_path, send_s=600)
    export.start()
    with trace.serving() as span:
        pass
    export.close(grace_s=PATIENCE_S)
    assert ingestion.bodies == []
    ingestion.status = 200
    _export(ingestion, metrics, tmp_path).close(grace_s=PATIENCE_S)
    (request,) = ingestion.of_type("RequestData")
    assert request["data"]["baseData"]["id"] == span.span_id


@pytest.mark.parametrize("string", ["x", "InstrumentationKey=x", "IngestionEndpoint=http://x", ";"])
def test_a_connection_string_that_is_none_is_refused(
    string: str, metrics: Telemetry, tmp_path: Path
) -> None:
    """At the start, naming the variable."""
    with pytest.raises(Misconfigured, match="APPLICATIONINSIGHTS_CONNECTION_STRING must be like"):
        AzureExport(string, "router", metrics, folder=tmp_path)


def test_a_wrong_authentication_string_stops_the_start(ingestion: Ingestion) -> None:
    """Before anything is sent with the key alone."""
    settings = Settings(
        applicationinsights_connection_string=ingestion.connection_string,
        applicationinsights_authentication_string="Authorization=key",
    )
    with pytest.raises(Misconfigured, match="APPLICATIONINSIGHTS_AUTHENTICATION_STRING must be"):
        start_export(settings)
    assert not ingestion.posted.is_set()


def test_without_a_connection_string_nothing_of_it_is_loaded() -> None:
    """Every app starts without opencensus."""
    code = (
        "import sys, functions.local, functions.router, functions.cpu, functions.gpu\n"
        "from shared.observability.start import start_export\n"
        "from shared.settings import Settings\n"
        "start_export(Settings())\n"
        "print('opencensus' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("False\n", "")


def test_one_folder_alone_knows_opencensus() -> None:
    """Microsoft no longer supports it: a successor must have one place to go to."""
    knowing = {
        path.parent.relative_to(ROOT).as_posix()
        for package in ("shared", "functions", "model_build")
        for path in (ROOT / package).rglob("*.py")
        if "import opencensus" in path.read_text() or "from opencensus" in path.read_text()
    }
    assert knowing == {"shared/observability/azure"}


def _post(url: str, body: object, traceparent: str = CALLER) -> int:
    headers = {"content-type": "application/json", "traceparent": traceparent}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_router_and_backend_in_two_processes_share_the_callers_trace(
    ingestion: Ingestion, tmp_path: Path
) -> None:
    """A request's dependency is its backend's parent, and nothing sent holds the text."""
    store = f"file://{tmp_path / 'models'}"
    publish_all([Tiny("a")], store)
    environ = {
        "APPLICATIONINSIGHTS_CONNECTION_STRING": ingestion.connection_string,
        "BLITZ_LOG_FORMAT": "json",
        "TMPDIR": str(tmp_path),
    }
    with (
        running_service(store, environ={**environ, "BLITZ_ROLE": "cpu"}) as backend,
        running_service(store, environ={**environ, "BLITZ_CPU_BACKEND_URL": backend}) as url,
    ):
        assert _post(f"{url}/v1/embeddings", {"model": "a", "input": [TEXT, "w2"]}) == 200
        assert _post(f"{url}/v1/embeddings", {"model": "a", "input": {"a": TEXT}}) == 400
        assert _post(f"{url}/nowhere/{TEXT.replace(' ', '-')}", {}) == 404
    requests = {}
    for each in ingestion.of_type("RequestData"):
        data = each["data"]["baseData"]
        if data["name"] != "bulk reconcile":
            requests[each["tags"]["ai.cloud.role"], data["name"], data["responseCode"]] = each
    assert set(requests) == {
        ("blitz-router", "POST /v1/embeddings", "200"),
        ("blitz-router", "POST /v1/embeddings", "400"),
        ("blitz-router", "POST (no route)", "404"),
        ("blitz-cpu", "POST /embed", "200"),
    }
    (dependency,) = ingestion.of_type("RemoteDependencyData")
    at_router = requests["blitz-router", "POST /v1/embeddings", "200"]
    at_backend = requests["blitz-cpu", "POST /embed", "200"]
    for each in (at_router, dependency, at_backend):
        assert each["tags"]["ai.operation.id"] == CALLER[3:35]
    assert dependency["tags"]["ai.operation.parentId"] == at_router["data"]["baseData"]["id"]
    assert at_backend["tags"]["ai.operation.parentId"] == dependency["data"]["baseData"]["id"]
    assert at_backend["data"]["baseData"]["measurements"]["inputs"] == 2
    assert ingestion.metrics()["blitz_embed_tokens"] > 0
    assert b"zebra" not in b"".join(ingestion.bodies)


def test_the_steps_of_a_bulk_job_are_one_operation(ingestion: Ingestion, tmp_path: Path) -> None:
    """By the job's id, in whatever process; with figures, and nothing of the input itself."""
    store = f"file://{tmp_path / 'models'}"
    publish_all([Tiny("a")], store)
    environ = {
        "APPLICATIONINSIGHTS_CONNECTION_STRING": ingestion.connection_string,
        "TMPDIR": str(tmp_path),
    }
    storage = open_storage(Settings(storage=f"file://{tmp_path / 'bulk'}"))
    storage.source.write("a/zebras.txt", f"{TEXT}\nw2\n".encode())

    def manifests() -> list[str]:
        return [stat.key for stat in storage.out.list("jobs/") if "manifest" in stat.key]

    with running_service(store, environ=environ):
        wait_until(manifests)
    job = manifests()[0].split("/")[1]
    steps = [
        each["data"]["baseData"]
        for each in ingestion.of_type("RequestData")
        if each["tags"]["ai.operation.id"] == f"{job:0>32}"
    ]
    assert {"bulk split", "bulk embed", "bulk finish"} <= {step["name"] for step in steps}
    for step in steps:
        assert (step["success"], step["properties"]["job"]) == (True, job)
        assert step["properties"]["model"] == "a"
    (embed,) = (step for step in steps if step["name"] == "bulk embed")
    assert embed["measurements"]["rows"] == 2
    assert embed["measurements"]["tokens"] > 2
    assert {"completed"} == {s["properties"]["status"] for s in steps if "status" in s["properties"]}
    assert ingestion.metrics()["blitz_bulk_rows"] == 2
    assert ingestion.metrics()["blitz_bulk_jobs"] == 1
    assert b"zebra" not in b"".join(ingestion.bodies)


def test_the_service_answers_and_ends_while_the_endpoint_hangs(
    ingestion: Ingestion, tmp_path: Path
) -> None:
    """Every request is answered during a post that never ends; what was not sent is kept."""
    store = f"file://{tmp_path / 'models'}"
    publish_all([Tiny("a")], store)
    ingestion.open.clear()
    environ = {
        "APPLICATIONINSIGHTS_CONNECTION_STRING": ingestion.connection_string,
        "TMPDIR": str(tmp_path),
    }
    with running_service(store, environ=environ) as url:
        assert _post(f"{url}/embed", {"inputs": TEXT}) == 200
        assert ingestion.posted.wait(PATIENCE_S)
        assert [_post(f"{url}/embed", {"inputs": TEXT}) for _ in range(20)] == [200] * 20
    kept = [path.read_text() for path in (tmp_path / "blitz-telemetry-router").iterdir()]
    spans = [json.loads(line)["data"] for text in kept for line in text.splitlines()]
    requests = [span["baseData"] for span in spans if span["baseType"] == "RequestData"]
    assert sum(request["name"] == "POST /embed" for request in requests) == 21
