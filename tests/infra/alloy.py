"""Grafana Alloy's syntax as far as infra/loki uses it, and what the stages of loki.process do to a line.

Written from Alloy's reference, because PyPI and npm have neither Alloy nor Loki: it shows that the file
says what we mean, not that Alloy takes it. What it does not know it refuses. Knows no file of ours.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

_TOKEN = re.compile(
    r'\s*(?://[^\n]*\s*)*(?:("(?:[^"\\]|\\.)*")|([A-Za-z_][\w.]*)|(\d+)|([{}\[\](),=])|$)'
)


@dataclass
class Block:
    """name: with its dots; label: "" if it has none. Attributes by name, inner blocks in their order."""

    name: str
    label: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """To an export of another component, or a call; `argument` of a call."""

    name: str
    argument: str | None = None


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise ValueError(f"not Alloy's: {text[at : at + 40]!r}")
            at = found.end()
            if token := next(filter(None, found.groups()), ""):
                self._tokens.append(token)

    def body(self, block: Block, end: str) -> Block:
        while self._next() != end:
            name = self._take()
            if self._next() == "=":
                self._take("=")
                if name in block.attributes:
                    raise ValueError(f"{name} is there twice")
                block.attributes[name] = self._value()
                continue
            label = json.loads(self._take()) if self._next().startswith('"') else ""
            self._take("{")
            block.blocks.append(self.body(Block(name, label), "}"))
            self._take("}")
        return block

    def _value(self) -> Any:
        token = self._take()
        if token == "[":
            return self._items("]", self._value)
        if token == "{":
            return dict(self._items("}", self._pair))
        if token.startswith('"'):
            return json.loads(token)
        if token in ("true", "false"):
            return token == "true"
        if token.isdigit():
            return int(token)
        if self._next() != "(":
            return Reference(token)
        self._take("(")
        (argument,) = self._items(")", self._value)
        return Reference(token, argument)

    def _pair(self) -> tuple[str, Any]:
        name = self._take()
        self._take("=")
        return name.strip('"'), self._value()

    def _items(self, end: str, read: Any) -> list[Any]:
        items = []
        while self._next() != end:
            items.append(read())
            if self._next() != end:
                self._take(",")
        self._take(end)
        return items

    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _take(self, expected: str = "") -> str:
        token = self._tokens.pop(0) if self._tokens else "the end"
        if expected and token != expected:
            raise ValueError(f"{expected} should stand where {token} stands")
        return token


def read(text: str) -> list[Block]:
    """The components of a file. Raises ValueError."""
    return _Reader(text).body(Block(""), "").blocks


@dataclass
class Entry:
    """A line on its way. at_ns: since 1970."""

    line: str
    labels: dict[str, str]
    at_ns: int = 0
    metadata: dict[str, str] = field(default_factory=dict)


def process(stages: list[Block], entry: Entry) -> Entry:
    """What loki.process does to the entry. Raises KeyError for a stage that nobody has written here."""
    extracted: dict[str, Any] = {}
    for stage in stages:
        _STAGES[stage.name](stage.attributes, entry, extracted)
    return entry


def _json(given: dict[str, Any], entry: Entry, extracted: dict[str, Any]) -> None:
    try:
        found = json.loads(entry.line)
    except ValueError:
        return
    # Of JMESPath only names: an empty expression is the name itself.
    for name, expression in given["expressions"].items():
        extracted[name] = found.get(expression or name)


def _timestamp(given: dict[str, Any], entry: Entry, extracted: dict[str, Any]) -> None:
    if given["format"] not in ("RFC3339", "RFC3339Nano"):
        raise KeyError(given["format"])
    if text := extracted.get(given["source"]):
        whole = datetime.fromisoformat(text)
        assert whole.tzinfo is not None, "RFC 3339 has a zone"
        entry.at_ns = round(whole.timestamp() * 1_000_000) * 1_000


def _labels(given: dict[str, Any], entry: Entry, extracted: dict[str, Any]) -> None:
    entry.labels |= _of(given, extracted)


def _label_keep(given: dict[str, Any], entry: Entry, _: dict[str, Any]) -> None:
    entry.labels = {name: entry.labels[name] for name in given["values"] if name in entry.labels}


def _structured_metadata(given: dict[str, Any], entry: Entry, extracted: dict[str, Any]) -> None:
    entry.metadata |= _of(given, extracted)


def _of(given: dict[str, Any], extracted: dict[str, Any]) -> dict[str, str]:
    found = {name: extracted.get(source or name) for name, source in given["values"].items()}
    return {name: str(value) for name, value in found.items() if value is not None}


_STAGES = {
    "stage.json": _json,
    "stage.timestamp": _timestamp,
    "stage.labels": _labels,
    "stage.label_keep": _label_keep,
    "stage.structured_metadata": _structured_metadata,
}
