"""The metric table, and what is read of it."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry

from shared.context import trace
from shared.contracts import DecodeResult, Timings
from shared.observability import metrics
from shared.observability.metrics import Sample, Telemetry


def test_the_table_of_names_is_complete() -> None:
    """The docstring's names and types are those that are declared, and no others."""
    lines = metrics.__doc__ or ""
    documented = re.findall(r"^((?:te|blitz)_.*?) +(counter|gauge|histogram)\b", lines, re.MULTILINE)
    table = {
        name: kind for names, kind in documented for name in re.sub(r"\{.*?\}", "", names).split(", ")
    }
    declared = re.findall(
        r"^# TYPE (\w+) (\w+)$", Telemetry(CollectorRegistry()).render().decode(), re.M
    )
    assert table == dict(declared)


def test_samples_are_the_series_with_their_values() -> None:
    """Histograms as sum and count; names as on /metrics, without prometheus-client's additions."""
    metrics = Telemetry(CollectorRegistry())
    metrics.batch_ran(texts=3, padded_tokens=40)
    metrics.batch_ran(texts=1, padded_tokens=2)
    metrics.backend_called("gpu", "ok")
    metrics.cache_holds(models=2, memory_bytes=10)
    samples = list(metrics.samples())
    assert Sample("te_batch_next_size", (), "histogram", 4.0, 2) in samples
    labels = (("backend", "gpu"), ("outcome", "ok"))
    assert Sample("blitz_backend_requests", labels, "counter", 1.0) in samples
    assert Sample("blitz_cache_models", (), "gauge", 2.0) in samples
    assert len({(each.name, each.labels) for each in samples}) == len(samples)


def test_series_of_bulk_jobs_begin_at_zero() -> None:
    """Or a rate would not see the first failure."""
    metrics = Telemetry(CollectorRegistry())
    metrics.bulk_step_ended("embed", duration_s=2.0, failed=True)
    metrics.bulk_step_ended("embed", duration_s=1.0, failed=False)
    samples = list(metrics.samples())

    def sample(name: str, label: str, value: str) -> list[tuple[float, int]]:
        return [(s.value, s.count) for s in samples if (s.name, s.labels) == (name, ((label, value),))]

    assert sample("blitz_bulk_step_duration", "step", "embed") == [(3.0, 2)]
    assert sample("blitz_bulk_step_duration", "step", "give_up") == [(0.0, 0)]
    assert sample("blitz_bulk_step_failures", "step", "embed") == [(1.0, 1)]
    assert sample("blitz_bulk_step_failures", "step", "split") == [(0.0, 1)]
    assert sample("blitz_bulk_rows", "outcome", "failed") == [(0.0, 1)]
    assert sample("blitz_bulk_jobs", "status", "cancelled") == [(0.0, 1)]


def test_whether_a_backend_is_up_is_asked_at_each_scrape() -> None:
    """1 or 0, by backend."""
    metrics = Telemetry(CollectorRegistry())
    up = True
    metrics.watch_backend("gpu", lambda: up)
    assert b'blitz_backend_up{backend="gpu"} 1.0' in metrics.render()
    up = False
    assert b'blitz_backend_up{backend="gpu"} 0.0' in metrics.render()


def test_readiness_is_what_was_answered_last() -> None:
    """Nobody asked yet: 0."""
    metrics = Telemetry(CollectorRegistry())
    assert b"blitz_ready 0.0" in metrics.render()
    metrics.said_ready(True)
    assert b"blitz_ready 1.0" in metrics.render()
    metrics.said_ready(False)
    assert b"blitz_ready 0.0" in metrics.render()


def test_an_answered_request_notes_its_figures_on_its_span() -> None:
    """So that exporters need no other place to learn them."""
    metrics = Telemetry(CollectorRegistry())
    with trace.serving() as span:
        result = DecodeResult(("a", "b"), (4, 5), "m", "r", Timings(queue_s=0.5))
        metrics.request_succeeded(result, inputs=2, duration_s=1.0)
    assert span.labels == {"model": "m"}
    assert (span.measures["inputs"], span.measures["tokens"], span.measures["queue_s"]) == (2, 9, 0.5)
