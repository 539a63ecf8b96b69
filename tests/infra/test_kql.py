"""Queries of workbook and alerts: Kusto's parser takes them, and they read what is sent. None is run."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from shared.bulk.jobs import Job
from shared.bulk.observed import belongs_to, observed
from shared.bulk.options import JobOptions
from shared.context import trace
from shared.contracts import DecodeResult
from shared.observability import metrics as metrics_table
from shared.observability.azure.export import AzureExport
from shared.observability.metrics import Telemetry
from tests.infra.bicep import INFRA, ROOT
from tests.ingestion import running_ingestion

# opencensus (1.1.15) uses what Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

PARSER = Path(__file__).with_name("kql.js")
PACKAGE = ROOT / "tests" / "node_modules" / "@kusto" / "language-service-next"
WORKBOOK: dict[str, Any] = json.loads((INFRA / "dashboards" / "workbook.json").read_text("utf-8"))
PARTS = {item["name"]: item["content"] for item in WORKBOOK["items"] if "query" in item["content"]}
ALERTS: list[dict[str, Any]] = json.loads(
    (INFRA / "dashboards" / "azure-alerts.json").read_text("utf-8")
)
TIME_RANGES = [
    parameter["name"]
    for item in WORKBOOK["items"]
    for parameter in item["content"].get("parameters", ())
    if parameter["type"] == 4
]

# Names and types of the classic tables, which workbooks of an Application Insights resource query:
# https://learn.microsoft.com/azure/azure-monitor/app/convert-classic-resource#table-schemas
SHARED_COLUMNS = """
    appId application_Version appName client_Browser client_City client_CountryOrRegion client_IP
    client_Model client_OS client_StateOrProvince client_Type cloud_RoleInstance cloud_RoleName iKey
    itemId itemType operation_Id operation_Name operation_ParentId operation_SyntheticSource sdkVersion
    session_Id user_AccountId user_AuthenticatedId user_Id
"""
COLUMNS = {
    "requests": {
        "string": "id name performanceBucket resultCode source success url",
        "real": "duration",
        "int": "itemCount",
        "dynamic": "customMeasurements",
    },
    "dependencies": {
        "string": "data id name performanceBucket resultCode success target type",
        "real": "duration",
        "int": "itemCount",
        "dynamic": "customMeasurements",
    },
    "exceptions": {
        "string": "assembly handledAt innermostAssembly innermostMessage innermostMethod innermostType "
        "message method outerAssembly outerMessage outerMethod outerType problemId type",
        "int": "itemCount severityLevel",
        "dynamic": "customMeasurements details",
    },
    "traces": {
        "string": "message",
        "int": "itemCount severityLevel",
        "dynamic": "customMeasurements",
    },
    "customMetrics": {
        "string": "name",
        "real": "valueMax valueMin valueSum",
        "int": "valueCount",
    },
}
# Of Azure's own tables, which the rest of the alerts query:
# https://learn.microsoft.com/azure/azure-monitor/reference/tables-index
WORKSPACE_COLUMNS = {
    "ApiManagementGatewayLogs": {
        "datetime": "TimeGenerated",
        "string": "ApiId ApimSubscriptionId CorrelationId Method OperationId ProductId Region",
        "int": "BackendResponseCode ResponseCode",
        "bool": "IsRequestSuccess",
        "long": "BackendTime TotalTime",
    },
    "StorageQueueLogs": {
        "datetime": "TimeGenerated",
        "string": "AccountName AuthenticationType CallerIpAddress Category CorrelationId ObjectKey "
        "OperationName OperationVersion Protocol RequesterObjectId ServiceType StatusText Uri",
        "int": "StatusCode",
        "real": "DurationMs",
    },
    "_LogOperation": {
        "datetime": "TimeGenerated",
        "string": "Category CorrelationId Detail Level Operation WorkspaceId _ResourceId",
    },
}
SENT_AS = {
    "requests": "RequestData",
    "dependencies": "RemoteDependencyData",
    "exceptions": "ExceptionData",
    "traces": "MessageData",
    "customMetrics": "MetricData",
}
BAD = {
    "requests | where nosuch == 1": "'nosuch' does not refer to any known column",
    "customMetrics | where itemCount > 1": "'itemCount' does not refer to any known column",
    "AppRequests | take 1": "'AppRequests' does not refer to any known table",
    "requests | where is_nice(name)": "'is_nice' does not refer to any known function",
    "requests | summarize sum(customMeasurements.rows)": "must be summable",
    "requests | summarize count() by bin(timestamp, {TimeRange:grain})": "Missing expression",
    "requests | where (success == true": "Expected: )",
    "requests | extend last = duration": "The name 'last' needs to be bracketed",
}


QUERIES = {name: str(part["query"]) for name, part in PARTS.items()}
QUERIES |= {f"alert {rule['name']}": str(rule["query"]) for rule in ALERTS}
OURS = [name for name, query in QUERIES.items() if query.split()[0] in SENT_AS]
"""Those over what we send; the others ask what Azure tells of itself."""


def _as_sent(name: str) -> str:
    """A query as it is sent: with a timespan where it has a time range's grain, and with its limit."""
    query = QUERIES[name].replace("{p95Seconds}", "10")
    for time_range in TIME_RANGES:
        query = query.replace(f"{{{time_range}:grain}}", "30m")
    return query


