"""Dashboards and alerts: every query against a real Prometheus that scrapes the real service."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from shared import errors
from shared.errors import BlitzError
from shared.observability.metrics import CONTENT_TYPE, Telemetry
from tests.patience import PATIENCE_S
from tests.prometheus import JOB, Prometheus, promtool, running_prometheus
from tests.server import ROOT, free_port, running_service
from tests.tiny import Tiny, publish_all

FOLDER = ROOT / "infra" / "dashboards"
ALERTS = FOLDER / "alerts.yml"
GRAFANA: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
QUERIES = [
    target["expr"].replace("$job", ".*").replace("$__rate_interval", "1m")
    for panel in GRAFANA["panels"]
    for target in panel.get("targets", ())
]


def _metrics() -> dict[str, str]:
    """Each metric's type by its name, from the code that declares it."""
    text = Telemetry(CollectorRegistry()).render().decode()
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))


def _series() -> set[str]:
    """What a query can ask for: a histogram has three."""
    return {
        name + suffix
        for name, kind in _metrics().items()
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }


def _names_in(query: str) -> set[str]:
    return set(re.findall(r"\b(?:te|blitz)_\w+", query))


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in RULES)])
def test_a_query_asks_for_series_that_there_are(query: str) -> None:
    """A renamed metric must not leave an empty panel, or an alert that never fires."""
    assert _names_in(query)
    assert _names_in(query) <= _series()


def test_every_metric_is_on_the_dashboard() -> None:
    """But for three that others there imply."""
    shown = set().union(*(_names_in(query) for query in QUERIES))
    of_histograms = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    assert set(_metrics()) - shown - of_histograms == {
        "te_request_success",
        "te_embed_count",
        "te_embed_success",
    }


def test_the_error_alert_counts_what_is_not_the_callers_fault() -> None:
    """Every code of the error tree with a status of 500 or more."""
    tree = [BlitzError, *(each for each in vars(errors).values() if _is_error(each))]
    (codes,) = re.findall(r'err=~"([^"]+)"', RULES[0]["expr"])
    assert set(codes.split("|")) == {each.code for each in tree if each.status >= 500}


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BlitzError)


