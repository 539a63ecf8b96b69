"""Prompts of known families, of configurations and of --prompt: what is served is what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from model_build.locate import locate
from model_build.originals import embedder
from model_build.prompts import MAX_PROMPT_CHARS, family_of, parse_prompts, with_prompts
from model_build.source import SourceModel, inspect_source
from shared.contracts import EmbedRequest
from shared.engines import onnx
from shared.errors import InvalidInput
from shared.inference.model import load_model
from shared.inference.steps import completed
from shared.models.manifest import decode_manifest
from shared.vectors import finish
from tests.model_build.command import Run
from tests.tiny_torch import edit_json, tiny_cross_encoder, tiny_model

PASSAGES = "Represent this sentence for searching relevant passages: "
INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
E5 = {"query": "query: ", "document": "passage: "}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    return inspect_source(tiny_model(tmp_path_factory.mktemp("source") / "model"))


# What the models' cards say, copied by hand and not from the table.
@pytest.mark.parametrize(
    ("name", "model_type", "query", "document"),
    [
        ("intfloat/e5-small-v2", "bert", "query: ", "passage: "),
        ("my_multilingual-E5-base", "xlm-roberta", "query: ", "passage: "),
        ("models--intfloat--e5-large", "bert", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large-instruct", "xlm-roberta", INSTRUCT + " ", None),
        ("BAAI/bge-small-en-v1.5", "bert", PASSAGES, None),
        ("BAAI/bge-large-zh-v1.5", "bert", "为这个句子生成表示以用于检索相关文章：", None),  # noqa: RUF001
        ("nomic-ai/nomic-embed-text-v1.5", "nomic_bert", "search_query: ", "search_document: "),
        ("nomic-ai/modernbert-embed-base", "modernbert", "search_query: ", "search_document: "),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", "bert", PASSAGES, None),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "xlm-roberta", "query: ", None),
        ("mixedbread-ai/mxbai-embed-large-v1", "bert", PASSAGES, None),
        ("Qwen/Qwen3-Embedding-0.6B", "qwen3", INSTRUCT, None),
        ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "qwen2", INSTRUCT + " ", None),
        (
            "google/embeddinggemma-300m",
            "gemma3_text",
            "task: search result | query: ",
            "title: none | text: ",
        ),
    ],
)
def test_a_known_family_has_its_prompts(
    name: str, model_type: str, query: str, document: str | None
) -> None:
    """By the name and the architecture, to the last space."""
    family = family_of([name], model_type)
    assert family is not None
    assert (family.prompts.get("query"), family.prompts.get("document")) == (query, document)


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "bert"),
        ("BAAI/bge-m3", "xlm-roberta"),
        ("thenlper/gte-small", "bert"),
        ("the5th", "bert"),
        ("e5", "distilbert"),
        ("model", "bert"),
    ],
)
def test_others_have_none(name: str, model_type: str) -> None:
    """A name that only contains the letters, another architecture, models that were trained bare."""
    assert family_of([name], model_type) is None


@pytest.mark.parametrize(
    ("own", "default", "given", "expected"),
    [
        ({}, None, [], E5),
        # As sentence-transformers 5 writes unasked.
        ({"query": "", "document": ""}, None, [], E5),
        ({"query": "Q: "}, None, [], {"query": "Q: "}),
        ({"query": "", "x": ""}, "x", [], {"query": "", "x": ""}),
        ({}, None, ["query=Q: "], E5 | {"query": "Q: "}),
        ({}, None, ["query="], {"document": "passage: "}),
        ({}, None, ["query=", "document="], {}),
        ({}, None, ["classification=C=1: "], E5 | {"classification": "C=1: "}),
        ({"query": "own: "}, None, ["query=Q: "], {"query": "Q: "}),
        ({"Clustering": "C: "}, None, [], {"Clustering": "C: ", "clustering": "C: "}),
        ({"retrieval.query": "R: "}, None, [], {"retrieval.query": "R: ", "query": "R: "}),
        ({"retrieval.query": "R: "}, None, ["query=Q: "], {"retrieval.query": "R: ", "query": "Q: "}),
        ({"passage": "P: "}, None, [], {"passage": "P: "}),
    ],
)
def test_who_wins(
    own: dict[str, str],
    default: str | None,
    given: list[str],
    expected: dict[str, str],
    source: SourceModel,
) -> None:
    """--prompt before the model's own configuration, and that before what is known of its family."""
    stated = dataclasses.replace(source, prompts=own, default_prompt=default)
    prompted = with_prompts(stated, ["e5-small"], parse_prompts(given))
    assert prompted.source.prompts == expected
    assert prompted.origin.keys() == expected.keys()
    assert prompted.source.default_prompt == default


