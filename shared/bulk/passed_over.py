"""Blobs in bulk-in that are no inputs: which names tell so, and one log line for each.

Does not know storage or jobs.
"""

from __future__ import annotations

from shared.bulk.options import SIDECAR
from shared.storage.shown_names import tell

_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
_FOLDERS = frozenset(("__macosx", "$recycle.bin", "system volume information", "lost+found"))
_UNFINISHED = (".crdownload", ".part", ".partial", ".filepart", ".download", ".opdownload", ".tmp")
"""Endings that browsers and copiers give a file until it is complete and gets its own name."""
_EDITORS = ("~", ".swp")


def why_no_input(key: str) -> str | None:
    """Why a blob of bulk-in is no input, by its name, in words that follow "it is"; None: it is one."""
    *folders, name = (segment.lower() for segment in key.split("/"))
    if key.endswith(SIDECAR):
        return "a sidecar"
    if any(folder in _FOLDERS or folder.startswith(".") for folder in folders):
        return "in a hidden folder, or one of the system's"
    if name.startswith("."):
        return "a hidden file"
    if name in _FILES:
        return "a file of the system's"
    if name.endswith(_UNFINISHED):
        return "not whole yet, by its name"
    if name.startswith("~") or name.endswith(_EDITORS):
        return "an editor's own file"
    return None


def is_input(key: str) -> bool:
    """Whether a blob of bulk-in is to be embedded. If not, that is logged, except for sidecars."""
    why = why_no_input(key)
    if why is not None and not key.endswith(SIDECAR):
        tell("bulk-in", key, f"is {why}, and is passed over")
    return why is None
