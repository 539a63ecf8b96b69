"""Clients with pins of their own, run as programs against the real service: what each reads.

tests/clients/programs holds a program a client. It embeds and reranks as its user would, and prints
{case: result}. Those in Python run in .venv/clients, which `make test` fills from requirements.txt here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.patience import PATIENCE_S
from tests.server import ROOT, http_get, http_post

PROGRAMS = Path(__file__).parent / "programs"
PYTHON = ROOT / ".venv" / "clients" / "bin" / "python"
MODEL = "all-MiniLM-L6-v2"
QUERY = "What is the capital of France?"
TEXTS = ["bananas are yellow", "Paris is the capital of France", "Berlin is a city in Germany"]
SILENT = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "CRITICAL",
}
"""Nothing is fetched from elsewhere, or told there."""


@dataclass(frozen=True)
class Truth:
    """What the service says at /embed: vectors (3, 384) and query (384,), of length one, float32.

    int8_range: what it says at /v1/models of 64 dimensions, one of the halves of 384 being 48.
    """

    vectors: NDArray[np.float32]
    query: NDArray[np.float32]
    int8_range: float

    @property
    def short(self) -> NDArray[np.float32]:
        """(3, 64), of length one again."""
        rows = self.vectors[:, :64]
        shortened: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return shortened

    @property
    def best(self) -> list[int]:
        """The two texts nearest to the query, the best first."""
        return [int(index) for index in np.argsort(-(self.vectors @ self.query))[:2]]


Check: TypeAlias = Callable[[Any, Truth], bool]


def _near(expected: Callable[[Truth], Any], within: float = 1e-5) -> Check:
    """Of the shape that is expected, and not farther away than that."""

    def is_near(result: Any, truth: Truth) -> bool:
        wanted = np.asarray(expected(truth), np.float64)
        got = np.asarray(result, np.float64)
        return got.shape == wanted.shape and bool(np.abs(got - wanted).max() <= within)

    return is_near


def _points_to(expected: Callable[[Truth], NDArray[np.float32]]) -> Check:
    """In the same direction, and not of length one: neither was asked for."""

    def points(result: Any, truth: Truth) -> bool:
        rows = np.asarray(result, np.float64)
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
        return bool((np.abs(lengths - 1) > 0.1).all()) and _near(expected)(rows / lengths, truth)

    return points


def _says(text: str) -> Check:
    return lambda result, _: text in result


def _is(expected: Callable[[Truth], Any]) -> Check:
    return lambda result, truth: bool(result == expected(truth))


def _bytes(truth: Truth) -> Any:
    return np.rint(truth.short * 127 / truth.int8_range).clip(-127, 127)


def _bits(truth: Truth) -> Any:
    return np.packbits(truth.short > 0, axis=1).astype(int)


VECTORS = _near(lambda truth: truth.vectors)
FIRST = _near(lambda truth: truth.vectors[0])
OF_QUERY = _near(lambda truth: truth.query)
SHORT = _near(lambda truth: truth.short)
# 1: what lies between two of them may be rounded to either.
INT8 = _near(_bytes, within=1)
RANKED = _near(lambda truth: [[index, truth.vectors[index] @ truth.query] for index in truth.best])
RANKED_TEXTS = _is(lambda truth: [TEXTS[index] for index in truth.best])
LISTED = _is(lambda _: [MODEL])
TAGGED = _is(lambda _: [f"{MODEL}:latest"])
UNKNOWN = _says(f"there is no model 'nope'; there are: {MODEL}")
TOO_LONG = _says("the model reads 256: shorten it or set truncate")
TYPES = {
    "int8": INT8,
    "uint8": _near(lambda truth: _bytes(truth) + 128, within=1),
    "binary": _is(lambda truth: (_bits(truth) - 128).tolist()),
    "ubinary": _is(lambda truth: _bits(truth).tolist()),
}

CASES: Mapping[str, Mapping[str, Check]] = {
    "voyageai.py": {
        "embed": VECTORS,
        "embed, asynchronous": VECTORS,
        "embed output_dimension": SHORT,
        **{f"embed output_dtype {name}": check for name, check in TYPES.items()},
        "embed total_tokens": _is(lambda _: 21),
        "embed what is too long": _says("the model reads 256: shorten it or set truncation"),
        "embed by an unknown model": UNKNOWN,
        "rerank": RANKED,
        "rerank documents": RANKED_TEXTS,
    },
    "mistralai.py": {
        "embeddings": VECTORS,
        "embeddings output_dimension": SHORT,
        **{f"embeddings output_dtype {name}": check for name, check in TYPES.items()},
        "embeddings of an unknown model": UNKNOWN,
        "models": LISTED,
        "model": _is(lambda _: MODEL),
    },
    "ollama.py": {
        "embed": VECTORS,
        "embed dimensions": SHORT,
        "embed one text": FIRST,
        "embeddings": _points_to(lambda truth: truth.vectors[0]),
        "embed what is too long": TOO_LONG,
        "embed by an unknown model": UNKNOWN,
        "list": TAGGED,
    },
    "litellm.py": {
        **dict.fromkeys(
            (
                "openai embedding",
                "azure embedding",
                "hosted_vllm embedding",
                "infinity embedding",
                "voyage embedding",
                "cohere embedding",
                "mistral embedding",
                "jina_ai embedding",
                "ollama embedding",
                "huggingface embedding",
            ),
            VECTORS,
        ),
        "openai embedding dimensions": SHORT,
        "voyage embedding dimensions": SHORT,
        "ollama embedding dimensions": SHORT,
        **{
            f"{provider} rerank{what}": check
            for provider in ("cohere", "infinity", "jina_ai", "voyage", "hosted_vllm", "huggingface")
            for what, check in (("", RANKED), (" documents", RANKED_TEXTS))
        },
        "embedding by an unknown model": UNKNOWN,
        "rerank by an unknown model": UNKNOWN,
    },
    "langchain.py": {
        "OpenAIEmbeddings": VECTORS,
        "OpenAIEmbeddings query": OF_QUERY,
        "OpenAIEmbeddings dimensions": SHORT,
        "OpenAIEmbeddings by default": _says("check_embedding_ctx_length=False"),
        "AzureOpenAIEmbeddings": VECTORS,
        "CohereEmbeddings": VECTORS,
        "CohereEmbeddings query": OF_QUERY,
        "CohereRerank": RANKED,
        "HuggingFaceEndpointEmbeddings": VECTORS,
        "OllamaEmbeddings": VECTORS,
        "OllamaEmbeddings query": OF_QUERY,
    },
    "llama_index.py": {
        "OpenAIEmbedding": VECTORS,
        "OpenAIEmbedding query": OF_QUERY,
        "OpenAIEmbedding dimensions": SHORT,
        "TextEmbeddingsInference": VECTORS,
        "TextEmbeddingsInference query": OF_QUERY,
    },
    "haystack.py": {
        "OpenAITextEmbedder": OF_QUERY,
        "OpenAIDocumentEmbedder": VECTORS,
        "OpenAIDocumentEmbedder dimensions": SHORT,
        "HuggingFaceAPITextEmbedder": _points_to(lambda truth: truth.query),
        "HuggingFaceAPIDocumentEmbedder": _points_to(lambda truth: truth.vectors),
        "HuggingFaceTEIRanker": RANKED,
    },
    "javascript.mjs": {
        "openai embeddings": VECTORS,
        "openai embeddings dimensions": SHORT,
        "openai by an unknown model": UNKNOWN,
        "openai models": LISTED,
        "openai AzureOpenAI": VECTORS,
        "cohere-ai embed": VECTORS,
        "cohere-ai embed int8": INT8,
        "cohere-ai rerank": RANKED,
        "cohere-ai embed v1": VECTORS,
        "cohere-ai rerank v1": RANKED,
        "ollama embed": VECTORS,
        "ollama embed dimensions": SHORT,
        "ollama embeddings": _points_to(lambda truth: truth.vectors[0]),
        "ollama list": TAGGED,
        "ollama by an unknown model": UNKNOWN,
        "voyageai embed": VECTORS,
        "voyageai embed int8": INT8,
        "voyageai rerank": RANKED,
        "@huggingface/inference featureExtraction": VECTORS,
        "@ai-sdk/openai embedMany": VECTORS,
        "@ai-sdk/openai by an unknown model": UNKNOWN,
        "@ai-sdk/openai-compatible embedMany dimensions": SHORT,
        "@ai-sdk/cohere embedMany": VECTORS,
        "@ai-sdk/cohere rerank": RANKED,
    },
}
"""Program -> what it prints for each case. Scores are cosines: the model embeds."""


@pytest.fixture(scope="module")
def truth(service_url: str) -> Truth:
    answer = http_post(f"{service_url}/embed", json={"inputs": [*TEXTS, QUERY]}).json()
    rows = np.array(answer, np.float32)
    ranges = http_get(f"{service_url}/v1/models/{MODEL}").json()["int8_ranges"]
    return Truth(rows[:-1], rows[-1], ranges["48"])


@pytest.fixture(scope="module")
def results_of(service_url: str) -> Callable[[str], dict[str, Any]]:
    """What a program of tests/clients/programs prints; each runs once."""
    return cache(lambda program: _run(program, service_url))


def _run(program: str, url: str) -> dict[str, Any]:
    if program.endswith(".py"):
        interpreter, packages, remedy = [str(PYTHON), "-I"], PYTHON, "make .venv/clients/installed"
    else:
        interpreter = [shutil.which("node") or "node"]
        packages, remedy = ROOT / "tests" / "node_modules" / "openai", "npm ci in tests/"
    if "CI" not in os.environ and not (packages.exists() and shutil.which(interpreter[0])):
        pytest.skip(f"the clients are not installed: {remedy}")
    done = subprocess.run(
        [*interpreter, str(PROGRAMS / program), url, MODEL, QUERY, *TEXTS],
        env={**os.environ, **SILENT},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize(
    ("program", "case"), [(program, case) for program, cases in CASES.items() for case in cases]
)
def test_a_client_reads_what_it_asked_for(
    results_of: Callable[[str], dict[str, Any]], truth: Truth, program: str, case: str
) -> None:
    """Numbers as the service itself gives them elsewhere, and errors with the service's own words."""
    result = results_of(program)[case]
    assert CASES[program][case](result, truth), str(result)[:500]


@pytest.mark.parametrize("program", CASES)
def test_a_program_has_no_other_cases(results_of: Callable[[str], dict[str, Any]], program: str) -> None:
    """What is not in the table above would be looked at by nobody."""
    assert results_of(program).keys() == CASES[program].keys()


def test_every_program_is_run() -> None:
    """A file there without cases here would be tested by nothing."""
    assert {path.name for path in PROGRAMS.iterdir() if path.is_file()} == CASES.keys()
