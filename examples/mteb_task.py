"""A retrieval task over texts of your own, by the encoder that MTEB 2 takes, scored as nDCG@10.
MTEB runs its own tasks over it: mteb.evaluate(Service(URL), mteb.get_tasks(tasks=["SciFact"])).
pip install openai numpy
"""

import sys

import numpy as np
from openai import OpenAI

URL = (sys.argv[1:] or ["http://127.0.0.1:7071"])[0]


class Service:
    """An encoder as MTEB calls it: batches of {"text": [...]}, a query or a passage."""

    def __init__(self, url: str) -> None:
        self.client = OpenAI(base_url=f"{url}/v1", api_key="none")
        self.mteb_model_meta = None  # mteb.models.ModelMeta names the model in results

    def encode(self, inputs, *, prompt_type=None, **_) -> np.ndarray:
        side = "query" if str(getattr(prompt_type, "value", prompt_type)) == "query" else "document"
        rows = []
        for batch in inputs:
            asked = {"input": batch["text"], "extra_body": {"input_type": side}}
            answer = self.client.embeddings.create(model="all-MiniLM-L6-v2", **asked)
            rows += [each.embedding for each in answer.data]
        return np.array(rows, np.float32)

    def similarity(self, one, other) -> np.ndarray:
        return np.asarray(one) @ np.asarray(other).T  # cosines: rows are of length one

    def similarity_pairwise(self, one, other) -> np.ndarray:
        return (np.asarray(one) * np.asarray(other)).sum(axis=1)


CORPUS = (
    "Ice floats on water.",
    "Engines burn coal.",
    "Iron rusts in rain.",
    "Water boils at 100 degrees.",
)
QUERIES = {"What does wet weather do to metal?": {2: 2}, "When does water turn to steam?": {3: 2, 0: 1}}


def dcg(gains: list[int]) -> float:
    return sum(gain / np.log2(place + 2) for place, gain in enumerate(gains[:10]))


service = Service(URL)
passages = service.encode([{"text": list(CORPUS)}], prompt_type="document")
queries = service.encode([{"text": list(QUERIES)}], prompt_type="query")
for row, (query, judged) in zip(service.similarity(queries, passages), QUERIES.items(), strict=True):
    gains = [judged.get(int(at), 0) for at in np.argsort(-row)]
    print(f"nDCG@10 {dcg(gains) / dcg(sorted(judged.values())[::-1]):.3f}  {query}")

# Prints:
# nDCG@10 1.000  What does wet weather do to metal?
# nDCG@10 1.000  When does water turn to steam?
