"""Moving over from Azure OpenAI: the client stays, its endpoint changes, all texts are embedded anew.

Vectors of two models cannot be compared, so an index is filled beside the old one and then swapped.
pip install openai numpy
"""

import sys

import numpy as np
from openai import AzureOpenAI

URL = (sys.argv[1:] or ["http://127.0.0.1:7071"])[0]
TEXTS = {
    "a": "The parcel is on its way.",
    "b": "Your order was shipped.",
    "c": "Please reset my password.",
}

# Before: AzureOpenAI(azure_endpoint="https://NAME.openai.azure.com", api_key=..., api_version=...)
client = AzureOpenAI(azure_endpoint=URL, api_key="none", api_version="2024-10-21")
# With BLITZ_MODEL_ALIASES=text-embedding-3-small=all-MiniLM-L6-v2 even the deployment keeps its name.
DEPLOYMENT = "all-MiniLM-L6-v2"


def embed(texts: list[str]) -> np.ndarray:
    answer = client.embeddings.create(model=DEPLOYMENT, input=texts)
    return np.array([each.embedding for each in answer.data], np.float32)


old = {name: np.ones(1536, np.float32) for name in TEXTS}  # text-embedding-3-small has 1,536 numbers
new = dict(zip(TEXTS, embed(list(TEXTS.values())), strict=True))
print("numbers a vector:", old["a"].size, "->", new["a"].size)
print("bytes a million vectors:", f"{old['a'].nbytes / 1e3:.1f} GB -> {new['a'].nbytes / 1e3:.1f} GB")

asked = embed(["Where is my delivery?"])[0]
ranked = sorted(new, key=lambda name: -float(new[name] @ asked))
print("order:", " ".join(ranked))

# Prints:
# numbers a vector: 1536 -> 384
# bytes a million vectors: 6.1 GB -> 1.5 GB
# order: b a c
