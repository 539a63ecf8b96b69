"""Names of files that somebody else gave, in the log: what is shown of one, and each told of once."""

from __future__ import annotations

import json
import logging

_SHOWN_CHARS, _TOLD = 200, 1000

_log = logging.getLogger(__name__)
_told: set[tuple[str, str]] = set()


def shown(name: str) -> str:
    """A name without what a terminal or a log's reader would obey, as far as 200 characters."""
    return json.dumps(name[:_SHOWN_CHARS])[1:-1]


def tell(where: str, name: str, what: str) -> None:
    """One line for each name, of a thousand of them; one more says that there are more."""
    if (where, name) in _told or len(_told) > _TOLD:
        return
    _told.add((where, name))
    if len(_told) > _TOLD:
        _log.warning("bulk: more files are passed over, of which no line tells")
    else:
        _log.warning('bulk: "%s" %s', shown(name), what)
