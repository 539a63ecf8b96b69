"""The metrics of a model's two revisions while one is staged. Their table is that of the module metrics.

Does not know which requests a revision answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class RevisionMetrics:
    """role: current or staged; model: a name that exists: labels stay few. seconds: buckets."""

    def __init__(self, registry: CollectorRegistry, seconds: Sequence[float]) -> None:
        self._requests = Counter(
            "blitz_revision_requests",
            "Calls while a revision is staged",
            ("model", "role", "outcome"),
            registry=registry,
        )
        self._duration = Histogram(
            "blitz_revision_duration",
            "Of those answered, s",
            ("model", "role"),
            registry=registry,
            buckets=seconds,
        )
        self._tokens = Counter(
            "blitz_revision_tokens", "Tokens of those answered", ("model", "role"), registry=registry
        )
        self._quality = Gauge(
            "blitz_revision_quality",
            "Closeness to the original",
            ("model", "backend", "role"),
            registry=registry,
        )
        self._compared: dict[str, set[tuple[str, str]]] = {}

    def asked(self, model: str, role: str, outcome: str) -> None:
        """A call ended. outcome: ok, the code of an error class, or cancelled."""
        self._requests.labels(model, role, outcome).inc()

    def answered(self, model: str, role: str, *, duration_s: float, tokens: int) -> None:
        """That was ok."""
        self._duration.labels(model, role).observe(duration_s)
        self._tokens.labels(model, role).inc(tokens)

    def compare(self, model: str, closeness: Mapping[tuple[str, str], float]) -> None:
        """By backend and role, of all that are compared now; other series of the model go."""
        for gone in self._compared.pop(model, set()) - closeness.keys():
            self._quality.remove(model, *gone)
        for labels, value in closeness.items():
            self._quality.labels(model, *labels).set(value)
        if closeness:
            self._compared[model] = set(closeness)
