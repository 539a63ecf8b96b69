"""Retrieval with LlamaIndex, and an answer by its mock model, which repeats what it is asked.

pip install llama-index-core llama-index-embeddings-openai
"""

import sys

from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.embeddings.openai import OpenAIEmbedding

URL = (sys.argv[1:] or ["http://127.0.0.1:7071"])[0]
DOCUMENTS = {
    "kettle": "To descale the kettle, boil water with a spoon of citric acid in it, and rinse it twice.",
    "fridge": "The fridge defrosts by itself; clear the drain at the back with the tool once a year.",
    "oven": "Grid and trays of the oven go into the dishwasher, its door is wiped with a soft cloth.",
    "washer": "Clean the filter of the washing machine every two months: it is behind the lower flap.",
}

Settings.llm = MockLLM()  # put yours in its place
Settings.embed_model = OpenAIEmbedding(
    model_name="all-MiniLM-L6-v2", api_base=f"{URL}/v1", api_key="none"
)

index = VectorStoreIndex.from_documents(
    [Document(text=text, doc_id=name, metadata={}) for name, text in DOCUMENTS.items()]
)
question = "My tea tastes of chalk. What can I do?"
for found in index.as_retriever(similarity_top_k=2).retrieve(question):
    print(f"{found.score:.2f}  {found.node.ref_doc_id}")
answer = index.as_query_engine(similarity_top_k=1).query(question)
print([line for line in str(answer).splitlines() if "citric" in line])

# Prints:
# 0.40  kettle
# 0.14  washer
# ['To descale the kettle, boil water with a spoon of citric acid in it, and rinse it twice.']
