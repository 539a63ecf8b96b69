"""Starts a real Prometheus (Debian package `prometheus`) that scrapes what a test gives it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S, wait_until
from tests.server import free_port

JOB = "blitz"


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector as it is now. Fails if it does not parse."""
        answer = self._get("query?" + urllib.parse.urlencode({"query": expression}))
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def query_until_found(self, expression: str) -> list[dict[str, Any]]:
        """The same once it holds a number: rates need two scrapes, and 0 / 0 is NaN."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [each for each in self.query(expression) if each["value"][1] != "NaN"]
            if found:
                return found
            assert time.monotonic() < deadline, f"no data: {expression}"
            time.sleep(0.2)

    def rules(self) -> dict[str, str]:
        """Health by the name of each loaded rule, once all were evaluated."""
        rules: dict[str, str] = {}

        def evaluated() -> bool:
            groups = self._get("rules")["data"]["groups"]
            rules.update((rule["name"], rule["health"]) for group in groups for rule in group["rules"])
            return bool(rules) and "unknown" not in rules.values()

        wait_until(evaluated)
        return rules

    def _get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}", timeout=PATIENCE_S) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.load(error))


@contextmanager
def running_prometheus(
    targets: Sequence[str], folder: Path, rules: Path | None = None
) -> Iterator[Prometheus]:
    """Scrapes /metrics of `targets` (host:port) each second. Skips the test where there is none."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on PATH (Debian: apt-get install prometheus)")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": list(targets)}]}],
        "rule_files": [str(rules)] if rules else [],
    }
    file = folder / "prometheus.json"  # YAML holds JSON
    file.write_text(json.dumps(config))
    port = free_port()
    arguments = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    arguments.append(f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/-/ready", process, folder / "prometheus.log")
            yield Prometheus(url)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def promtool(*arguments: str) -> str:
    """What it prints. Fails with that if it finds a fault; skips the test where there is none."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH (Debian: apt-get install prometheus)")
    ran = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise TimeoutError(log.read_text())
