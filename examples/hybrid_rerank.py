"""Hybrid search: BM25 and vectors, put together by their ranks, and the best reranked by the service.

A cross-encoder reranks best (publish one and name it in RERANKER); other models do it by cosine.
pip install httpx
"""

import math
import re
import sys
from collections import Counter

import httpx

URL = (sys.argv[1:] or ["http://127.0.0.1:7071"])[0]
MODEL = RERANKER = "all-MiniLM-L6-v2"
DOCUMENTS = [
    "Error E42: the pump is blocked. Clean the sieve and start again.",
    "If water stays in the drum, the outlet may be clogged by fluff or a coin.",
    "Error E17: no water comes in. Open the tap.",
    "The sieve is behind the flap at the lower right.",
    "A loud noise while spinning often means that the load is uneven.",
]
QUERY = "machine shows E42 and does not drain"


def bm25(query: str, documents: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    words, *bags = (Counter(re.findall(r"\w+", text.lower())) for text in (query, *documents))
    mean = sum(bag.total() for bag in bags) / len(bags)
    scores = [0.0] * len(bags)
    for word in words:
        having = sum(word in bag for bag in bags)
        weight = math.log(1 + (len(bags) - having + 0.5) / (having + 0.5))
        for at, bag in enumerate(bags):
            length = k1 * (1 - b + b * bag.total() / mean)
            scores[at] += weight * bag[word] * (k1 + 1) / (bag[word] + length)
    return scores


def rerank(documents: list[str]) -> list[dict]:
    body = {"model": RERANKER, "query": QUERY, "documents": documents}
    return httpx.post(f"{URL}/v2/rerank", json=body).raise_for_status().json()["results"]


by_words = bm25(QUERY, DOCUMENTS)
orders = [sorted(range(5), key=lambda at: -by_words[at]), [each["index"] for each in rerank(DOCUMENTS)]]
fused = sorted(range(5), key=lambda at: -sum(1 / (60 + order.index(at)) for order in orders))
print("words  ", orders[0])
print("vectors", orders[1])
print("fused  ", fused)
for each in rerank([DOCUMENTS[at] for at in fused[:3]]):
    print(f"  {each['relevance_score']:.2f}  {DOCUMENTS[fused[each['index']]]}")

# Prints:
# words   [0, 1, 2, 3, 4]
# vectors [0, 2, 1, 4, 3]
# fused   [0, 1, 2, 3, 4]
#   0.55  Error E42: the pump is blocked. Clean the sieve and start again.
#   0.46  Error E17: no water comes in. Open the tap.
#   0.28  If water stays in the drum, the outlet may be clogged by fluff or a coin.