def test_a_default_prompt_is_removed_with_its_text(source: SourceModel) -> None:
    """A manifest may not name a prompt that it has not."""
    stated = dataclasses.replace(source, prompts={"q": "Q: ", "d": "D: "}, default_prompt="q")
    prompted = with_prompts(stated, [], {"q": ""}).source
    assert (prompted.prompts, prompted.default_prompt) == ({"d": "D: "}, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["query"], "NAME=TEXT"),
        (["=text"], "NAME=TEXT"),
        ([" =text"], "NAME=TEXT"),
        (["q=a", "q=b"], "q is given twice"),
        (["nosuch="], "nosuch= has nothing to remove: the prompts are document, query"),
        (["q=" + "a" * (MAX_PROMPT_CHARS + 1)], "4001"),
        (["q=" + "a " * 60], "leaves no room for a text"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused(given: list[str], message: str, source: SourceModel) -> None:
    """The sentence says what would be right."""
    with pytest.raises(InvalidInput, match=message) as refusal:
        with_prompts(source, ["e5"], parse_prompts(given))
    assert refusal.value.field == "prompt"


def test_a_cross_encoder_has_no_prompts(tmp_path: Path) -> None:
    """Its name gives it none, and asking for one is refused."""
    source = inspect_source(tiny_cross_encoder(tmp_path / "model"))
    assert with_prompts(source, ["e5-reranker"], {}).source.prompts == {}
    with pytest.raises(InvalidInput, match="cross-encoder has no prompts"):
        with_prompts(source, [], {"query": "q"})


def test_a_snapshot_is_called_what_the_hub_calls_it(tmp_path: Path) -> None:
    """The folder itself is named after a commit."""
    folder = tmp_path / "models--intfloat--e5-small" / "snapshots" / ("0" * 40)
    assert family_of(locate(str(tiny_model(folder))).names, "bert") is not None


def test_the_original_is_run_with_the_same_prompts(tmp_path: Path) -> None:
    """What a build is compared with puts the family's prompt before a text, and no other."""
    folder = tiny_model(tmp_path / "model")
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    prompted = with_prompts(inspect_source(folder), ["e5"], {"query": "a b c d "}).source
    original = embedder(folder, prompted)
    np.testing.assert_allclose(
        original(["e f"], "query"), original(["a b c d e f"], None), rtol=0, atol=1e-6
    )
    assert np.abs(original(["e f"], "query") - original(["e f"], None)).max() > 1e-3


def test_an_e5_is_served_with_its_prompts(run: Run, tiny: Path, tmp_path: Path) -> None:
    """From the command to the vector: `input_type` query is what sentence-transformers gives for
    "query: " before the text; the report says where the prompts are from."""
    out = tmp_path / "out"
    ran = run(tiny, "--target", "cpu-fp32", "--name", "e5-tiny", "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert "prompt query: 'query: ' (known for E5 models)" in ran.stdout
    assert "prompt document: 'passage: ' (known for E5 models)" in ran.stdout
    manifest = decode_manifest((out / "manifest.json").read_bytes())
    assert (manifest.prompts, manifest.default_prompt) == (E5, None)
    original = SentenceTransformer(str(tiny), device="cpu")
    model = load_model(out, manifest, onnx.OnnxEngine)
    try:
        for input_type, before in (("query", "query: "), ("document", "passage: "), (None, "")):
            request = EmbedRequest("m", ("where is it?",), input_type=input_type)  # type: ignore[arg-type]
            vectors = finish(model.run(completed(model.tokenize(request))), None, normalize=True)
            expected = original.encode([before + "where is it?"], normalize_embeddings=True)
            np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    finally:
        model.close()


def test_prompts_are_told_to_machines_and_given_by_hand(run: Run, tiny: Path) -> None:
    """--json says of each prompt who says so; other prompts are another revision."""
    ran = run(tiny, "--target", "cpu-fp32", "--prompt", "query=Q: ", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["manifest"]["prompts"] == {"query": "Q: "}
    assert told["prompts_from"] == {"query": "--prompt"}
    bare = run(tiny, "--target", "cpu-fp32")
    assert "no prompts, so input_type has no effect" in bare.stdout
    assert told["manifest"]["revision"] not in bare.stdout


def test_a_wrong_prompt_is_exit_2_before_anything_is_read(run: Run) -> None:
    """One sentence."""
    refused = run("no-such-model", "--target", "cpu-fp32", "--prompt", "query")
    assert refused.returncode == 2
    assert "NAME=TEXT" in refused.stderr
