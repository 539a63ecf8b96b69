"""Which prompt a model puts before a request's texts."""

from __future__ import annotations

from typing import cast

import pytest
from msgspec.structs import replace

from shared.contracts import EmbedRequest, InputType, TokenizeRequest
from shared.engines.base import Engine
from shared.errors import InvalidInput
from shared.inference.model import Model
from shared.inference.steps import completed
from shared.inference.tokenization import Tokenizer
from tests.fakes.tokenizer import FakeTokenizer
from tests.tiny import manifest_of


def prefix_of(
    prompts: dict[str, str], default: str | None, request: EmbedRequest | TokenizeRequest
) -> str:
    manifest = manifest_of("m", prompts=prompts, default_prompt=default)
    tokenizer = FakeTokenizer()
    model = Model(manifest, cast(Tokenizer, tokenizer), cast(Engine, None))
    if isinstance(request, TokenizeRequest):
        assert len(completed(model.spell(request, limit=9))) == len(request.inputs)
    else:
        completed(model.tokenize(request))
    return tokenizer.prefix


@pytest.mark.parametrize(
    ("prompts", "default", "input_type", "expected"),
    [
        ({"query": "q: ", "document": "d: "}, None, "query", "q: "),
        ({"query": "q: ", "document": "d: "}, None, "document", "d: "),
        ({"query": "q: ", "passage": "p: "}, None, "document", "p: "),
        ({"query": "q: ", "passage": "p: "}, None, None, ""),
        ({"query": "q: "}, None, "document", ""),
        ({"query": "q: "}, None, "clustering", ""),
        ({"clustering": "c: "}, None, "clustering", "c: "),
        ({"classification": "c: "}, None, "classification", "c: "),
        ({"query": "q: ", "other": "o: "}, "other", "document", "o: "),
        ({"query": "q: ", "other": "o: "}, "other", "query", "q: "),
        ({"query": "q: ", "other": "o: "}, "other", None, "o: "),
        ({}, None, "query", ""),
    ],
)
def test_an_input_type_is_a_prompt_if_the_model_has_one(
    prompts: dict[str, str], default: str | None, input_type: InputType | None, expected: str
) -> None:
    """Else the model's default, which mostly is none: asking is no error."""
    assert prefix_of(prompts, default, EmbedRequest("m", ("a",), input_type=input_type)) == expected


def test_a_prompt_s_name_goes_before_an_input_type() -> None:
    """It says more; a name that the model does not have is an error."""
    prompts = {"query": "q: ", "other": "o: "}
    request = EmbedRequest("m", ("a",), prompt_name="other", input_type="query")
    assert prefix_of(prompts, None, request) == "o: "
    with pytest.raises(InvalidInput) as caught:
        prefix_of({"query": "q: "}, None, request)
    assert caught.value.field == "prompt_name"


@pytest.mark.parametrize("input_type", [None, "query"])
def test_an_empty_prompt_name_switches_the_default_off(input_type: InputType | None) -> None:
    """And what an input type would choose."""
    request = EmbedRequest("m", ("a",), prompt_name="", input_type=input_type)
    assert prefix_of({"query": "q: ", "other": "o: "}, "other", request) == ""


@pytest.mark.parametrize(("name", "prefix"), [(None, "o: "), ("query", "q: "), ("", "")])
def test_tokens_are_told_with_the_prompt(name: str | None, prefix: str) -> None:
    """That of the request, or the model's default."""
    prompts = {"query": "q: ", "other": "o: "}
    request = TokenizeRequest("m", ("a", "b"), special_tokens=False, prompt_name=name)
    assert prefix_of(prompts, "other", request) == prefix
    with pytest.raises(InvalidInput) as caught:
        prefix_of(prompts, None, replace(request, prompt_name="nope"))
    assert caught.value.field == "prompt_name"
