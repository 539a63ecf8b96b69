"""What can be said of a bulk input, and where: by its folder, its metadata or a sidecar.

Does not know jobs or storage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from shared.bulk.inputs.detect import Kind
from shared.bulk.outputs.writing import Dtype
from shared.dialects.decode_errors import type_error
from shared.errors import InvalidInput
from shared.names import is_name
from shared.storage.blobs import BlobStat

Container: TypeAlias = Literal["source", "out"]

SIDECAR = ".job.json"
PREFIX = "blitz_"
"""Of the metadata that are options: blitz_model, blitz_dimensions, ..."""
EMPTY = '""'
"""How metadata, whose values cannot be empty, say an empty one: prompt_name's is no prompt."""

OWN_FOLDERS = frozenset(("active", "batches", "events", "files", "jobs", "warmup"))
"""Of `out`, where an input's output has the input's key."""

_UNKNOWN = re.compile(r"unknown field `(?P<name>\w{1,100})`$")


class JobOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What can be said of an input: by its path, its metadata or NAME.job.json beside it.

    prompt_name: of the model's prompts; None: its default. truncate: cut texts longer than the model
    reads; if False, they are failed rows. A request of OpenAI Batch may say otherwise of its texts.
    backend: "auto" leaves it to the routing policy. kind: of file, where it cannot be told.
    """

    model: str = ""
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    dtype: Dtype = "float32"
    format: Literal["parquet", "jsonl", "npy"] = "parquet"
    backend: Literal["auto", "cpu", "gpu"] = "auto"
    text_column: str = "text"
    id_column: str | None = None
    kind: Kind | None = None
    # Defaults are left out of a job's id: a new option leaves the ids of old jobs as they are.
    prompt_name: str | None = None
    truncate: bool = True


def options_of(
    container: Container, stat: BlobStat, sidecar: bytes | None, aliases: Mapping[str, str]
) -> JobOptions:
    """The sidecar's, over the metadata's, over the path's (MODEL/... in bulk-in), over the defaults.

    aliases: what else models are called -> their names, of which the options have one; an alias with
    slashes is as many folders. Without a model, if none of them names one.

    Raises InvalidInput naming the option.
    """
    given: dict[str, Any] = {}
    folder, slash, _ = stat.key.partition("/")
    if container == "source" and slash and folder in OWN_FOLDERS:
        raise InvalidInput(f"the folder {folder} is the service's own: put the file into another one")
    if container == "source" and (named := _model_of(stat.key, aliases)):
        given["model"] = named
    given |= {
        name.removeprefix(PREFIX): "" if value == EMPTY else value
        for name, value in stat.metadata.items()
        if name.startswith(PREFIX)
    }
    try:
        if sidecar is not None:
            given |= msgspec.json.decode(sidecar, type=dict[str, Any])
    except msgspec.ValidationError:
        raise InvalidInput(f"{stat.key}{SIDECAR} is JSON, but no object with the options") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidInput(f"{stat.key}{SIDECAR} is not a JSON object") from None
    try:
        # Metadata are strings; strict=False reads "64" as a number.
        options = msgspec.convert(given, JobOptions, strict=False)
    except msgspec.ValidationError as error:
        raise _bad_option(error) from None
    return msgspec.structs.replace(options, model=aliases.get(options.model, options.model))


def _model_of(key: str, aliases: Mapping[str, str]) -> str:
    """What the folders of a key name: the longest alias that they begin with, else the first; or ""."""
    folders = key.split("/")[:-1]
    for count in range(len(folders), 0, -1):
        if (name := "/".join(folders[:count])) in aliases:
            return name
    return folders[0] if folders and is_name(folders[0]) else ""


def _bad_option(error: msgspec.ValidationError) -> InvalidInput:
    """Which one, and what would be right."""
    unknown = _UNKNOWN.search(str(error))
    if unknown is not None:
        known = ", ".join(field.name for field in msgspec.structs.fields(JobOptions))
        name = unknown["name"]
        return InvalidInput(f"there is no option {name}; there are: {known}", field=name)
    refused = type_error(error, JobOptions)
    return InvalidInput(f"the option {refused.message}", field=refused.field)


def no_model(container: Container, key: str, kind: Kind, known: Sequence[str]) -> InvalidInput:
    """What to tell of an input that names no model. known: those that it could."""
    if kind == "batch":
        how = "set body.model in the requests"
    else:
        how = "put the file into a folder of the model's name"
    if container == "source":
        how += f", or set the metadata {PREFIX}model, or write {key}{SIDECAR} before the file"
    names = ", ".join(known) or "none"
    return InvalidInput(f"no model is named: {how}; there are: {names}", field="model")
