"""Observes bulk steps: a span for each, in one trace for each job, and metrics.

Does not know what a step does, nor where spans and metrics go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shared.bulk.jobs import Job
from shared.context import trace
from shared.errors import BlitzError
from shared.observability.logs import log_failure
from shared.observability.metrics import Telemetry

_log = logging.getLogger(__name__)


@contextmanager
def observed(step: str, metrics: Telemetry) -> Iterator[None]:
    """Around one run of a step, also that of a message which comes again."""
    began, failed = time.perf_counter(), False
    with trace.working(f"bulk {step}"):
        try:
            yield
        except Exception as error:
            failed = True
            if not isinstance(error, BlitzError):  # its caller, which tries again, logs those
                log_failure(_log, f"bulk: {step} failed", error)
            raise
        finally:
            metrics.bulk_step_ended(step, duration_s=time.perf_counter() - began, failed=failed)


def belongs_to(job: Job) -> None:
    """Set the job that the current step works on.

    A job's trace has the job's id: messages carry no trace, and each of the two is found by the other.
    """
    span = trace.current()
    if span is not None:
        span.trace_id = f"{job.id:0>32}"
        span.labels |= {"job": job.id, "model": job.options.model}
