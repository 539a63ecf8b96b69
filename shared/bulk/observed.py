"""What others are told of bulk steps: a span for each, in one trace for each job, and figures.

Does not know what a step does, nor who is told.
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
    """Around one run of a step, that of a message which comes again included."""
    began, failed = time.perf_counter(), False
    with trace.working(f"bulk {step}"):
        try:
            yield
        except Exception as error:
            failed = True
            if not isinstance(error, BlitzError):  # whoever tries again tells of those
                log_failure(_log, f"unexpected error in {step}", error)
            raise
        finally:
            metrics.bulk_step_ended(step, duration_s=time.perf_counter() - began, failed=failed)


def belongs_to(job: Job) -> None:
    """Say which job's the step under way is.

    A job's trace has its id, so that no message must carry one, and whoever has the one finds the other.
    """
    span = trace.current()
    if span is not None:
        span.trace_id = f"{job.id:0>32}"
        span.labels |= {"job": job.id, "model": job.options.model}
