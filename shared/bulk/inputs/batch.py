"""Parses OpenAI Batch lines {"custom_id", "method", "url", "body"} for embeddings into rows.

It does not know files, models' limits or how results are written. Shapes and error codes:
https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from shared.bulk.inputs.jsonl import read_line, read_object, read_string, write_object
from shared.bulk.inputs.lines import BadRecord, RawRecord, check_id, check_text, parse_records
from shared.bulk.inputs.seen import Seen
from shared.bulk.rows import BadRow, Row
from shared.dialects.body import read_inputs
from shared.dialects.decode_errors import type_error
from shared.dialects.fields import check_fields
from shared.dialects.openai import EmbeddingsBody
from shared.dialects.operations import KNOWN
from shared.errors import InvalidInput

URLS = ("/v1/embeddings", "/embeddings")
"""OpenAI's and Azure OpenAI's URL. A batch and each of its lines may use either."""

_MAX_FIELDS_BYTES = 10_000
"""Of a body without its input. Every row of the request repeats these fields."""
_KEPT = frozenset(("model", "dimensions", "encoding_format", "prompt_name", "truncate"))
_BODY = msgspec.json.Decoder(EmbeddingsBody)
_ABSENT = msgspec.Raw(b"null")


def looks_like_batch(line: bytes) -> bool | None:
    """Whether the line has custom_id and body; None if it is not a complete JSON object."""
    try:
        return read_object(line).keys() >= {"custom_id", "body"}
    except BadRecord:
        return None


def read_batch(
    records: Iterable[RawRecord | BadRow],
    *,
    model: str | None,
    aliases: Mapping[str, str],
    max_inputs: int,
    max_dimensions: int | None,
) -> Iterator[Row | BadRow]:
    """One Row per text, with those fields of the body that the answer depends on.

    model: the model of every line; None: the first model that a line names. aliases: alias -> model.
    max_inputs: texts per line. max_dimensions: None: no limit. An invalid line is one BadRow.
    """
    seen = Seen()

    def parse(row: int, record: RawRecord) -> list[Row]:
        nonlocal model
        values = read_line(record)
        custom_id = _custom_id(values)
        if not seen.add(custom_id):
            message = "the custom_id was used by an earlier line"
            raise BadRecord("duplicate_custom_id", message, id=custom_id)
        _check_target(values, custom_id)
        raw = values.get("body", _ABSENT)
        body = _read_body(raw, custom_id)
        asked = body.model and aliases.get(body.model, body.model)
        model = model if model is not None else asked
        if body.model is not None and asked != model:
            message = f"body.model must be {model}: all lines of a batch use one model"
            raise BadRecord("model_mismatch", message, id=custom_id)
        if max_dimensions is not None and (body.dimensions or 1) > max_dimensions:
            message = f"body.dimensions must be at most {max_dimensions}"
            raise BadRecord("invalid_input", message, id=custom_id)
        texts = _texts(body, max_inputs, custom_id)
        others = read_object(bytes(raw))
        _check_fields(others, custom_id)
        fields = write_object({name: value for name, value in others.items() if name in _KEPT})
        if len(fields) > _MAX_FIELDS_BYTES:
            message = f"the fields of body beside input have more than {_MAX_FIELDS_BYTES} bytes"
            raise BadRecord("invalid_input", message, id=custom_id)
        return [
            Row(row, record.line, custom_id, text, fields, text_index=index, text_count=len(texts))
            for index, text in enumerate(texts)
        ]

    return parse_records(records, parse)


def _custom_id(values: dict[str, msgspec.Raw]) -> str:
    custom_id = read_string(values.get("custom_id", _ABSENT))
    if not custom_id:
        raise BadRecord("missing_required_parameter", "custom_id must be a string, not empty")
    return check_id(custom_id, "custom_id")


def _check_target(values: dict[str, msgspec.Raw], custom_id: str) -> None:
    if read_string(values.get("method", _ABSENT)) != "POST":
        raise BadRecord("invalid_method", "method must be POST", id=custom_id)
    if read_string(values.get("url", _ABSENT)) not in URLS:
        raise BadRecord("url_mismatch", f"url must be {' or '.join(URLS)}", id=custom_id)


def _read_body(raw: msgspec.Raw, custom_id: str) -> EmbeddingsBody:
    try:
        return _BODY.decode(raw)
    except msgspec.ValidationError as error:
        refused = type_error(error, EmbeddingsBody)
        message = f"body.{refused.message}" if refused.field else refused.message
        raise BadRecord("invalid_input", message, id=custom_id) from None


def _check_fields(fields: dict[str, msgspec.Raw], custom_id: str) -> None:
    """Refuse fields that would change the answer but are not supported, as the HTTP route does."""
    try:
        check_fields(fields, {"input", *_KEPT}, KNOWN)
    except InvalidInput as error:
        message = f"body.{error.field}: {error.message}"
        raise BadRecord(error.code, message, id=custom_id) from None


def _texts(body: EmbeddingsBody, max_inputs: int, custom_id: str) -> list[str]:
    try:
        inputs = read_inputs(body.inputs, field="body.input", max_inputs=max_inputs)
    except InvalidInput as error:
        raise BadRecord(error.code, error.message, id=custom_id) from None
    texts: list[str] = []
    for item in inputs:
        if not isinstance(item, str):
            message = "body.input must be a text or a list of texts: a batch takes no token ids"
            raise BadRecord("invalid_input", message, id=custom_id)
        texts.append(check_text(item, "body.input", id=custom_id))
    return texts
