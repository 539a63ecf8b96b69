"""litellm embeds and reranks by the providers it could take this service for. Prints {case: result}."""

import json
import sys

import litellm

URL, MODEL, QUERY, *TEXTS = sys.argv[1:]
litellm.suppress_debug_info = True

# Provider -> api_base and what else must be set.
EMBEDDERS = {
    "openai": {"api_base": f"{URL}/v1"},
    "azure": {"api_base": URL, "api_version": "2024-10-21"},
    "hosted_vllm": {"api_base": f"{URL}/v1"},
    "infinity": {"api_base": f"{URL}/v1"},
    "voyage": {"api_base": f"{URL}/v1"},
    "cohere": {"api_base": f"{URL}/v2/embed"},
    "mistral": {"api_base": f"{URL}/v1"},
    "jina_ai": {"api_base": f"{URL}/v1"},
    "ollama": {"api_base": URL},
    # Without it litellm asks the Hugging Face hub what the model is for.
    "huggingface": {"api_base": URL, "input_type": "embed"},
}
SHORTENED = {
    "openai": {"allowed_openai_params": ["dimensions"], **EMBEDDERS["openai"]},
    "voyage": EMBEDDERS["voyage"],
    "ollama": EMBEDDERS["ollama"],
}
RERANKERS = {
    "cohere": URL,
    "infinity": f"{URL}/infinity",
    "jina_ai": URL,
    "voyage": URL,
    "hosted_vllm": URL,
    "huggingface": URL,
}


def embed(provider, options, model=MODEL, **more):
    answer = litellm.embedding(f"{provider}/{model}", TEXTS, api_key="any", **options, **more)
    return [each["embedding"] for each in answer.data]


def rerank(provider, base, model=MODEL):
    return litellm.rerank(
        f"{provider}/{model}", QUERY, TEXTS, top_n=2, return_documents=True, api_base=base, api_key="any"
    ).results


def message_of(error_type, call):
    try:
        return call()
    except error_type as error:
        return str(error)


results = {f"{name} embedding": embed(name, options) for name, options in EMBEDDERS.items()}
for name, options in SHORTENED.items():
    results[f"{name} embedding dimensions"] = embed(name, options, dimensions=64)
for name, base in RERANKERS.items():
    ranked = rerank(name, base)
    results[f"{name} rerank"] = [[each["index"], each["relevance_score"]] for each in ranked]
    results[f"{name} rerank documents"] = [each["document"]["text"] for each in ranked]
results["embedding by an unknown model"] = message_of(
    litellm.NotFoundError, lambda: embed("openai", EMBEDDERS["openai"], "nope", max_retries=0)
)
results["rerank by an unknown model"] = message_of(
    litellm.NotFoundError, lambda: rerank("infinity", RERANKERS["infinity"], "nope")
)
print(json.dumps(results))
