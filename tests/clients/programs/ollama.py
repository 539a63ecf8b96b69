"""Ollama's client embeds and lists the models. Prints {case: what it made of the answer}."""

import json
import sys

import ollama

URL, MODEL, _, *TEXTS = sys.argv[1:]
client = ollama.Client(host=URL)


def message_of(error_type, call):
    try:
        return call()
    except error_type as error:
        return str(error)


print(
    json.dumps(
        {
            "embed": client.embed(MODEL, TEXTS, keep_alive="5m", options={"num_ctx": 512}).embeddings,
            "embed dimensions": client.embed(MODEL, TEXTS, dimensions=64).embeddings,
            "embed one text": client.embed(MODEL, TEXTS[0]).embeddings[0],
            # Ollama's older way does not bring vectors to length one.
            "embeddings": client.embeddings(MODEL, TEXTS[0]).embedding,
            "embed what is too long": message_of(
                ollama.ResponseError,
                lambda: client.embed(MODEL, ["word " * 1000], truncate=False),
            ),
            "embed by an unknown model": message_of(
                ollama.ResponseError, lambda: client.embed("nope", TEXTS)
            ),
            "list": [each.model for each in client.list().models],
        }
    )
)
