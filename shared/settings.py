"""The only reader of the environment. Every setting is a field here; `BLITZ_` + its name sets it.

Unknown BLITZ_ names are refused: a misspelt setting must not pass for the default.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shared.errors import Misconfigured

PREFIX = "BLITZ_"


@dataclass(frozen=True, slots=True)
class Settings:
    """What operators can change. Each field is BLITZ_<NAME>; units are in the names.

    role: which app this process is: router or cpu.
    model_store: file://FOLDER, or https://ACCOUNT.blob.core.windows.net/CONTAINER.
    storage_connection_string: for Azurite or key access; otherwise DefaultAzureCredential.
    default_model: what a request that names no model gets; empty: the only model there is.
    cpu_backend_url: where the router finds the CPU backend; empty: in this process.
    cache_dir, cache_disk_bytes: local copies of blobs, and how much they may take
        (Flex Consumption has 0.8 GB of temporary storage).
    cache_models, cache_memory_bytes: how many loaded models, and how many bytes of them.
    warm_models: comma-separated names loaded at startup.
    refresh_s: how often a served model's pointer is checked for a new revision.
    threads: engine threads; 0: as many as the container's CPU quota.
    batch_tokens, batch_texts: a micro-batch's limits, padded tokens and texts.
    max_wait_ms: how long a free engine waits for a batch to fill; 0 never waits.
    queue_tokens: tokens waiting in this process beyond which requests get 429.
    max_body_bytes, max_inputs, max_request_tokens: a request's limits.
    allow_token_ids: accept OpenAI inputs of token ids as ids of the model's own vocabulary.
    request_timeout_s: after that a request is answered 504 (Functions cuts HTTP at 230 s).
    """

    role: str = "router"
    model_store: str = "file://.blitz/models"
    storage_connection_string: str = ""
    default_model: str = ""
    cpu_backend_url: str = ""
    cache_dir: Path = Path(tempfile.gettempdir()) / "blitz-models"
    cache_disk_bytes: int = 600_000_000
    cache_models: int = 4
    cache_memory_bytes: int = 2_000_000_000
    warm_models: tuple[str, ...] = ()
    refresh_s: float = 60.0
    threads: int = 0
    batch_tokens: int = 384
    batch_texts: int = 128
    max_wait_ms: float = 0.0
    queue_tokens: int = 1_000_000
    max_body_bytes: int = 20_000_000
    max_inputs: int = 2048
    max_request_tokens: int = 300_000
    allow_token_ids: bool = False
    request_timeout_s: float = 220.0

    def __post_init__(self) -> None:
        if self.role not in ("router", "cpu"):
            raise Misconfigured("BLITZ_ROLE must be router or cpu")
        for name in ("threads", "max_wait_ms"):
            if getattr(self, name) < 0:
                raise Misconfigured(f"{PREFIX}{name.upper()} must be 0 or more")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise Misconfigured(f"{PREFIX}{name.upper()} must be more than 0")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read a mapping such as os.environ. Raises Misconfigured naming the variable."""
        types = {PREFIX + field.name.upper(): field for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, raw in environ.items():
            if not key.startswith(PREFIX):
                continue
            if key not in types:
                close = difflib.get_close_matches(key, types, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise Misconfigured(f"{key} is not a setting{hint}")
            values[types[key].name] = _cast(key, raw, str(types[key].type))
        return cls(**values)


_POSITIVE = (
    "cache_disk_bytes",
    "cache_models",
    "cache_memory_bytes",
    "refresh_s",
    "batch_tokens",
    "batch_texts",
    "queue_tokens",
    "max_body_bytes",
    "max_inputs",
    "max_request_tokens",
    "request_timeout_s",
)

_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def _cast(key: str, raw: str, type_name: str) -> Any:
    try:
        match type_name:
            case "int":
                return int(raw)
            case "float":
                return float(raw)
            case "bool":
                return _BOOLEANS[raw.lower()]
            case "Path":
                return Path(raw)
            case "tuple[str, ...]":
                return tuple(item.strip() for item in raw.split(",") if item.strip())
            case _:
                return raw
    except (ValueError, KeyError):
        raise Misconfigured(f"{key} is {raw!r}: not a valid {type_name}") from None
