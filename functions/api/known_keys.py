"""The keys that count now: those of the settings, and a document's, which is read again and again.

Does not know HTTP. Whoever asks gets what was read last; while the document cannot be read, that stays.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from functions.api.key_list import Caller, Key, decode_keys, owner_name
from shared.errors import BlitzError, Misconfigured, StoreUnavailable, Unauthorized
from shared.models.objects import BlobObjects, FolderObjects, ObjectStore
from shared.observability import metrics
from shared.observability.logs import FAILURE, Failure
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from shared.wording import counted

UNNAMED = "unnamed"
"""In metrics, the name of all keys that BLITZ_API_KEY_HASHES holds."""

WARN_DAYS = 14
"""So long before a caller's last key ends, the log warns of it, once a day."""

_DAY_S = 86_400.0
_STORE = "the keys document"
_REFUSED = {True: "expired", False: "not_yet"}

_log = logging.getLogger(__name__)


class KeyDocument:
    """The bytes of the keys document: a file, or a blob."""

    def __init__(self, objects: ObjectStore, name: str) -> None:
        self._objects = objects
        self._name = name

    def read(self) -> bytes | None:
        """None if there is none. Raises StoreUnavailable, InvalidArtefact."""
        return self._objects.read(self._name)

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Read, change, write; `change` runs again if another writer came between."""
        self._objects.prepare()
        self._objects.update(self._name, change)


def open_document(url: str, connection_string: str = "") -> KeyDocument:
    """url: file://FOLDER/NAME, or a blob's https:// or (Azurite) http:// URL. Raises Misconfigured."""
    place, _, name = url.rpartition("/")
    if not name or name.startswith(".") or "?" in name:
        place = ""
    if place.startswith("file://") and len(place) > len("file://"):
        return KeyDocument(FolderObjects(Path(place.removeprefix("file://")), _STORE), name)
    if place.startswith(("https://", "http://")):
        return KeyDocument(BlobObjects(place, connection_string, _STORE), name)
    raise Misconfigured(
        "BLITZ_API_KEYS, or --document, must be file://FOLDER/keys.json or a blob's URL, as "
        "https://ACCOUNT.blob.core.windows.net/CONTAINER/keys.json"
    )


class Known(msgspec.Struct, frozen=True):
    """Whose a key is. name: in metrics. owner: the folder of its files and batches."""

    name: str
    owner: str
    key: Key


