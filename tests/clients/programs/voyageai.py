"""Voyage's client embeds and reranks. Prints {case: what it made of the answer}."""

import asyncio
import json
import sys

import voyageai

URL, MODEL, QUERY, *TEXTS = sys.argv[1:]
client = voyageai.Client(api_key="any", base_url=f"{URL}/v1", max_retries=0)
waiting = voyageai.AsyncClient(api_key="any", base_url=f"{URL}/v1", max_retries=0)


def message_of(error_type, call):
    try:
        return call()
    except error_type as error:
        return str(error)


print(
    json.dumps(
        {
            "embed": client.embed(TEXTS, model=MODEL, input_type="document").embeddings,
            "embed, asynchronous": asyncio.run(waiting.embed(TEXTS, model=MODEL)).embeddings,
            "embed output_dimension": client.embed(TEXTS, model=MODEL, output_dimension=64).embeddings,
            **{
                f"embed output_dtype {dtype}": client.embed(
                    TEXTS, model=MODEL, output_dtype=dtype, output_dimension=64
                ).embeddings
                for dtype in ("int8", "uint8", "binary", "ubinary")
            },
            "embed total_tokens": client.embed(TEXTS, model=MODEL).total_tokens,
            "embed what is too long": message_of(
                voyageai.error.InvalidRequestError,
                lambda: client.embed(["word " * 1000], model=MODEL, truncation=False),
            ),
            "embed by an unknown model": message_of(
                voyageai.error.APIError, lambda: client.embed(TEXTS, model="nope")
            ),
            "rerank": [
                [each.index, each.relevance_score]
                for each in client.rerank(QUERY, TEXTS, model=MODEL, top_k=2).results
            ],
            "rerank documents": [
                each.document for each in client.rerank(QUERY, TEXTS, model=MODEL, top_k=2).results
            ],
        }
    )
)
