"""The only reader of the environment. Every setting is a field here; `BLITZ_` + its name sets it.

Unknown BLITZ_ names are refused: a misspelt setting must not pass for the default.
"""

from __future__ import annotations

import difflib
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shared.command_line import command_of
from shared.errors import Misconfigured
from shared.names import is_name

PREFIX = "BLITZ_"


@dataclass(frozen=True, slots=True)
class Settings:
    """What operators can change. Each field is BLITZ_<NAME>; units are in the names.

    `python -m docs.settings` writes docs/settings.md from what follows.

    role: which app this process is: router, cpu or gpu.
    applicationinsights_connection_string: where telemetry goes; empty: nowhere. Azure's own variable,
        which the Functions host reads too.
    applicationinsights_authentication_string: how telemetry is authenticated:
        Authorization=AAD;ClientId=GUID, as that managed identity; empty: by the instrumentation key
        alone. Azure's own variable, too.
    log_format: "json" writes one object a line. In Functions the host writes the logs.
    model_store: file://FOLDER, or https://ACCOUNT.blob.core.windows.net/CONTAINER.
    storage: where bulk jobs live: file://FOLDER; https://ACCOUNT.blob.core.windows.net; azurite (its
        published account, ports 10000 and 10001 of this machine); empty: the account of
        storage_connection_string, or file://.blitz/bulk where there is none.
    storage_connection_string: for Azurite or key access; otherwise DefaultAzureCredential.
    default_model: what a request or bulk input that names no model gets; empty: the only model there is.
    cpu_backend_url: where the router finds the CPU backend; empty: in this process.
    gpu_backend_url: where the router finds the GPU backend; empty: there is none.
    backend_audience: Entra audience (api://...) of the backends, for which the router gets a token with
        its identity; empty: no token.
    backend_secret: what router and backends share where there is no Entra; empty: none.
    api_key_hashes: comma-separated sha256 (hex) of keys that callers may use, which have no name and do
        not expire; empty, without api_keys: no key needed.
    api_keys: the document of callers' keys, with names and expiry: file://FOLDER/keys.json, or a blob's
        URL; read again every refresh_s; empty: none. docs/serving.md says how it is written.
    cors_origins: comma-separated origins (https://app.example.com) of web pages that may use the router
        from a browser; *: all; empty: none. A page that holds a key shows it to whoever opens the page.
    routing: "fixed" (by the number of texts) or "adaptive" (by the expected time).
    gpu_min_texts: with routing "fixed", requests of at least so many texts go to the GPU.
    gpu_idle_s: after so long without a request the router takes the GPU app to be scaled to zero.
    gpu_wake_s: how long a GPU app that is scaled to zero is expected to take to come back.
    gpu_ahead_s: wake the GPU before it is wanted, as past weeks suggest, where sparing one request the
        cold start costs at most so many GPU seconds; 0: never. Needs storage; only in Azure.
    chunk_texts: larger requests are split into parts of so many texts.
    backend_concurrency: HTTP calls that the router has under way at one backend; others wait.
    allow_cpu: let the GPU app run on the CPU, in FP32, where there is no CUDA: tests and local runs.
    torch_compile: compile models in the GPU app; docs/decisions/013-no-torch-compile.md says when.
    cache_dir: where local copies of a remote store's models lie. Mode 700, of the user that runs the
        service.
    cache_disk_bytes: how much those copies may take (Flex Consumption has 0.8 GB of temporary storage).
    cache_models: how many models are loaded at a time.
    cache_memory_bytes: how many bytes the loaded models may have together.
    model_aliases: comma-separated ALIAS=NAME: what names ALIAS (BAAI/bge-m3, text-embedding-3-small)
        means the model NAME: requests, bulk folders, metadata, sidecars and batch lines, default_model
        and warm_models. Goes before a model that is called so. The same for the router and the CPU app,
        which reads bulk inputs.
    warm_models: comma-separated names loaded at startup.
    refresh_s: how often a served model's pointer is checked for a new revision, and the keys document
        read again.
    threads: engine threads; 0: as many as the container's CPU quota.
    batch_tokens: padded tokens in a micro-batch; 0: what suits the role (CPU 384; GPU by its free
        memory).
    batch_texts: texts in a micro-batch; 0: what suits the role (CPU 128; GPU 1,024).
    max_wait_ms: how long a free engine waits for a batch to fill; 0 never waits.
    batch_memory_bytes: memory for all micro-batches under way; 0: the container's memory less
        cache_memory_bytes and 0.6 GB. On a CPU it limits the length of a text, since attention takes
        memory by the square of the length.
    queue_tokens: tokens that may wait in this process; beyond it requests get 429.
    max_queue_s: how long a new request may be expected to wait; beyond it requests get 429.
        tests/benchmarks/overload.py says how to choose it.
    max_connections: open at once in functions.local. At the limit the connection that is idle for
        longest is closed; if none is idle, the next one waits. Fewer where the process may not open so
        many files.
    keep_alive_s: how long an idle connection stays open. It should be longer than proxies keep theirs
        (60 to 120 s), so that the service does not close one under a request.
    max_requests: requests under way in this process; more get 429 before their body is read.
    max_pending_bytes: bodies and answers of all requests under way, beyond the first 64 KiB of each;
        more get 429.
    max_body_bytes: a request's body; larger ones get 413.
    max_file_bytes: the largest file that /v1/files takes.
    key_files: files that one key may have, outputs included, and batches that it may have, ended ones
        included. Without keys: in all.
    key_file_bytes: bytes of those files together.
    key_batches: batches under way that one key may have. Without keys: in all.
    file_expiry_days: files of /v1/files and outputs of batches are deleted after so many days, unless
        the caller names another time; 0: never.
    max_job_bytes: unpacked bytes of a bulk job's input; beyond it the job fails.
    max_job_rows: rows of a bulk job's input; beyond it the job fails.
    max_inputs: texts in a request; more get 400 (422 in the TEI dialect).
    max_request_tokens: tokens in a request; more get 413.
    allow_token_ids: accept OpenAI inputs of token ids, as ids of the model's own vocabulary.
    request_timeout_s: after that a request is answered 504 (Functions cuts HTTP at 230 s).
    """

    role: str = "router"
    applicationinsights_connection_string: str = ""
    applicationinsights_authentication_string: str = ""
    log_format: str = "text"
    model_store: str = "file://.blitz/models"
    storage: str = ""
    storage_connection_string: str = ""
    default_model: str = ""
    model_aliases: tuple[str, ...] = ()
    cpu_backend_url: str = ""
    gpu_backend_url: str = ""
    backend_audience: str = ""
    backend_secret: str = ""
    api_key_hashes: tuple[str, ...] = ()
    api_keys: str = ""
    cors_origins: tuple[str, ...] = ()
    routing: str = "fixed"
    gpu_min_texts: int = 10
    gpu_idle_s: float = 300.0
    gpu_wake_s: float = 25.0
    gpu_ahead_s: float = 0.0
    chunk_texts: int = 500
    backend_concurrency: int = 16
    allow_cpu: bool = False
    torch_compile: bool = False
    cache_dir: Path = Path(tempfile.gettempdir()) / "blitz-models"
    cache_disk_bytes: int = 600_000_000
    cache_models: int = 4
    cache_memory_bytes: int = 2_000_000_000
    warm_models: tuple[str, ...] = ()
    refresh_s: float = 60.0
    threads: int = 0
    batch_tokens: int = 0
    batch_texts: int = 0
    max_wait_ms: float = 0.0
    batch_memory_bytes: int = 0
    queue_tokens: int = 1_000_000
    max_queue_s: float = 30.0
    max_connections: int = 2048
    keep_alive_s: float = 130.0
    max_requests: int = 512
    max_pending_bytes: int = 128_000_000
    max_body_bytes: int = 20_000_000
    max_file_bytes: int = 200_000_000
    key_files: int = 2000
    key_file_bytes: int = 100_000_000_000
    key_batches: int = 20
    file_expiry_days: float = 30.0
    max_job_bytes: int = 10_000_000_000
    max_job_rows: int = 10_000_000
    max_inputs: int = 2048
    max_request_tokens: int = 300_000
    allow_token_ids: bool = False
    request_timeout_s: float = 220.0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise Misconfigured(f"{PREFIX}{name.upper()} must be one of: {', '.join(choices)}")
        for key_hash in self.api_key_hashes:
            if not _SHA256.fullmatch(key_hash):
                raise Misconfigured(
                    "BLITZ_API_KEY_HASHES must be sha256 hashes, 64 hex digits each, commas between; "
                    f"{command_of('functions.keys')} makes a key and its hash"
                )
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise Misconfigured(
                    f"BLITZ_CORS_ORIGINS has {origin!r}: https://HOST or https://HOST:PORT is right, as "
                    "a browser sends it, without a path or a slash at the end; or * for all"
                )
        _check_aliases(self.model_aliases)
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise Misconfigured(f"{PREFIX}{name.upper()} must be 0 or more")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise Misconfigured(f"{PREFIX}{name.upper()} must be more than 0")

    @property
    def names_to_warm(self) -> tuple[str, ...]:
        """warm_models, each model once by its own name."""
        aliases = aliases_of(self.model_aliases)
        return tuple(dict.fromkeys(aliases.get(name, name) for name in self.warm_models))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read a mapping such as os.environ. Raises Misconfigured naming the variable."""
        types = {variable_of(field.name): field for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, raw in environ.items():
            if not key.startswith(PREFIX) and key not in _AZURES:
                continue
            if key not in types:
                close = difflib.get_close_matches(key, types, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise Misconfigured(f"{key} is not a setting{hint}")
            values[types[key].name] = _cast(key, raw, str(types[key].type))
        return cls(**values)


def aliases_of(items: tuple[str, ...]) -> dict[str, str]:
    """model_aliases as what models are called beside their names -> their names."""
    return dict(item.split("=") for item in items)


def can_be_asked_for(name: str) -> bool:
    """Whether it could be a model's name, or an alias in some service's settings."""
    return is_name(name) or _ALIAS.fullmatch(name) is not None


def log_format_of(environ: Mapping[str, str]) -> str:
    """BLITZ_LOG_FORMAT alone: in which form to say what is wrong with the others."""
    log_format = environ.get("BLITZ_LOG_FORMAT", "")
    return log_format if log_format in CHOICES["log_format"] else "text"


_AZURES = ("APPLICATIONINSIGHTS_CONNECTION_STRING", "APPLICATIONINSIGHTS_AUTHENTICATION_STRING")
CHOICES = {
    "role": ("router", "cpu", "gpu"),
    "log_format": ("text", "json"),
    "routing": ("fixed", "adaptive"),
}
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_PART = "[A-Za-z0-9](?:[A-Za-z0-9._:-]*[A-Za-z0-9])?"
_ALIAS = re.compile(f"(?=.{{1,128}}$){_PART}(?:/{_PART})*")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_NOT_NEGATIVE = (
    "threads",
    "max_wait_ms",
    "batch_tokens",
    "batch_texts",
    "gpu_wake_s",
    "gpu_ahead_s",
    "file_expiry_days",
    "batch_memory_bytes",
)
_POSITIVE = (
    "gpu_min_texts",
    "gpu_idle_s",
    "chunk_texts",
    "backend_concurrency",
    "cache_disk_bytes",
    "cache_models",
    "cache_memory_bytes",
    "refresh_s",
    "queue_tokens",
    "max_queue_s",
    "max_connections",
    "keep_alive_s",
    "max_requests",
    "max_pending_bytes",
    "max_body_bytes",
    "max_file_bytes",
    "key_files",
    "key_file_bytes",
    "key_batches",
    "max_job_bytes",
    "max_job_rows",
    "max_inputs",
    "max_request_tokens",
    "request_timeout_s",
)

_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def _check_aliases(items: tuple[str, ...]) -> None:
    """Raises Misconfigured, naming the one that is wrong."""
    seen: set[str] = set()
    for item in items:
        alias, _, name = item.partition("=")
        if not _ALIAS.fullmatch(alias) or not is_name(name):
            raise Misconfigured(
                f"BLITZ_MODEL_ALIASES has {item!r}: ALIAS=NAME is right, commas between; an alias is "
                "1 to 128 letters, digits, '.', '_', '-', ':' and '/', a name is a model's in the store"
            )
        if alias in seen:
            raise Misconfigured(f"BLITZ_MODEL_ALIASES says twice what {alias} is")
        seen.add(alias)
    for item in items:
        alias, _, name = item.partition("=")
        if name in seen:
            raise Misconfigured(
                f"BLITZ_MODEL_ALIASES has {item!r}, but {name} is an alias itself: name a model"
            )


def variable_of(field: str) -> str:
    """The environment variable that sets a field: BLITZ_ and its name, or Azure's own name."""
    name = field.upper()
    return name if name in _AZURES else PREFIX + name


def _cast(key: str, raw: str, type_name: str) -> Any:
    try:
        match type_name:
            case "int":
                return int(raw)
            case "float":
                return _finite(raw)
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


def _finite(raw: str) -> float:
    """NaN would pass every check of a limit, and then limit nothing."""
    value = float(raw)
    if not math.isfinite(value):
        raise ValueError
    return value
