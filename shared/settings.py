"""The only reader of the environment. Every setting is a field here, set by `BLITZ_` + its name.

Unknown BLITZ_ names are refused, so that a misspelt setting does not silently stay at its default.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shared.command_line import command_of
from shared.errors import Misconfigured
from shared.names import is_name

PREFIX = "BLITZ_"


class Settings(msgspec.Struct, frozen=True):
    """What operators can configure. Each field is BLITZ_<NAME>; units are in the names.

    `python -m docs.settings` generates docs/settings.md from the following.

    role: which app this process is: router, cpu or gpu.
    applicationinsights_connection_string: where telemetry goes; empty: nowhere. A variable of Azure's,
        which the Functions host reads too.
    applicationinsights_authentication_string: how telemetry is authenticated:
        Authorization=AAD;ClientId=GUID for that managed identity; empty: by the instrumentation key
        alone. A variable of Azure's, too.
    log_format: "json" writes one object per line. In Functions the host writes the logs.
    model_store: file://FOLDER, or https://ACCOUNT.blob.core.windows.net/CONTAINER.
    storage: storage of bulk jobs: file://FOLDER; https://ACCOUNT.blob.core.windows.net; azurite (its
        published account, ports 10000 and 10001 of this machine); empty: the account of
        storage_connection_string, or file://.blitz/bulk without one.
    storage_connection_string: for Azurite or key access; otherwise DefaultAzureCredential.
    default_model: the model of requests and bulk inputs that name none; empty: the only one there is.
    cpu_backend_url: URL of the CPU backend; empty: it runs in this process.
    gpu_backend_url: URL of the GPU backend; empty: there is none.
    backend_audience: Entra audience (api://...) of the backends, for which the router gets tokens with
        its identity; empty: no tokens.
    backend_secret: secret shared by router and backends without Entra; empty: none.
    api_key_hashes: comma-separated sha256 (hex) of keys that callers may use, which have no name and do
        not expire; empty, without api_keys: no key needed.
    api_keys: the document of callers' keys, with names and expiry: file://FOLDER/keys.json, or a blob's
        URL; read again every refresh_s; empty: none. docs/serving.md says how it is written.
    page: serve browsers a page at /, to look at the models, try them and watch the service. It works
        with the key that its visitor types, where keys are on.
    cors_origins: comma-separated origins (https://app.example.com) of web pages that may use the router
        from a browser; *: all; empty: none. A page that contains a key reveals it to its visitors.
    routing: "fixed" (by the number of texts) or "adaptive" (by the expected duration).
    gpu_min_texts: with routing "fixed", requests of at least this many texts go to the GPU.
    gpu_idle_s: the router regards the GPU app as scaled to zero this long after its last response.
    gpu_wake_s: expected time for a GPU app to scale from zero.
    gpu_ahead_s: wake the GPU ahead of forecast demand if sparing one request the cold start costs at
        most this many GPU seconds; 0: never. Needs storage; only in Azure.
    part_texts: larger requests are split into parts of this many texts.
    backend_concurrency: concurrent HTTP calls of the router to one backend; others wait.
    allow_cpu: let the GPU app run on the CPU in FP32 if there is no CUDA: for tests and local runs.
    torch_compile: compile models in the GPU app; docs/decisions/013-no-torch-compile.md says when.
    cache_dir: folder for local copies of a remote store's models. Mode 700, owned by the user that runs
        the service.
    cache_disk_bytes: limit of those copies (Flex Consumption has 0.8 GB of temporary storage).
    cache_models: maximum number of loaded models.
    cache_memory_bytes: maximum bytes of all loaded models together.
    model_aliases: comma-separated ALIAS=NAME: ALIAS (BAAI/bge-m3, text-embedding-3-small) stands for the
        model NAME in requests, bulk folders, metadata, sidecars and batch lines, default_model and
        warm_models. Takes precedence over a model of that name. Set it equally for the router and the
        CPU app, which reads bulk inputs.
    warm_models: comma-separated names of models loaded at startup.
    refresh_s: interval between checks of a served model's pointer for a new revision, and between reads
        of the keys document.
    threads: engine threads; 0: the container's CPU quota.
    batch_tokens: padded tokens in a micro-batch; 0: the role's default (CPU 256, over OpenVINO 512;
        GPU by its free memory).
    batch_texts: texts in a micro-batch; 0: the role's default (CPU 128; GPU 1,024).
    max_wait_ms: how long a free engine waits for a batch to fill; 0: not at all.
    batch_memory_bytes: memory for all concurrent micro-batches; 0: the container's memory minus
        cache_memory_bytes and 0.6 GB. On a CPU it limits the length of a text, because attention needs
        memory quadratic in the length.
    queue_tokens: tokens that may wait in this process; beyond it requests get 429.
    max_queue_s: longest expected wait of a new request; beyond it requests get 429.
        tests/benchmarks/overload.py says how to choose it.
    max_connections: open connections of functions.local. At the limit the one that has been idle for
        longest is closed; if none is idle, the next one waits. Lower if the process may not open so many
        files.
    keep_alive_s: how long an idle connection stays open. It should exceed the proxies' own timeout (60
        to 120 s), so that the service does not close a connection that a proxy is about to use.
    max_requests: concurrent requests of this process; more get 429 before their body is read.
    max_pending_bytes: bodies and responses of all concurrent requests, beyond the first 64 KiB of each;
        more get 429.
    max_body_bytes: size of a request's body; larger ones get 413.
    max_file_bytes: size of a file for /v1/files.
    link_downloads: answer downloads of larger files with a redirect to the storage account, by a link
        that is valid for 15 minutes. For callers that reach the account, and an identity that is Storage
        Blob Delegator on it; without that right, or an identity, the service streams them itself.
    key_files: files per key, outputs included, and batches per key, ended ones included. Without keys:
        in total.
    key_file_bytes: total bytes of those files.
    key_batches: running batches per key. Without keys: in total.
    file_expiry_days: files of /v1/files and outputs of batches are deleted after this many days, unless
        the caller states another time; 0: never.
    max_job_bytes: uncompressed bytes of a bulk job's input; beyond it the job fails.
    max_job_rows: rows of a bulk job's input; beyond it the job fails.
    max_inputs: texts in a request; more get 400 (422 in the TEI dialect).
    max_request_tokens: tokens in a request; more get 413.
    allow_token_ids: accept OpenAI inputs of token ids, as ids of the model's own vocabulary.
    request_timeout_s: a longer request gets 504 (Functions cuts HTTP at 230 s).
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
    page: bool = True
    cors_origins: tuple[str, ...] = ()
    routing: str = "fixed"
    gpu_min_texts: int = 10
    gpu_idle_s: float = 300.0
    gpu_wake_s: float = 25.0
    gpu_ahead_s: float = 0.0
    part_texts: int = 500
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
    link_downloads: bool = False
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
                    "BLITZ_API_KEY_HASHES must be comma-separated sha256 hashes of 64 hex digits; "
                    f"{command_of('functions.keys')} prints a key and its hash"
                )
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise Misconfigured(
                    f"BLITZ_CORS_ORIGINS has {origin!r}: use https://HOST or https://HOST:PORT, without "
                    "a path or trailing slash, as a browser sends it; or * for all"
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
        """warm_models with aliases resolved, without duplicates."""
        aliases = aliases_of(self.model_aliases)
        return tuple(dict.fromkeys(aliases.get(name, name) for name in self.warm_models))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read a mapping such as os.environ. Raises Misconfigured naming the variable."""
        names = {variable_of(name): name for name in cls.__struct_fields__}
        values: dict[str, Any] = {}
        for key, raw in environ.items():
            if not key.startswith(PREFIX) and key not in _AZURE_VARIABLES:
                continue
            if key not in names:
                import difflib  # a start that goes well needs none

                close = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise Misconfigured(f"{key} is not a setting{hint}")
            values[names[key]] = _cast(key, raw, cls.__annotations__[names[key]])
        return cls(**values)


def aliases_of(items: tuple[str, ...]) -> dict[str, str]:
    """model_aliases as a mapping: alias -> name."""
    return dict(item.split("=") for item in items)


def can_be_asked_for(name: str) -> bool:
    """Whether `name` is a valid model name or alias."""
    return is_name(name) or _ALIAS.fullmatch(name) is not None


def log_format_of(environ: Mapping[str, str]) -> str:
    """BLITZ_LOG_FORMAT alone, for logging errors in the other settings."""
    log_format = environ.get("BLITZ_LOG_FORMAT", "")
    return log_format if log_format in CHOICES["log_format"] else "text"


_AZURE_VARIABLES = ("APPLICATIONINSIGHTS_CONNECTION_STRING", "APPLICATIONINSIGHTS_AUTHENTICATION_STRING")
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
    "part_texts",
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
    """Raises Misconfigured naming the invalid alias."""
    seen: set[str] = set()
    for item in items:
        alias, _, name = item.partition("=")
        if not _ALIAS.fullmatch(alias) or not is_name(name):
            raise Misconfigured(
                f"BLITZ_MODEL_ALIASES has {item!r}: use comma-separated ALIAS=NAME; an alias has 1 to "
                "128 letters, digits, '.', '_', '-', ':' and '/'; a name is a model's in the store"
            )
        if alias in seen:
            raise Misconfigured(f"BLITZ_MODEL_ALIASES defines {alias} twice")
        seen.add(alias)
    for item in items:
        alias, _, name = item.partition("=")
        if name in seen:
            raise Misconfigured(
                f"BLITZ_MODEL_ALIASES has {item!r}, but {name} is itself an alias: name a model"
            )


def variable_of(field: str) -> str:
    """The environment variable of a field: BLITZ_ + its name, or a name of Azure's."""
    name = field.upper()
    return name if name in _AZURE_VARIABLES else PREFIX + name


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
    """A finite float. NaN would pass the checks of limits and then limit nothing."""
    value = float(raw)
    if not math.isfinite(value):
        raise ValueError
    return value
