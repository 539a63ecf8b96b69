"""Metric names and what feeds them, in one table. Knows neither HTTP, models nor exporters.

Names, labels and units are Text Embeddings Inference's where it has the metric, so that its
dashboards work unchanged; what is ours begins with blitz_. Durations are seconds.

te_request_count{method}              counter    requests that reached inference; method: single | batch
te_request_success{method}            counter    answered
te_request_failure{err}               counter    refused or failed; err: the error's code
te_request_duration                   histogram  arrival of the body to the answer's last byte encoded
te_request_tokenization_duration      histogram  of it, tokenisation
te_request_queue_duration             histogram  of it, waiting
te_request_inference_duration         histogram  of it, the model
te_embed_count, te_embed_success      counter    inputs asked for, inputs embedded
te_queue_size                         gauge      tokens waiting
te_batch_next_size                    histogram  texts in a micro-batch
te_batch_next_tokens                  histogram  padded tokens in a micro-batch
blitz_embed_tokens{model}             counter    tokens fed, by model
blitz_truncated_inputs{model}         counter    inputs that were cut to what the model reads, by model
blitz_cache_hits, blitz_cache_misses  counter    leases of loaded models, of models not loaded
blitz_cache_evictions                 counter    models closed to make room
blitz_cache_load_failures             counter    loads that failed
blitz_cache_load_duration             histogram  fetch and load of a model
blitz_cache_models, blitz_cache_bytes gauge      models loaded, bytes they hold
blitz_backend_requests{backend,outcome} counter  calls; outcome: ok | an error's code | cancelled
blitz_backend_fallbacks{backend}      counter    requests that went to another backend after this one
blitz_backend_up{backend}             gauge      1; 0 while its circuit is open
blitz_revision_requests{model,role,outcome} counter  calls while a revision is staged; role: current |
                                                 staged; outcome: as above
blitz_revision_duration{model,role}   histogram  of those that were answered, at the router
blitz_revision_tokens{model,role}     counter    tokens of those
blitz_revision_quality{model,backend,role} gauge closeness to the original that the manifest tells
blitz_gpu_wakes                       counter    times the GPU backend was asked to wake
blitz_bulk_rows{outcome}              counter    rows of bulk jobs; outcome: embedded | failed
blitz_bulk_jobs{status}               counter    jobs that ended; status: completed | failed | cancelled
blitz_bulk_step_duration{step}        histogram  step: split | embed | finish | give_up | reconcile
blitz_bulk_step_failures{step}        counter    of them, those that raised an error
blitz_gpu_memory_bytes{kind}          gauge      GPU memory; kind: used | reserved | free
blitz_ready                           gauge      the last answer of /ready: 1 yes, 0 no or never asked
blitz_key_requests{key}               counter    requests let in, by the name of the key
blitz_key_tokens{key}                 counter    tokens of what they asked for; bulk work is not counted
blitz_key_refusals{key,reason}        counter    requests with a known key; reason: expired | not_yet
blitz_key_expires_timestamp_seconds{key} gauge   when the last key of a name ends, seconds since 1970
blitz_keys_read_failures              counter    times the keys document could not be read, or not taken
blitz_telemetry_dropped               counter    spans and log records that an exporter had no room for
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from shared.context import trace
from shared.contracts import Result
from shared.observability.revisions import RevisionMetrics

CONTENT_TYPE = CONTENT_TYPE_LATEST

MAX_KEY_NAMES = 400
"""That one process tells apart in its life; twice what one document may have."""

_BULK_STEPS = ("split", "embed", "finish", "give_up", "reconcile")

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 230)
_STEP_SECONDS = (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600)
_TEXTS = tuple(2**n for n in range(11))
_TOKENS = tuple(2**n for n in range(4, 18))

# prometheus-client adds `_total` to counters and a `_created` gauge to each series; TEI has neither.
_TOTAL = re.compile(rb"^(# (?:HELP|TYPE) )?((?:te|blitz)_\w+)_total\b", re.MULTILINE)
_CREATED = re.compile(rb"^(?:# (?:HELP|TYPE) )?(?:te|blitz)_\w+_created\b.*\n", re.MULTILINE)


class Sample(msgspec.Struct, frozen=True):
    """One series at one time. value: a counter's or gauge's, or the sum of a histogram's values.

    count: of a histogram's values; otherwise 1.
    """

    name: str
    labels: tuple[tuple[str, str], ...]
    kind: Literal["counter", "gauge", "histogram"]
    value: float
    count: int = 1


class Telemetry:
    """The metrics of one process. Thread-safe: prometheus-client locks each value."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.revisions = RevisionMetrics(registry, _SECONDS)
        self._requests = self._counter("te_request_count", "Requests", "method")
        self._successes = self._counter("te_request_success", "Requests answered", "method")
        self._failures = self._counter("te_request_failure", "Requests refused or failed", "err")
        self._duration = self._histogram("te_request_duration", "Whole request, s", _SECONDS)
        self._tokenization = self._histogram(
            "te_request_tokenization_duration", "Tokenisation of a request, s", _SECONDS
        )
        self._queue = self._histogram("te_request_queue_duration", "Waiting of a request, s", _SECONDS)
        self._inference = self._histogram(
            "te_request_inference_duration", "Inference of a request, s", _SECONDS
        )
        self._inputs = self._counter("te_embed_count", "Inputs asked for")
        self._embedded = self._counter("te_embed_success", "Inputs embedded")
        self._queue_size = self._gauge("te_queue_size", "Tokens waiting")
        self._batch_texts = self._histogram("te_batch_next_size", "Texts in a micro-batch", _TEXTS)
        self._batch_tokens = self._histogram(
            "te_batch_next_tokens", "Padded tokens in a micro-batch", _TOKENS
        )
        self._tokens = self._counter("blitz_embed_tokens", "Tokens fed", "model")
        self._truncated = self._counter("blitz_truncated_inputs", "Inputs that were cut", "model")
        self._hits = self._counter("blitz_cache_hits", "Leases of loaded models")
        self._misses = self._counter("blitz_cache_misses", "Leases of models not loaded")
        self._evictions = self._counter("blitz_cache_evictions", "Models closed to make room")
        self._load_failures = self._counter("blitz_cache_load_failures", "Loads that failed")
        self._loads = self._histogram("blitz_cache_load_duration", "Fetch and load, s", _SECONDS)
        self._models = self._gauge("blitz_cache_models", "Models loaded")
        self._bytes = self._gauge("blitz_cache_bytes", "Bytes of loaded models")
        self._backend_requests = self._counter(
            "blitz_backend_requests", "Calls to backends", "backend", "outcome"
        )
        self._backend_fallbacks = self._counter(
            "blitz_backend_fallbacks", "Requests that went on to another backend", "backend"
        )
        self._gpu_wakes = self._counter("blitz_gpu_wakes", "Times the GPU backend was woken")
        self._backend_up = self._gauge("blitz_backend_up", "Whether calls are let through", "backend")
        self._bulk_rows = self._counter("blitz_bulk_rows", "Rows of bulk jobs", "outcome")
        self._bulk_jobs = self._counter("blitz_bulk_jobs", "Bulk jobs that ended", "status")
        self._bulk_steps = self._histogram(
            "blitz_bulk_step_duration", "A step of bulk work, s", _STEP_SECONDS, "step"
        )
        self._bulk_failures = self._counter(
            "blitz_bulk_step_failures", "Steps of bulk work that failed", "step"
        )
        _begin_at_zero(self._bulk_rows, "embedded", "failed")
        _begin_at_zero(self._bulk_jobs, "completed", "failed", "cancelled")
        _begin_at_zero(self._bulk_steps, *_BULK_STEPS)
        _begin_at_zero(self._bulk_failures, *_BULK_STEPS)
        self._gpu_bytes = self._gauge("blitz_gpu_memory_bytes", "GPU memory", "kind")
        self._ready = self._gauge("blitz_ready", "The last answer of /ready")
        self._dropped = self._counter("blitz_telemetry_dropped", "Spans and log records not exported")
        self._key_requests = self._counter("blitz_key_requests", "Requests let in", "key")
        self._key_tokens = self._counter("blitz_key_tokens", "Tokens of requests let in", "key")
        self._key_refusals = self._counter(
            "blitz_key_refusals", "Requests with a known key that does not count", "key", "reason"
        )
        self._key_ends = self._gauge(
            "blitz_key_expires_timestamp_seconds", "When a name's last key ends, s since 1970", "key"
        )
        self._keys_not_read = self._counter("blitz_keys_read_failures", "The keys were not read")
        self._key_names, self._ending = set[str](), set[str]()
        self.gpu_memory: Callable[[], dict[str, int]] = dict  # nothing where there is no GPU

    def backend_called(self, backend: str, outcome: str) -> None:
        """A call to a backend ended. outcome: ok, the code of an error class, or cancelled."""
        self._backend_requests.labels(backend, outcome).inc()

    def backend_fell_back(self, backend: str) -> None:
        """A request that `backend` did not answer goes to another one."""
        self._backend_fallbacks.labels(backend).inc()

    def watch_backend(self, backend: str, is_up: Callable[[], bool]) -> None:
        """Read blitz_backend_up from `is_up` at each scrape."""
        self._backend_up.labels(backend).set_function(is_up)

    def gpu_woken(self) -> None:
        """The GPU backend was asked to wake."""
        self._gpu_wakes.inc()

    def said_ready(self, ready: bool) -> None:
        """/ready was answered."""
        self._ready.set(ready)

    def telemetry_dropped(self) -> None:
        """An exporter had no room for something."""
        self._dropped.inc()

    def key_used(self, name: str) -> None:
        """A request was let in. name: of its key; never the key, nor its hash."""
        self._key_requests.labels(self._key_label(name)).inc()

    def key_read(self, name: str, tokens: int) -> None:
        """A request of so many tokens was answered. name: as above; "": there are no keys."""
        if name:
            self._key_tokens.labels(self._key_label(name)).inc(tokens)

    def key_refused(self, name: str, reason: str) -> None:
        """A known key did not count. reason: one of the table's."""
        self._key_refusals.labels(self._key_label(name), reason).inc()

    def keys_expire(self, ends: Mapping[str, float]) -> None:
        """By name, when the last key ends, in seconds since 1970; other names have no such series."""
        for name, end in ends.items():
            self._key_ends.labels(name).set(end)
        for gone in self._ending - ends.keys():
            self._key_ends.remove(gone)
        self._ending = set(ends)

    def keys_not_read(self) -> None:
        """The keys document could not be read, or was not valid."""
        self._keys_not_read.inc()

    def request_arrived(self, inputs: int) -> None:
        """A valid request of `inputs` texts goes to inference."""
        self._requests.labels(_method(inputs)).inc()
        self._inputs.inc(inputs)

    def request_succeeded(self, result: Result, *, inputs: int, duration_s: float) -> None:
        """A request was answered. result.model: a name that exists, so that labels stay few."""
        timings, tokens = result.timings, result.total_tokens
        self._successes.labels(_method(inputs)).inc()
        self._embedded.inc(inputs)
        self._tokens.labels(result.model).inc(tokens)
        self._truncated.labels(result.model).inc(len(result.cut))
        self._duration.observe(duration_s)
        self._tokenization.observe(timings.tokenization_s)
        self._queue.observe(timings.queue_s)
        self._inference.observe(timings.inference_s)
        trace.note(
            {"model": result.model},
            {
                "inputs": inputs,
                "tokens": tokens,
                "tokenization_s": timings.tokenization_s,
                "queue_s": timings.queue_s,
                "inference_s": timings.inference_s,
            },
        )

    def request_failed(self, code: str) -> None:
        """A request was refused or failed. code: of the error class, so that labels stay few."""
        self._failures.labels(code).inc()

    def bulk_step_ended(self, step: str, *, duration_s: float, failed: bool) -> None:
        """A step of bulk work was done, or raised an error (failed). step: one of the table's."""
        self._bulk_steps.labels(step).observe(duration_s)
        if failed:
            self._bulk_failures.labels(step).inc()

    def bulk_chunk_embedded(self, *, embedded: int, failed: int, tokens: int) -> None:
        """A chunk is done; to be called once for each, by the step that did it."""
        self._bulk_rows.labels("embedded").inc(embedded)
        self._bulk_rows.labels("failed").inc(failed)
        trace.note({}, {"rows": embedded + failed, "failed": failed, "tokens": tokens})

    def bulk_rows_unreadable(self, rows: int) -> None:
        """Rows of an input are in no chunk; to be called once for each."""
        self._bulk_rows.labels("failed").inc(rows)

    def bulk_job_ended(self, status: str) -> None:
        """A job is over; to be called once for each. status: one of the table's."""
        self._bulk_jobs.labels(status).inc()
        trace.note({"status": status}, {})

    def watch_queue(self, queued_tokens: Callable[[], float]) -> None:
        """Read te_queue_size from `queued_tokens` at each scrape."""
        self._queue_size.set_function(queued_tokens)

    def watch_gpu_memory(self, memory: Callable[[], dict[str, int]]) -> None:
        """Read blitz_gpu_memory_bytes from `memory` (kind -> bytes) at each scrape."""
        self.gpu_memory = memory
        for kind in memory():
            self._gpu_bytes.labels(kind).set_function(partial(_value_of, memory, kind))

    def batch_ran(self, *, texts: int, padded_tokens: int) -> None:
        """A micro-batch went to an engine."""
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(padded_tokens)

    def cache_hit(self) -> None:
        """A request found its model loaded."""
        self._hits.inc()

    def cache_missed(self) -> None:
        """A request had to wait for its model."""
        self._misses.inc()

    def model_loaded(self, *, seconds: float) -> None:
        """A model was loaded in so many seconds."""
        self._loads.observe(seconds)

    def model_load_failed(self) -> None:
        """A model did not load."""
        self._load_failures.inc()

    def model_evicted(self) -> None:
        """A model was dropped to make room."""
        self._evictions.inc()

    def cache_holds(self, *, models: int, memory_bytes: int) -> None:
        """What the model cache holds now."""
        self._models.set(models)
        self._bytes.set(memory_bytes)

    def _key_label(self, name: str) -> str:
        """Names come and go while a process lives; its series must not grow for ever."""
        if name not in self._key_names and len(self._key_names) >= MAX_KEY_NAMES:
            return "other"
        self._key_names.add(name)
        return name

    def samples(self) -> Iterator[Sample]:
        """Every series as it is now."""
        for family in self._registry.collect():
            values = {(each.name, tuple(each.labels.items())): each.value for each in family.samples}
            for (name, labels), value in values.items():
                if family.type == "gauge":
                    yield Sample(family.name, labels, "gauge", value)
                elif name == f"{family.name}_total":
                    yield Sample(family.name, labels, "counter", value)
                elif name == f"{family.name}_sum":
                    count = int(values[f"{family.name}_count", labels])
                    yield Sample(family.name, labels, "histogram", value, count)

    def render(self) -> bytes:
        """Prometheus text format, media type CONTENT_TYPE."""
        return _CREATED.sub(b"", _TOTAL.sub(rb"\1\2", generate_latest(self._registry)))

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self._registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(name, help_text, labels, registry=self._registry)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, help_text, labels, buckets=buckets, registry=self._registry)


def _begin_at_zero(metric: Counter | Histogram, *values: str) -> None:
    """Create a series for each value of the label: rate() does not see what a series begins with."""
    for value in values:
        metric.labels(value)


def _value_of(values: Callable[[], dict[str, int]], key: str) -> float:
    return values()[key]


def _method(inputs: int) -> str:
    return "single" if inputs == 1 else "batch"


PROCESS = Telemetry(CollectorRegistry())
"""This process's metrics: what /metrics shows. Tests make their own."""
