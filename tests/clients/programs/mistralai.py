"""Mistral's client embeds and lists the models. Prints {case: what it made of the answer}."""

import json
import sys

from mistralai.client import Mistral
from mistralai.client.errors import SDKError

URL, MODEL, _, *TEXTS = sys.argv[1:]


def embed(**options):
    answer = client.embeddings.create(**{"model": MODEL, "inputs": TEXTS, **options})
    return [each.embedding for each in answer.data]


def message_of(error_type, call):
    try:
        return call()
    except error_type as error:
        return str(error)


with Mistral(api_key="any", server_url=URL) as client:
    print(
        json.dumps(
            {
                "embeddings": embed(),
                "embeddings output_dimension": embed(output_dimension=64),
                **{
                    f"embeddings output_dtype {dtype}": embed(output_dtype=dtype, output_dimension=64)
                    for dtype in ("int8", "uint8", "binary", "ubinary")
                },
                "embeddings of an unknown model": message_of(SDKError, lambda: embed(model="nope")),
                "models": [card.id for card in client.models.list().data],
                "model": client.models.retrieve(model_id=MODEL).id,
            }
        )
    )
