"""How the bulk command line shows what goes on: a bar on a terminal, plain lines otherwise; on stderr.

Does not know storage, nor what the command line is asked to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from shared.bulk.jobs import ENDED, Status
from shared.errors import Unavailable

POLL_S = 1.0
LINE_S = 10.0
"""How often a plain line is written while nothing but the numbers change."""
PATIENCE_S = 60.0
"""The storage may be gone for so long while a job is waited for."""


class _Shown:
    """A rich bar, which a pipe does not get."""

    def __init__(
        self, *columns: str | TextColumn | BarColumn | DownloadColumn | TimeRemainingColumn
    ) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()


class Sending(_Shown):
    """A file on its way. total: bytes."""

    def __init__(self, name: str, total: int) -> None:
        super().__init__("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._task = self.bar.add_task(name, total=total)

    def __enter__(self) -> Sending:
        self.bar.start()
        return self

    def watch(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """`blocks`, with the bar moved as they are taken."""
        for block in blocks:
            yield block
            self.bar.advance(self._task, len(block))


class Following(_Shown):
    """A job on its way."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("{task.description}", BarColumn(), TextColumn("{task.fields[rows]}"))
        self._clock = clock
        self._task = self.bar.add_task(name, total=None, rows="waiting to begin")
        self._first: tuple[float, int] | None = None
        self._said = ("", float("-inf"))

    def __enter__(self) -> Following:
        self.bar.start()
        return self

    def show(self, status: Status | None) -> None:
        """None: nobody has begun with it."""
        now, counts = self._clock(), status.request_counts if status else None
        state = status.status if status else "waiting to begin"
        text: str = state
        if counts is not None and (done := counts.completed + counts.failed):
            self._first = self._first or (now, done)
            seconds, rows = now - self._first[0], done - self._first[1]
            rate = rows / seconds if seconds > 0 else 0.0
            total = f"{counts.total:,}" if counts.total else "?"
            text = f"{state}: {done:,}/{total} rows"
            if rate:
                text += f", {rate:,.0f} rows/s"
                if counts.total > done:
                    text += f", {(counts.total - done) / rate:,.0f} s left"
            self.bar.update(self._task, completed=done, total=counts.total or None)
        self.bar.update(self._task, rows=text)
        if state != self._said[0] or now - self._said[1] >= LINE_S:
            self._said = (state, now)
            self.say(text)

    def say(self, text: str) -> None:
        """A line, where there is no bar."""
        if self.bar.disable:
            self.console.print(text, soft_wrap=True)


def wait_for(
    find: Callable[[], str | None],
    look: Callable[[str], Status],
    following: Following,
    sleep: Callable[[float], None] = time.sleep,
) -> Status:
    """The job's status once it has ended. Raises Unavailable if the storage is gone for too long.

    find: the job's id, None before it has one. look: at a job.
    """
    job: str | None = None
    silent_s = 0.0
    while True:
        try:
            job = job or find()
            status = look(job) if job else None
            silent_s = 0.0
        except Unavailable:
            if silent_s >= PATIENCE_S:
                raise
            following.say("the storage does not answer; waiting for it")
            silent_s += POLL_S
        else:
            following.show(status)
            if status is not None and status.status in ENDED:
                return status
        sleep(POLL_S)
