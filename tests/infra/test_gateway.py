"""API Management's policies, run by an interpreter of the elements and of the C# that they use."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import msgspec
import pytest

from shared.context import preference
from shared.contracts import RerankRequest
from shared.dialects.body import read_present_fields
from shared.dialects.operations import PATHS, choose, error_format_at, operations_at
from shared.errors import BackendFailed, BlitzError, DeadlineExceeded, NotFound, Overloaded, Unauthorized
from shared.routing.policy import BackendView, Work, fixed
from shared.settings import Settings
from tests.infra.bicep import INFRA, of_type
from tests.infra.csharp import evaluate
from tests.infra.gateway import Exchange, run_section

pytest.importorskip("tree_sitter_c_sharp")

GPU_TEXTS = 10
ELEMENTS: dict[str, tuple[set[str], set[str]]] = {
    "base": (set(), set()),
    "set-header": ({"name", "exists-action"}, set()),
    "set-query-parameter": ({"name", "exists-action"}, set()),
    "set-variable": ({"name", "value"}, set()),
    "set-status": ({"code", "reason"}, set()),
    "set-body": (set(), set()),
    "value": (set(), set()),
    "choose": (set(), set()),
    "when": ({"condition"}, set()),
    "authentication-managed-identity": ({"resource"}, {"client-id"}),
    "forward-request": (set(), {"timeout"}),
    "rate-limit-by-key": (
        {"calls", "renewal-period", "counter-key"},
        {"increment-condition", "increment-count", "retry-after-variable-name"},
    ),
}
"""Of Microsoft's reference: required and optional attributes, as far as they are used here."""


@cache
def _policy(name: str = "apim-policy.xml", gpu_texts: int = GPU_TEXTS, backend: str = "") -> Element:
    text = (INFRA / name).read_text("utf-8").replace("{gpuTexts}", str(gpu_texts))
    return ElementTree.fromstring(text.replace("{backend}", backend))


def _section(name: str, policy: Element | None = None) -> Element:
    found = (_policy() if policy is None else policy).find(name)
    assert found is not None
    return found


def _posted(path: str, body: Any, **headers: str) -> Exchange:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Length": str(len(data)), "Content-Type": "application/json"}
    return Exchange(path, body=data, headers={**given, **headers})


@pytest.mark.parametrize("name", ["apim-policy.xml", "apim-product-policy.xml"])
def test_a_policy_holds_what_the_reference_knows(name: str) -> None:
    """Sections in order, known elements, and their attributes: a wrong one fails at deployment alone."""
    policy = ElementTree.parse(INFRA / name).getroot()
    assert policy.tag == "policies"
    assert [section.tag for section in policy] == ["inbound", "backend", "outbound", "on-error"]
    for section in policy:
        for element in section.iter():
            if element is section:
                continue
            required, optional = ELEMENTS[element.tag]
            assert required <= set(element.attrib) <= required | optional, element.tag


