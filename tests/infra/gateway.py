"""Runs a policy document of API Management on one request, without the gateway: set, choose, compute.

Does what the elements' reference says, for the elements that our policies use. Counts no requests and
sends nothing: limits, tokens and forwarding are passed over. Knows no dialect of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from xml.etree.ElementTree import Element

from tests.infra.csharp import Body, Headers, evaluate

SKIPPED = {
    *("rate-limit-by-key", "set-query-parameter", "authentication-managed-identity"),
    "forward-request",
}


@dataclass
class Exchange:
    """A request, and the answer as far as the policies make it. variables: of the gateway's context."""

    path: str
    method: str = "POST"
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    error_reason: str = ""
    answered: Mapping[str, str] = field(default_factory=dict)
    status: int = 0
    text: str = ""

    def __post_init__(self) -> None:
        self.sent = Headers({name.lower(): value for name, value in self.headers.items()})
        self.answer = Headers({name.lower(): value for name, value in self.answered.items()})

    @property
    def context(self) -> Any:
        return SimpleNamespace(
            Request=SimpleNamespace(
                Method=self.method,
                Headers=self.sent,
                OriginalUrl=SimpleNamespace(Path=self.path),
                Body=Body(self.body),
            ),
            Response=SimpleNamespace(Headers=self.answer, StatusCode=self.status),
            Subscription=SimpleNamespace(Id="subscription"),
            LastError=SimpleNamespace(Reason=self.error_reason),
            Variables=self.variables,
        )


def run_section(section: Element, exchange: Exchange, product: Element | None = None) -> None:
    """inbound changes the request's headers, any other section the answer's.

    product: the same section of a product's policy, which runs where `base` stands.
    """
    headers = exchange.sent if section.tag == "inbound" else exchange.answer
    for step in section:
        if step.tag != "base":
            _run(step, exchange, headers)
        elif product is not None:
            run_section(product, exchange)


def _run(step: Element, exchange: Exchange, headers: Headers) -> None:
    match step.tag:
        case "set-header":
            name = step.attrib["name"].lower()
            if step.attrib["exists-action"] == "delete":
                headers.pop(name, None)
            else:
                assert step.attrib["exists-action"] == "override"
                headers[name] = _evaluated(step.findtext("value"), exchange)
        case "set-variable":
            exchange.variables[step.attrib["name"]] = _evaluated(step.attrib["value"], exchange)
        case "set-status":
            exchange.status = _evaluated(step.attrib["code"], exchange)
        case "set-body":
            exchange.text = _evaluated(step.text, exchange)
        case "choose":
            for branch in step:
                if branch.tag == "otherwise" or _evaluated(branch.attrib["condition"], exchange) is True:
                    for each in branch:
                        _run(each, exchange, headers)
                    break
        case tag:
            assert tag in SKIPPED, tag


def _evaluated(value: str | None, exchange: Exchange) -> Any:
    assert value is not None
    return evaluate(value, exchange.context)
