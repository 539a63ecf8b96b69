"""Loaded models by name: leased, loaded once, least recently used evicted, renewed when republished.

It does not know the store, engines or requests: `find_revision` and `load` are given. One lock guards
a few dicts and is never held over I/O; loads and closes run in the cache's own threads. A revision is
loaded once, whether it is asked for by its model's name or as NAME@REVISION. Which name stands for which
entry is kept in shared.inference.loaded_models, which failures are recent in load_failures.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager

import msgspec

from shared.cards import ModelState
from shared.errors import BlitzError, ModelLoadFailed, Unavailable
from shared.inference import load_failures
from shared.inference.load_failures import LoadFailures
from shared.inference.loaded_models import Entry, Key, LoadedModels
from shared.inference.model import Model
from shared.names import split_pinned
from shared.observability import metrics
from shared.observability.logs import log_failure
from shared.observability.metrics import Telemetry

_log = logging.getLogger(__name__)

_LOAD_THREADS = 4


class _Load(msgspec.Struct, eq=False):
    """One load in flight. waiters: callers who each own a lease the moment it is done.

    replaces: what its name stands for until then, of one that looks for a new revision.
    """

    future: Future[Entry] = msgspec.field(default_factory=Future)
    waiters: int = 0
    entry: Entry | None = None
    replaces: Entry | None = None


class ModelCache:
    """At most `max_models` and `max_bytes` of models, and always the one used last.

    Leased models are never closed: when all are leased the cache exceeds its limits until one is back.
    refresh_s: age at which a hit makes the cache look for a new revision, in the background.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        find_revision: Callable[[str], str],
        load: Callable[[str, str], Model],
        max_models: int,
        max_bytes: int,
        refresh_s: float,
        clock: Callable[[], float] = time.monotonic,
        metrics: Telemetry = metrics.PROCESS,
    ) -> None:
        self._find_revision = find_revision
        self._load = load
        self._refresh_s = refresh_s
        self._clock = clock
        self._metrics = metrics
        self._lock = threading.Lock()
        self._models = LoadedModels(max_models, max_bytes)
        self._loads: dict[str, _Load] = {}
        self._opening: dict[Key, list[tuple[str, _Load]]] = {}  # and who is to be served by it
        self._failures = LoadFailures()
        self._wanted: dict[str, str | None] = {}  # names given to warm -> why the last load failed
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(_LOAD_THREADS, thread_name_prefix="model-load")

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Model]:
        """The loaded model, kept open until the block ends; a hit costs a lock and a dict.

        Raises what find_revision and load raise when the caller can fix it (UnknownModel);
        ModelLoadFailed with retry_after_s otherwise, at once while the last failure is recent.
        """
        taken = self._take(name)
        entry = taken if isinstance(taken, Entry) else await self._arrival(taken)
        try:
            yield entry.model
        finally:
            self._release(entry)

    def warm(self, names: Iterable[str]) -> None:
        """Load models in the background, trying again until they are loaded once. Returns at once."""
        names = list(names)
        with self._lock:
            self._wanted.update(dict.fromkeys(names))
        if names:
            threading.Thread(target=self._warm, args=(names,), name="model-warm", daemon=True).start()

    def states(self, published: Iterable[str]) -> dict[str, ModelState]:
        """Every model of `published`, and every other that is loaded, loading or was to be warmed.

        What failed to load, and neither is published any more nor was to be warmed, is left out.
        """
        with self._lock:
            states = {name: ModelState(name, "cold") for name in (*published, *self._wanted)}
            for name, reason in self._wanted.items():
                if reason:
                    states[name] = ModelState(name, "failed", reason)
            for name, reason in self._failures.reasons():
                if name in states:
                    states[name] = ModelState(name, "failed", reason)
            for name in self._loads:
                states[name] = ModelState(name, "loading")
            for name, entry in self._models.served():
                states[name] = ModelState(name, "warm", revision=entry.revision)
            return states

    def close(self) -> None:
        """Close idle models now and leased ones when they are back; later leases are Unavailable."""
        with self._lock:
            self._closed.set()
            loads = list(self._loads.values())
            self._loads.clear()
            closing = self._models.clear()
        for load in loads:
            load.future.set_exception(Unavailable("the service is shutting down"))
        for entry in closing:
            entry.model.close()
        self._pool.shutdown(wait=False)  # queued closes still run; queued loads see that we are closed

    def _take(self, name: str) -> Entry | _Load:
        """A lease on a loaded model, or a place among the waiters of its load."""
        with self._lock:
            entry = self._models.use(name)
            if entry is None:
                load = self._begin(name)
                load.waiters += 1
                self._metrics.cache_missed()
                return load
            is_pinned = split_pinned(name)[1] != ""
            old = self._clock() - entry.checked_at >= self._refresh_s
            if old and not is_pinned and not entry.checking:
                entry.checking = True
                self._pool.submit(self._refresh, name, entry)
            self._metrics.cache_hit()
            return entry

    def _begin(self, name: str) -> _Load:
        """The load in flight, or a new one. Call with the lock held."""
        if self._closed.is_set():
            raise Unavailable("the service is shutting down")
        if load := self._loads.get(name):
            return load
        self._failures.check(name, self._clock())
        load = self._loads[name] = _Load()
        # A running future cannot be cancelled, so no caller that leaves can end it for the others.
        load.future.set_running_or_notify_cancel()
        self._pool.submit(self._run, name, load)
        return load

    async def _arrival(self, load: _Load) -> Entry:
        try:
            return await asyncio.wrap_future(load.future)
        except BaseException:
            # The load may have finished in the moment we were cancelled: then the lease is ours.
            with self._lock:
                load.waiters -= 1
                entry = load.entry
            if entry:
                self._release(entry)
            raise

    def _release(self, entry: Entry) -> None:
        with self._lock:
            closing = [*self._models.release(entry), *self._shrink()]
        self._close_later(closing)

    def _run(self, name: str, load: _Load) -> None:
        if self._closed.is_set():
            return
        try:
            revision = self._find_revision(name)
        except Exception as error:
            self._fail(name, load, error)
            return
        self._bring(name, (split_pinned(name)[0], revision), load)

    def _bring(self, name: str, key: Key, load: _Load) -> None:
        """End a load with that revision: with the loaded one, the one being opened, or by opening it."""
        with self._lock:
            loads = self._opening.setdefault(key, [])
            loads.append((name, load))
            if len(loads) > 1:
                return  # who opens it serves this name too
            entry = there = self._models.find(key)
            if there is not None:
                there.leases += 1  # so that it stays
        try:
            entry = entry or self._open(key)
        except Exception as error:
            with self._lock:
                loads = self._opening.pop(key)
            for name, load in loads:
                self._fail(name, load, error)
            return
        arrived = self._arrive(entry)
        if there is not None:
            self._release(there)
        elif not arrived:
            entry.model.close()

    def _arrive(self, entry: Entry) -> bool:
        """Serve a loaded model and give its waiters their leases; False if nobody wants it any more."""
        with self._lock:
            loads = self._opening.pop(entry.key)
            if self._closed.is_set():
                return False
            closing: list[Entry] = []
            for name, load in loads:
                if not split_pinned(name)[1]:
                    entry.checked_at = self._clock()
                if load.replaces is None:
                    del self._loads[name]
                    self._failures.forget(name)
                    if name in self._wanted:
                        self._wanted[name] = None
                    load.entry = entry
                    entry.leases += load.waiters
                elif self._models.named(name) is not load.replaces:
                    continue  # evicted meanwhile: nobody waits for this
                closing += self._models.serve(name, entry)
            closing += self._shrink()
            # Not later: once it is leased it may be replaced, and is then closed with its last lease.
            is_wanted = bool(entry.names)
        self._close_later(closing)
        for _, load in loads:
            load.future.set_result(entry)
        return is_wanted

    def _fail(self, name: str, load: _Load, error: Exception) -> None:
        if load.replaces is not None:
            _tell_not_refreshed(name, error)
            return
        failed = f"the model {name} did not load"
        passed_on = isinstance(error, BlitzError) and error.status < 500
        reason = f"{failed}: {error}" if isinstance(error, BlitzError) else failed
        is_news = self._wanted.get(name, reason) != reason
        if is_news or not passed_on:  # callers can send any name: theirs are not worth a line each
            log_failure(_log, failed, error, logging.WARNING)
        now = self._clock()
        with self._lock:
            if self._closed.is_set():
                return
            del self._loads[name]
            if name in self._wanted:
                self._wanted[name] = reason
            if not passed_on:
                error = self._failures.add(name, reason, now)
                self._metrics.model_load_failed()
        load.future.set_exception(error)

    def _open(self, key: Key) -> Entry:
        started = self._clock()
        model = self._load(*key)
        now = self._clock()
        self._metrics.model_loaded(seconds=now - started)
        return Entry(model, key, model.memory_bytes, checked_at=now)

    def _refresh(self, name: str, old: Entry) -> None:
        """Swap in a new revision if there is one; whatever goes wrong, the old one keeps serving."""
        try:
            revision = self._find_revision(name)
            if revision != old.revision:
                self._bring(name, (old.key[0], revision), _Load(replaces=old))
        except Exception as error:
            _tell_not_refreshed(name, error)
        with self._lock:
            old.checked_at = self._clock()
            old.checking = False

    def _shrink(self) -> list[Entry]:
        """Drop what is too much. Call with the lock held."""
        dropped = self._models.shrink()
        for _ in dropped:
            self._metrics.model_evicted()
        self._metrics.cache_holds(models=len(self._models), memory_bytes=self._models.memory_bytes)
        return dropped

    def _close_later(self, entries: list[Entry]) -> None:
        """Freeing an engine takes milliseconds that an event loop does not have."""
        for entry in entries:
            try:
                self._pool.submit(entry.model.close)
            except RuntimeError:  # the pool is shut down
                entry.model.close()

    def _warm(self, names: list[str]) -> None:
        delay_s = load_failures.FIRST_RETRY_S
        while names and not self._closed.is_set():
            futures = {}
            for name in names:
                try:
                    with self._lock:
                        if self._models.named(name) is None:
                            futures[name] = self._begin(name).future
                except ModelLoadFailed as error:
                    futures[name] = Future()
                    futures[name].set_exception(error)
                except (Unavailable, RuntimeError):  # closed, or the interpreter is ending
                    return
            wait(futures.values())
            names = [name for name, future in futures.items() if future.exception()]
            self._closed.wait(delay_s if names else 0)
            delay_s = load_failures.longer(delay_s)


def _tell_not_refreshed(name: str, error: Exception) -> None:
    log_failure(_log, f"the model {name} was not refreshed", error, logging.WARNING)