def test_the_dashboard_can_be_imported() -> None:
    """Its data source is a variable, ids are unique, and no panel lies on another."""
    variables = {each["name"]: each for each in GRAFANA["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in GRAFANA["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in GRAFANA["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells
        assert max(x for x, _ in own) < 24
        cells |= own


def test_the_alert_rules_are_valid() -> None:
    """As promtool sees them."""
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(ALERTS))


FIRING: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    # Series with their values, a minute each, and the labels of the alert; all with job and instance.
    "BlitzErrors": ({'te_request_failure{err="backend_failed"}': "0+60x30"}, {}),
    "BlitzQueueWait": (
        {
            'te_request_queue_duration_bucket{le="5"}': "0+1x30",
            'te_request_queue_duration_bucket{le="10"}': "0+60x30",
            'te_request_queue_duration_bucket{le="+Inf"}': "0+60x30",
        },
        {},
    ),
    "BlitzModelLoads": ({"blitz_cache_load_failures": "0+1x30"}, {"instance": "i"}),
    "BlitzBackendDown": ({'blitz_backend_up{backend="gpu"}': "0x30"}, {"backend": "gpu"}),
    "BlitzNotReady": ({"blitz_ready": "0x30"}, {}),
    "BlitzGone": ({}, {}),
    "BlitzBulkFails": (
        {
            'blitz_bulk_step_failures{step="embed"}': "0+3x30",
            'blitz_bulk_step_duration_count{step="embed"}': "0+4x30",
        },
        {"step": "embed"},
    ),
    "BlitzBulkGaveUp": ({'blitz_bulk_step_duration_count{step="give_up"}': "0+1x30"}, {}),
    "BlitzTelemetryDropped": ({"blitz_telemetry_dropped": "0+1x30"}, {"instance": "i"}),
    # The clock of these tests begins in 1970: 1,209,600 s are 14 days.
    "BlitzKeyExpires": (
        {'blitz_key_expires_timestamp_seconds{key="search"}': "1209600x30"},
        {"key": "search"},
    ),
    "BlitzKeysNotRead": ({"blitz_keys_read_failures": "0+1x30"}, {}),
}
HEALTHY = {
    'te_request_failure{err="invalid_input"}': "0+60x30",
    'te_request_failure{err="unavailable"}': "0+1x30",
    'te_request_success{method="single"}': "0+60x30",
    'te_request_queue_duration_bucket{le="5"}': "0+60x30",
    'te_request_queue_duration_bucket{le="+Inf"}': "0+60x30",
    "blitz_cache_load_failures": "3x30",
    'blitz_backend_up{backend="gpu"}': "1x30",
    "blitz_ready": "1x30",
    'blitz_bulk_step_failures{step="embed"}': "0+1x30",
    'blitz_bulk_step_duration_count{step="embed"}': "0+4x30",
    'blitz_bulk_step_failures{step="finish"}': "0x30",
    'blitz_bulk_step_duration_count{step="finish"}': "0x30",
    'blitz_bulk_step_duration_count{step="give_up"}': "1x30",
    "blitz_telemetry_dropped": "0x30",
    'blitz_key_expires_timestamp_seconds{key="search"}': "1300000x30",
    "blitz_keys_read_failures": "0+1x3 3x27",
}


@pytest.mark.parametrize("name", ["", *FIRING])
def test_an_alert_fires_when_it_should(name: str, tmp_path: Path) -> None:
    """Each upon its fault alone, and none of them for a service that is well."""
    assert {rule["alert"] for rule in RULES} == set(FIRING)
    faults, labels = FIRING[name] if name else ({}, {})
    series = {} if name == "BlitzGone" else {**HEALTHY, **faults}
    expected = []
    for rule in RULES:
        alerts = []
        if rule["alert"] == name:
            job = {} if name == "BlitzGone" else {"job": JOB}
            alerts = [{"exp_labels": {**rule["labels"], **job, **labels}}]
            summary = rule["annotations"]["summary"]
            for label, value in {**job, **labels}.items():
                summary = summary.replace(f"{{{{ $labels.{label} }}}}", value)
            alerts[0]["exp_annotations"] = {"summary": summary}
        expected.append({"eval_time": "20m", "alertname": rule["alert"], "exp_alerts": alerts})
    inputs = [{"series": _of_instance(each), "values": values} for each, values in series.items()]
    tests = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": inputs, "alert_rule_test": expected}],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(tests))
    promtool("test", "rules", str(file))


def _of_instance(series: str) -> str:
    name, _, labels = series.rstrip("}").partition("{")
    return f'{name}{{job="{JOB}",instance="i"{"," if labels else ""}{labels}}}'


@contextmanager
def _exposing(metrics: Telemetry) -> Iterator[str]:
    """Serve `metrics` at the host:port that is yielded."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(metrics.render())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def _post(url: str, inputs: object, model: str = "a") -> int:
    body = json.dumps({"inputs": inputs, "model": model}).encode()
    request = urllib.request.Request(f"{url}/embed", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes a router with traffic, a CPU backend with bulk jobs, and GPU memory as a GPU tells of it.

    The router's GPU backend is not there, so that there are fallbacks, and a circuit that opens.
    """
    folder = tmp_path_factory.mktemp("prometheus")
    store = f"file://{folder / 'models'}"
    inputs = folder / "bulk/bulk-in/a"  # beside the store, where the backend looks
    inputs.mkdir(parents=True)
    publish_all([Tiny("a")], store, "cpu-fp32", "gpu-fp16")
    publish_all([Tiny("b")], store)
    gpu = Telemetry(CollectorRegistry())
    gpu.watch_gpu_memory(lambda: {"used": 1, "reserved": 2, "free": 3})
    gpu.keys_expire({"search": time.time() + 30 * 86_400})
    with running_service(store, environ={"BLITZ_ROLE": "cpu"}) as backend:
        environ = {
            "BLITZ_CPU_BACKEND_URL": backend,
            "BLITZ_GPU_BACKEND_URL": f"http://127.0.0.1:{free_port()}",
        }
        with running_service(store, environ=environ) as router, _exposing(gpu) as exposed:
            stop = threading.Event()

            def traffic() -> None:
                for round_ in itertools.count():
                    if stop.wait(0.1):
                        return
                    if round_ % 20 == 0:
                        (folder / "rows.txt").write_text("w1\nw2\n")
                        (folder / "rows.txt").rename(inputs / f"{round_}.txt")  # whole at once
                    assert _post(router, "w1 w2") == 200
                    assert _post(router, ["w1"] * 20) == 200
                    assert _post(router, 5) in (400, 422)
                    gpu.key_used("search")
                    gpu.key_read("search", 2)
                    gpu.key_refused("search", "expired")
                    gpu.revisions.asked("a", "staged", "ok")
                    gpu.revisions.answered("a", "staged", duration_s=0.1, tokens=2)
                    gpu.revisions.compare("a", {("cpu", "staged"): 0.99})

            traffic_thread = threading.Thread(target=traffic)
            traffic_thread.start()
            targets = [url.removeprefix("http://") for url in (router, backend, exposed)]
            try:
                with running_prometheus(targets, folder, ALERTS) as running:
                    for name in targets:
                        running.query_until_found(f'up{{instance="{name}"}} == 1')
                    assert _post(router, "w1", "b") == 200  # a load between two scrapes
                    yield running
            finally:
                stop.set()
                traffic_thread.join()


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_shows_data(prometheus: Prometheus, query: str) -> None:
    """Each query of the dashboard, as Grafana would send it."""
    assert prometheus.query_until_found(query)


@pytest.mark.parametrize("series", ['rows{outcome="embedded"}', 'jobs{status="completed"}'])
def test_bulk_jobs_show(prometheus: Prometheus, series: str) -> None:
    """Theirs begin at zero, so that data alone does not show it."""
    assert prometheus.query_until_found(f"blitz_bulk_{series} > 0")


def test_prometheus_evaluates_the_alert_rules(prometheus: Prometheus) -> None:
    """Without an error, over the service's own series."""
    assert prometheus.rules() == {rule["alert"]: "ok" for rule in RULES}


def test_a_backend_that_is_not_there_shows_as_down(prometheus: Prometheus) -> None:
    """The router's circuit for it opens, which is what BlitzBackendDown is about."""
    (found,) = prometheus.query_until_found('min by (backend) (blitz_backend_up{backend="gpu"}) == 0')
    assert found["value"][1] == "0"
    (cpu,) = prometheus.query('min by (backend) (blitz_backend_up{backend="cpu"})')
    assert cpu["value"][1] == "1"