TEXTS = [f"text {number}" for number in range(GPU_TEXTS)]
BODIES: list[tuple[str, Any]] = [
    ("/v1/embeddings", {"input": TEXTS}),
    ("/v1/embeddings", {"input": TEXTS[1:]}),
    ("/v1/embeddings", {"input": "one text"}),
    ("/v1/embeddings", {"input": list(range(GPU_TEXTS))}),
    ("/v1/embeddings", {"input": [[number] for number in range(GPU_TEXTS)]}),
    ("/embed", {"inputs": TEXTS}),
    ("/embed", {"inputs": "one text"}),
    ("/", {"inputs": TEXTS[1:]}),
    ("/", {"query": "q", "texts": ["one"]}),
    ("/v2/embed", {"texts": TEXTS, "input_type": "search_query"}),
    ("/v1/embed", {"texts": TEXTS[1:]}),
    ("/api/embed", {"input": TEXTS}),
    ("/azure-search", {"values": [{"recordId": text, "data": {"text": text}} for text in TEXTS]}),
    ("/azure-search", {"values": [{"recordId": "1", "data": {"text": "one"}}]}),
    ("/rerank", {"query": "q", "texts": ["one"]}),
    ("/v1/rerank", {"query": "q", "documents": ["one"]}),
    ("/v2/rerank", {"query": "q", "documents": TEXTS}),
    ("/infinity/rerank", {"query": "q", "documents": ["one"]}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_the_gateway_routes_as_the_router_s_fixed_policy(path: str, body: Any) -> None:
    """The same texts, as the dialects read them, and the same decision."""
    present = read_present_fields(json.dumps(body).encode(), "application/json")
    operation = choose(operations_at(path), present)
    read = msgspec.convert({"model": "m", **body}, operation.body)
    asked = operation.request_from(read, model="m", settings=Settings(allow_token_ids=True))
    is_rerank = isinstance(asked, RerankRequest)
    work = Work(len(asked.texts), 1, is_rerank, {"cpu": 1, "gpu": 1})
    up = BackendView(available=True, warm=True, waking_s=None, queued_tokens=0)
    decided = fixed(GPU_TEXTS)(work, {"cpu": up, "gpu": up}).devices[0]
    exchange = _posted(path, body)
    run_section(_section("inbound"), exchange)
    assert exchange.sent[preference.HEADER] == decided


UNKNOWN = [
    ("it is compressed", _posted("/embed", {"inputs": TEXTS}, **{"Content-Encoding": "gzip"})),
    ("its length is not stated", replace(_posted("/embed", {"inputs": TEXTS}), headers={})),
    ("it is large", _posted("/embed", {"inputs": TEXTS}, **{"Content-Length": "1000000"})),
    ("it is not JSON", _posted("/embed", b"\x81\xa6inputs")),
    ("it is no object", _posted("/embed", ["a"])),
    ("its texts are of no known shape", _posted("/similarity", {"inputs": {"sentences": TEXTS}})),
    ("it has none", _posted("/v1/batches", {"input_file_id": "file-1"})),
    ("a GET has no body", Exchange("/v1/models", method="GET")),
]


@pytest.mark.parametrize("exchange", [each for _, each in UNKNOWN], ids=[why for why, _ in UNKNOWN])
def test_where_the_body_does_not_tell_the_router_decides(exchange: Exchange) -> None:
    """No header goes on, and nothing fails."""
    run_section(_section("inbound"), replace(exchange))
    fresh = replace(exchange)
    run_section(_section("inbound"), fresh)
    assert preference.HEADER not in fresh.sent


def test_a_key_s_product_comes_before_the_body() -> None:
    """And neither the caller's header nor a routing that is off does anything."""
    product = _section("inbound", _policy("apim-product-policy.xml", backend="cpu"))
    exchange = _posted("/embed", {"inputs": TEXTS}, **{preference.HEADER: "gpu"})
    run_section(_section("inbound"), exchange, product)
    assert exchange.sent[preference.HEADER] == "cpu"
    exchange = _posted("/embed", {"inputs": TEXTS}, **{preference.HEADER: "gpu"})
    run_section(_section("inbound", _policy(gpu_texts=0)), exchange)
    assert preference.HEADER not in exchange.sent


@pytest.mark.parametrize(
    ("status", "headers", "counted"),
    [(200, {"x-compute-tokens": "123"}, 123), (200, {}, 0), (429, {"x-compute-tokens": "1"}, None)],
)
def test_tokens_are_counted_as_the_service_counted_them(
    status: int, headers: dict[str, str], counted: int | None
) -> None:
    """Of what was answered; a key has a counter of its own, which is not that of its requests."""
    context = Exchange("/embed", status=status, answered=headers).context
    calls, tokens = _section("inbound").findall("rate-limit-by-key")
    assert evaluate(calls.attrib["counter-key"], context) != evaluate(
        tokens.attrib["counter-key"], context
    )
    is_counted = evaluate(tokens.attrib["increment-condition"], context)
    assert is_counted is (counted is not None)
    if is_counted:
        assert evaluate(tokens.attrib["increment-count"], context) == counted


REASONS: list[tuple[str, BlitzError]] = [
    ("RateLimitExceeded", Overloaded("m")),
    ("SubscriptionKeyNotFound", Unauthorized("m")),
    ("SubscriptionKeyInvalid", Unauthorized("m")),
    ("OperationNotFound", NotFound("m")),
    ("Timeout", DeadlineExceeded("m")),
    ("OperationTimeout", DeadlineExceeded("m")),
    ("BackendConnectionFailure", BackendFailed("m")),
    ("ExpressionValueEvaluationFailure", BlitzError("m")),
]


@pytest.mark.parametrize(("reason", "error"), REASONS, ids=[reason for reason, _ in REASONS])
def test_an_error_of_the_gateway_looks_like_one_of_the_router(reason: str, error: BlitzError) -> None:
    """On every path: status, the shape of its dialect, and what a client reads beside the message."""
    for path in [*PATHS, "/v1/files", "/nowhere"]:
        exchange = Exchange(path.replace("{model}", "m"), error_reason=reason)
        exchange.variables["retryAfter"] = 7
        run_section(_section("on-error"), exchange)
        status, body = error_format_at(path)(error)
        assert exchange.status == status, path
        assert exchange.answer["content-type"] == "application/json"
        found = json.loads(exchange.text)
        wanted = json.loads(body.replace(b'"m"', b'"MESSAGE"'))
        assert _with_message(found, _message(found)) == wanted, path
        waits = status in (429, 503)
        assert ("retry-after" in exchange.answer) is waits
        assert ("retry-after-ms" in exchange.answer) is waits
        if status == 429:
            assert exchange.answer["retry-after"] == "7"
            assert exchange.answer["retry-after-ms"] == "7000"


def _message(shape: Any) -> str:
    """The one text with spaces in it."""
    (message,) = {text for text in _strings(shape) if " " in text}
    return message


def _strings(shape: Any) -> list[str]:
    if isinstance(shape, dict):
        return [text for value in shape.values() for text in _strings(value)]
    return [shape] if isinstance(shape, str) else []


def _with_message(shape: Any, message: str) -> Any:
    return json.loads(json.dumps(shape).replace(json.dumps(message), '"MESSAGE"'))


def test_the_numbers_arrive_in_the_policy() -> None:
    """Only the gateway's client id is left for Azure to fill in."""
    (policy,) = of_type("apim", "Microsoft.ApiManagement/service/apis/policies")
    assert policy["properties"]["format"] == "xml"
    found = re.fullmatch(
        r"\[replace\('(.*)', '\{clientId\}', reference\(.*\)\.clientId\)\]",
        policy["properties"]["value"],
        re.S,
    )
    assert found is not None
    text = found[1].replace("''", "'")
    assert set(re.findall(r"\{(\w+)\}", text)) == {"clientId"}
    inbound = ElementTree.fromstring(text).find("inbound")
    assert inbound is not None
    limits = [each.attrib["calls"] for each in inbound.findall("rate-limit-by-key")]
    assert limits == ["600", "1000000"]
    (backend,) = inbound.findall("set-variable")
    assert f"Count >= {GPU_TEXTS} " in backend.attrib["value"]