def _schema(table: str) -> str:
    if table in WORKSPACE_COLUMNS:
        of_kind = WORKSPACE_COLUMNS[table].items()
        return f"({', '.join(f'{name}: {kind}' for kind, names in of_kind for name in names.split())})"
    columns = ["timestamp: datetime", "customDimensions: dynamic"]
    typed = [("string", SHARED_COLUMNS), *COLUMNS[table].items()]
    columns += [f"{name}: {kind}" for kind, names in typed for name in names.split()]
    return f"({', '.join(columns)})"


@cache
def _told() -> dict[str, dict[str, Any]]:
    """What Kusto's parser says of each query: its remarks, and the result's columns with their types."""
    node = shutil.which("node")
    if node is None or not PACKAGE.exists():
        pytest.skip("Kusto's parser is not installed: run `npm ci` in tests/")
    queries = [*BAD, *map(_as_sent, QUERIES)]
    given = {
        "tables": {table: _schema(table) for table in COLUMNS | WORKSPACE_COLUMNS},
        "queries": queries,
    }
    ran = subprocess.run([node, PARSER], input=json.dumps(given), capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    return dict(zip(queries, json.loads(ran.stdout), strict=True))


@pytest.mark.parametrize("name", QUERIES)
def test_kusto_takes_a_query(name: str) -> None:
    """Its parser and binder have no error and no warning, over the tables that Microsoft documents."""
    assert _told()[_as_sent(name)]["remarks"] == []
    assert _told()[_as_sent(name)]["columns"]


@pytest.mark.parametrize("query", BAD)
def test_kusto_does_not_take_everything(query: str) -> None:
    """Columns, tables, functions and types are looked at, and a parameter that nobody replaced."""
    assert BAD[query] in _told()[query]["remarks"][0]


@pytest.mark.parametrize("part", [each for each in PARTS if PARTS[each]["visualization"] == "timechart"])
def test_a_chart_has_times_and_numbers(part: str) -> None:
    """The time first, and then something to draw; texts tell series apart."""
    first, *others = [kind for _, kind in _told()[_as_sent(part)]["columns"]]
    assert first == "datetime"
    assert {"int", "long", "real"} & set(others)
    assert set(others) <= {"int", "long", "real", "string"}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The envelopes of each table, after everything that we tell Application Insights of happened."""
    metrics = Telemetry(CollectorRegistry())
    folder = tmp_path_factory.mktemp("telemetry")
    with running_ingestion() as ingestion:
        export = AzureExport(ingestion.connection_string, "router", metrics, folder=folder, send_s=600.0)
        export.start()
        try:
            _let_happen(metrics)
        finally:
            export.close()
        return {table: ingestion.of_type(kind) for table, kind in SENT_AS.items()}


def _let_happen(metrics: Telemetry) -> None:
    with trace.serving() as request:
        request.name = "POST /embed"
        with trace.calling("POST /embed", "backend:80"):
            metrics.batch_ran(texts=1, padded_tokens=1)
        metrics.request_succeeded(DecodeResult(("a",), (1,), "m", "r"), inputs=1, duration_s=1.0)
        logging.getLogger("functions.test").warning("a warning")
    metrics.cache_missed()
    metrics.cache_hit()
    metrics.model_loaded(seconds=1.0)
    metrics.model_load_failed()
    metrics.model_evicted()
    metrics.backend_fell_back("gpu")
    metrics.gpu_woken()
    metrics.telemetry_dropped()
    metrics.watch_queue(lambda: 1.0)
    metrics.watch_backend("gpu", lambda: True)
    metrics.watch_gpu_memory(lambda: {"used": 1, "reserved": 2, "free": 3})
    metrics.key_used("search")
    metrics.key_read("search", 2)
    metrics.key_refused("search", "expired")
    metrics.keys_expire({"search": 2e9})
    metrics.keys_not_read()
    size, dimensions, created = 1, 1, 1
    options = JobOptions(model="m")
    job = Job("1", "source", "a.txt", "e", size, options, "r", dimensions, "cpu", created, "text")
    for step in ("split", "embed", "finish", "give_up"):
        with observed(step, metrics):
            belongs_to(job)
            metrics.bulk_chunk_embedded(embedded=1, failed=1, tokens=1)
            metrics.bulk_job_ended("completed")
    with pytest.raises(ConnectionError), observed("reconcile", metrics):
        raise ConnectionError


@pytest.mark.parametrize("name", OURS)
def test_a_query_reads_what_is_sent(name: str, sent: dict[str, list[dict[str, Any]]]) -> None:
    """Role, steps, properties and measurements are those of the envelopes of its table."""
    query = QUERIES[name]
    envelopes = sent[query.split()[0]]
    roles = re.findall(r"cloud_RoleName (==|startswith) '([\w-]+)'", query)
    assert roles
    for operator, role in roles:
        assert role == ("blitz-" if operator == "startswith" else envelopes[0]["tags"]["ai.cloud.role"])
    items = [envelope["data"]["baseData"] for envelope in envelopes]
    assert set(re.findall(r"'(bulk \w+)'", query)) <= {item.get("name") for item in items}
    for column, field in (("customDimensions", "properties"), ("customMeasurements", "measurements")):
        read = set(re.findall(rf"\b{column}\.(\w+)", query))
        assert read <= {name for item in items for name in item.get(field) or ()}


@pytest.mark.parametrize("query", [each for each in OURS if "customMetrics" in QUERIES[each]])
def test_a_query_reads_metrics_that_are_sent(query: str, sent: dict[str, list[dict[str, Any]]]) -> None:
    """Each that it names, with the dimensions and values that it reads: only gauges have extremes."""
    text = QUERIES[query]
    named = set(re.findall(r"'((?:te|blitz)_\w+)'", text))
    assert named
    dimensions = set(re.findall(r"\bcustomDimensions\.(\w+)", text))
    values = {each.lower() for each in re.findall(r"\bvalue(Count|Min|Max)\b", text)}
    items = [envelope["data"]["baseData"] for envelope in sent["customMetrics"]]
    found = {item["metrics"][0]["name"]: item for item in items}
    for name in named:
        (point,) = found[name]["metrics"]
        assert dimensions <= set(found[name]["properties"])
        assert {value for value in values if point[value] is None} == set()


def test_queries_follow_the_time_range_that_is_chosen() -> None:
    """Or a part would show another time than its neighbours."""
    assert TIME_RANGES == ["TimeRange"]
    assert {part["timeContextFromParameter"] for part in PARTS.values()} == set(TIME_RANGES)


def test_an_alert_asks_where_its_table_is() -> None:
    """Ours are in Application Insights, Azure's own in the workspace."""
    for rule in ALERTS:
        assert (f"alert {rule['name']}" in OURS) is (rule["asks"] == "insights"), rule["name"]


def test_gpu_memory_is_told_as_the_alert_reads_it() -> None:
    """Each kind that it names is one that a GPU's engine tells of."""
    table = metrics_table.__doc__ or ""
    (kinds,) = re.findall(r"blitz_gpu_memory_bytes\{kind\}.*kind: (.+)", table)
    (query,) = (rule["query"] for rule in ALERTS if rule["name"] == "gpu-memory")
    assert set(re.findall(r"'([a-z]+)'", query)) == set(kinds.split(" | "))


def test_no_query_stands_where_no_parser_reads_it() -> None:
    """Neither in Bicep, where the alerts' come from their file, nor in a document."""
    files = [*INFRA.rglob("*.bicep"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    assert len(files) > 10
    for file in files:
        found = re.search(
            r"\| (summarize|extend|project|where \w+ (=|<|>|has|starts)).*|```(kql|kusto)|savedSearches",
            file.read_text("utf-8"),
        )
        assert found is None, file.name
