"""Hook after provisioning: imports two dashboards into Azure Managed Grafana, if it is deployed.

grafana.json is imported unchanged; it is empty until Grafana has a Prometheus data source. The other
dashboard queries Application Insights and is generated from the workbook, so that each query is
written once. Does not know the queries. Needs only the standard library and az.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

DASHBOARDS = Path(__file__).parents[1] / "dashboards"
SOURCE = {"type": "grafana-azure-monitor-datasource", "uid": "azure-monitor-oob"}
"""The built-in data source of Azure Managed Grafana, which uses Grafana's own identity."""
TRIES = 10
KINDS = {"timechart": "timeseries", "barchart": "timeseries", "table": "table"}
HEIGHT, WIDTH = 8, 24


def dashboard_of(workbook: Mapping[str, Any], insights_id: str) -> dict[str, Any]:
    """A Grafana dashboard with one panel per query of the workbook.

    insights_id: resource id of the Application Insights component to query.
    """
    panels: list[dict[str, Any]] = []
    x = y = 0
    for item in workbook["items"]:
        if "query" not in item["content"]:
            continue
        width = WIDTH * int(item["customWidth"]) // 100
        if x + width > WIDTH:
            x, y = 0, y + HEIGHT
        position = {"x": x, "y": y, "w": width, "h": HEIGHT}
        panels.append(_panel(len(panels) + 1, item["content"], position, insights_id))
        x += width
    return {
        "title": "BlitzEmbedding in Azure",
        "uid": "blitz-azure",
        "schemaVersion": 39,
        "tags": ["blitz"],
        "time": {"from": "now-24h", "to": "now"},
        "timezone": "browser",
        "panels": panels,
    }


def _panel(
    number: int, part: Mapping[str, Any], position: dict[str, int], insights_id: str
) -> dict[str, Any]:
    kind = KINDS[part["visualization"]]
    asked = {
        # Grafana's variable for the time grain; with dashboardTime it adds the range itself.
        "query": part["query"].replace("{TimeRange:grain}", "$__interval"),
        "resources": [insights_id],
        "resultFormat": "time_series" if kind == "timeseries" else "table",
        "dashboardTime": True,
        "timeColumn": "timestamp",
    }
    target = {
        "refId": "A",
        "datasource": SOURCE,
        "queryType": "Azure Log Analytics",
        "azureLogAnalytics": asked,
    }
    bars = {"drawStyle": "bars", "fillOpacity": 60} if part["visualization"] == "barchart" else {}
    return {
        "id": number,
        "type": kind,
        "title": part["title"],
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"custom": bars}, "overrides": []},
        "targets": [target],
    }


def put(environ: Mapping[str, str], dashboard: Mapping[str, Any], folder: Path) -> None:
    """Create or replace the dashboard. Retries, because a new role takes minutes to become effective.

    folder: for a temporary file. Exits with a message after TRIES failures.
    """
    file = folder / "dashboard.json"
    file.write_text(json.dumps(dashboard), "utf-8")
    az = shutil.which("az")
    if az is None:
        sys.exit("az is not installed, or not on PATH")
    command = [az, "grafana", "dashboard", "create", "--name", environ["GRAFANA_NAME"]]
    command += ["--resource-group", environ["AZURE_RESOURCE_GROUP"], "--overwrite", "true"]
    command += ["--definition", str(file), "--output", "none"]
    if subscription := environ.get("AZURE_SUBSCRIPTION_ID"):
        command += ["--subscription", subscription]
    # These commands are in an az extension: install it without a prompt.
    known = {**environ, "AZURE_EXTENSION_USE_DYNAMIC_INSTALL": "yes_without_prompt"}
    for attempt in range(TRIES):
        if attempt:
            time.sleep(float(environ.get("HOOK_PAUSE_S") or 30))
        if subprocess.run(command, env=known).returncode == 0:  # noqa: S603
            return
    sys.exit(f"the dashboard {dashboard['title']} could not be put into Grafana, in {TRIES} tries")


def main(environ: Mapping[str, str]) -> None:
    """Import both dashboards, if the deployment has a Grafana. Exits with a message if that fails."""
    if not environ.get("GRAFANA_NAME"):
        return
    workbook = json.loads((DASHBOARDS / "workbook.json").read_text("utf-8"))
    prometheus = json.loads((DASHBOARDS / "grafana.json").read_text("utf-8"))
    with TemporaryDirectory() as folder:
        for dashboard in (dashboard_of(workbook, environ["APPLICATION_INSIGHTS_ID"]), prometheus):
            put(environ, dashboard, Path(folder))


if __name__ == "__main__":
    main(os.environ)
