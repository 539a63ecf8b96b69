"""LlamaIndex's embeddings of OpenAI and of Text Embeddings Inference. Prints {case: result}."""

import json
import sys

from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

URL, MODEL, QUERY, *TEXTS = sys.argv[1:]
# Its `model` may be OpenAI's alone.
OPENAI = {"model_name": MODEL, "api_base": f"{URL}/v1", "api_key": "any", "max_retries": 0}

plain = OpenAIEmbedding(**OPENAI)
tei = TextEmbeddingsInference(model_name=MODEL, base_url=URL)
print(
    json.dumps(
        {
            "OpenAIEmbedding": plain.get_text_embedding_batch(TEXTS),
            "OpenAIEmbedding query": plain.get_query_embedding(QUERY),
            "OpenAIEmbedding dimensions": OpenAIEmbedding(
                **OPENAI, dimensions=64
            ).get_text_embedding_batch(TEXTS),
            "TextEmbeddingsInference": tei.get_text_embedding_batch(TEXTS),
            "TextEmbeddingsInference query": tei.get_query_embedding(QUERY),
        }
    )
)