class KnownKeys:
    """What is known of callers' keys. Thread-safe.

    hashes: sha256 (hex) of keys without a name, which do not end. document: the others; of a key that
    is in both, the document tells. It is read here, and then by `refresh`. clock: seconds since 1970.
    Raises Misconfigured if the document is not valid; one that cannot be reached may come later.
    """

    def __init__(
        self,
        hashes: Sequence[str],
        document: KeyDocument | None = None,
        metrics: Telemetry = metrics.PROCESS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hashes = tuple(each.lower() for each in hashes)
        self._document = document
        self._metrics = metrics
        self._clock = clock
        self._read: bytes | None = None
        self._told: set[str] = set()
        self._warned_at: dict[str, float] = {}
        self.is_complete = document is None
        self._known = self._known_of(())
        if document is not None:
            try:
                self._take(document.read())
            except StoreUnavailable as error:
                self._tell_unread(error)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, digests: Iterable[bytes]) -> Known | None:
        """The first that counts now; None if none does. digests: sha256 of what a caller sent.

        Compares with every hash, in constant time each: how long it takes tells nothing of any, nor
        whether it counts. Raises StoreUnavailable for a key that a document may hold which could not be
        read yet.
        """
        now = datetime.fromtimestamp(self._clock(), UTC)
        found, refused, any_sent = None, None, False
        for digest in digests:
            any_sent = True
            for expected, known in self._known.items():
                if hmac.compare_digest(digest, expected):
                    if known.key.counts_at(now):
                        found = found or known
                    else:
                        refused = refused or known
        if found is not None:
            self._metrics.key_used(found.name)
        elif refused is not None:
            self._tell_refused(refused, now)
        elif any_sent and not self.is_complete:
            raise StoreUnavailable("the keys cannot be read yet: retry", retry_after_s=5.0)
        return found

    def refresh(self) -> None:
        """Read the document again; if that cannot be, or it is not valid, what was there counts on."""
        if self._document is None:
            return
        try:
            data = self._document.read()
            if data is None and self._read is not None:
                raise StoreUnavailable("the keys document is gone")
            self._take(data)
        except Exception as error:
            self._tell_unread(error)

    def watch(self, every_s: float, wait: Callable[[float], bool] | None = None) -> None:
        """`refresh` again and again, in a thread that ends with the process, or once `wait` says so.

        Not when somebody asks: after an idle day, a key that was withdrawn would still let one in.
        """
        ends = wait or threading.Event().wait

        def refresh_often() -> None:
            while not ends(every_s):
                self.refresh()

        threading.Thread(target=refresh_often, name="keys", daemon=True).start()

    def _take(self, data: bytes | None) -> None:
        callers = decode_keys(data)
        if data != self._read or not self.is_complete:
            self._known, self._read, self._told = self._known_of(callers), data, set()
            _log.info("the keys document names %s", counted(len(callers), "caller"))
        self.is_complete = True
        last = {caller.name: caller.expires() for caller in callers}
        ends = {name: moment.timestamp() for name, moment in last.items() if moment is not None}
        self._metrics.keys_expire(ends)
        self._warn_of(ends, self._clock())

    def _warn_of(self, ends: Mapping[str, float], now: float) -> None:
        """Of what ends soon, once a day each. ends, now: seconds since 1970."""
        for name, end in ends.items():
            left_days = (end - now) / _DAY_S
            if left_days < WARN_DAYS and now - self._warned_at.get(name, 0.0) >= _DAY_S:
                self._warned_at[name] = now
                _log.warning("the last key of %s %s", name, _ending(left_days))

    def _known_of(self, callers: Iterable[Caller]) -> dict[bytes, Known]:
        unnamed = {
            bytes.fromhex(each): Known(UNNAMED, owner_name(each), Key(each)) for each in self._hashes
        }
        named = {
            bytes.fromhex(key.sha256): Known(caller.name, caller.owner, key)
            for caller in callers
            for key in caller.keys
        }
        return {**unnamed, **named}

    def _tell_refused(self, known: Known, now: datetime) -> None:
        is_over = known.key.expires is not None and known.key.expires <= now
        self._metrics.key_refused(known.name, _REFUSED[is_over])
        if known.key.sha256 not in self._told:  # once each: a caller that repeats it fills no log
            self._told.add(known.key.sha256)
            why = "has expired" if is_over else "does not count yet"
            _log.warning("a key of %s %s and is refused", known.name, why)

    def _tell_unread(self, error: Exception) -> None:
        self._metrics.keys_not_read()
        known = isinstance(error, BlitzError)
        reason = f": {error}" if known else ""
        carried = None if known else {FAILURE: Failure.of(error)}
        kept = "the last ones count" if self.is_complete else "those of the document do not count yet"
        _log.warning("the keys could not be read, %s%s", kept, reason, extra=carried)


def connect_keys(settings: Settings, metrics: Telemetry = metrics.PROCESS) -> KnownKeys | None:
    """What the settings say, and read again every refresh_s; None: no key is needed.

    Raises Misconfigured.
    """
    if not settings.api_keys:
        return KnownKeys(settings.api_key_hashes, None, metrics) if settings.api_key_hashes else None
    document = open_document(settings.api_keys, settings.storage_connection_string)
    known = KnownKeys(settings.api_key_hashes, document, metrics)
    if not len(known):
        _log.warning("no key counts yet, so that nobody may call: %s", Unauthorized.code)
    known.watch(settings.refresh_s)
    return known


def _ending(left_days: float) -> str:
    return f"expires in {left_days:.0f} days" if left_days > 0 else "has expired"
