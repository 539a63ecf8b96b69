"""File names that others chose, in the log: escaped, shortened, and each logged once."""

from __future__ import annotations

import json
import logging

_SHOWN_CHARS, _TOLD = 200, 1000

_log = logging.getLogger(__name__)
_told: set[tuple[str, str]] = set()


def shown(name: str) -> str:
    """A name without control characters, of at most 200 characters."""
    return json.dumps(name[:_SHOWN_CHARS])[1:-1]


def tell(where: str, name: str, what: str) -> None:
    """Log one line for each name, up to a thousand; one more says that there are more."""
    if (where, name) in _told or len(_told) > _TOLD:
        return
    _told.add((where, name))
    if len(_told) > _TOLD:
        _log.warning("bulk: more files are passed over, which are not logged")
    else:
        _log.warning('bulk: "%s" %s', shown(name), what)
