"""pyarrow, imported when something of it is used first: no other module takes as long at a start.

A process that only serves requests never does. Does not know what it is used for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    part = name in ("compute", "parquet")
    found = import_module(f"pyarrow.{name}") if part else getattr(import_module("pyarrow"), name)
    globals()[name] = found  # the next time it is looked up as fast as any name
    return found
