"""Which prompt a model puts before a request's texts."""

from __future__ import annotations

from typing import Any, cast

import pytest

from shared.contracts import EmbedRequest, InputType
from shared.engines.base import Engine
from shared.errors import InvalidInput
from shared.manifest import SCHEMA_VERSION, Manifest, Source
from shared.model import Model
from shared.tokenization import Tokenizer


class FakeTokenizer:
    """Notes what is prepended."""

    prefix = ""

    def encode(self, inputs: tuple[str, ...], *, prefix: str, **options: Any) -> list[list[int]]:
        self.prefix = prefix
        return [[1]] * len(inputs)


def prefix_of(prompts: dict[str, str], default: str | None, request: EmbedRequest) -> str:
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="m",
        revision="r",
        task="embedding",
        target="cpu-int8",
        architecture="bert",
        source=Source("there", "1"),
        files=(),
        model_file="model.onnx",
        tokenizer_file="tokenizer.json",
        pad_token_id=0,
        max_tokens=16,
        dimensions=2,
        pooling="mean",
        prompts=prompts,
        default_prompt=default,
    )
    tokenizer = FakeTokenizer()
    Model(manifest, cast(Tokenizer, tokenizer), cast(Engine, None)).tokenize(request)
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
