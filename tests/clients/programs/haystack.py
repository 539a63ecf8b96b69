"""Haystack's components for OpenAI and Text Embeddings Inference. Prints {case: result}."""

import json
import sys

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

URL, MODEL, QUERY, *TEXTS = sys.argv[1:]
KEY = Secret.from_token("any")
OPENAI = {"model": MODEL, "api_base_url": f"{URL}/v1", "api_key": KEY}
TEI = {"api_type": "text_embeddings_inference", "api_params": {"url": URL}, "token": KEY}


def documents():
    return [Document(content=text) for text in TEXTS]


def vectors_of(embedder):
    return [each.embedding for each in embedder.run(documents())["documents"]]


ranked = HuggingFaceTEIRanker(url=URL, top_k=2, token=KEY).run(QUERY, documents())["documents"]
print(
    json.dumps(
        {
            "OpenAITextEmbedder": OpenAITextEmbedder(**OPENAI).run(QUERY)["embedding"],
            "OpenAIDocumentEmbedder": vectors_of(OpenAIDocumentEmbedder(**OPENAI, progress_bar=False)),
            "OpenAIDocumentEmbedder dimensions": vectors_of(
                OpenAIDocumentEmbedder(**OPENAI, dimensions=64, progress_bar=False)
            ),
            "HuggingFaceAPITextEmbedder": HuggingFaceAPITextEmbedder(**TEI).run(QUERY)["embedding"],
            "HuggingFaceAPIDocumentEmbedder": vectors_of(
                HuggingFaceAPIDocumentEmbedder(**TEI, progress_bar=False)
            ),
            "HuggingFaceTEIRanker": [[TEXTS.index(each.content), each.score] for each in ranked],
        }
    )
)
