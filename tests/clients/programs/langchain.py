"""LangChain's classes for OpenAI, Cohere, Hugging Face and Ollama. Prints {case: result}."""

import json
import sys

import openai
import tiktoken
from huggingface_hub import InferenceClient
from langchain_cohere import CohereEmbeddings, CohereRerank
from langchain_huggingface import HuggingFaceEndpointEmbeddings
from langchain_ollama import OllamaEmbeddings
from langchain_openai import AzureOpenAIEmbeddings, OpenAIEmbeddings

URL, MODEL, QUERY, *TEXTS = sys.argv[1:]
OPENAI = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": "any", "max_retries": 0}
AZURE = {"model": MODEL, "azure_endpoint": URL, "api_version": "2024-10-21", "api_key": "any"}
COHERE = {"base_url": URL, "cohere_api_key": "any"}


def token_ids_are_refused():
    """What it does by default; tiktoken would fetch its vocabulary from the web."""
    letters = {bytes([byte]): byte for byte in range(256)}
    tiktoken.get_encoding = lambda name: tiktoken.Encoding(
        name, pat_str=".", mergeable_ranks=letters, special_tokens={}
    )
    try:
        return OpenAIEmbeddings(**OPENAI).embed_documents(TEXTS)
    except openai.BadRequestError as error:
        return str(error)


def ask_an_endpoint():
    """Its `model` may be no URL, but its client may be another."""
    embeddings = HuggingFaceEndpointEmbeddings(huggingfacehub_api_token="any")
    embeddings.client = InferenceClient(model=URL, token="any")
    return embeddings.embed_documents(TEXTS)


texts_alone = OpenAIEmbeddings(**OPENAI, check_embedding_ctx_length=False)
shortened = OpenAIEmbeddings(**OPENAI, check_embedding_ctx_length=False, dimensions=64)
azure = AzureOpenAIEmbeddings(**AZURE, check_embedding_ctx_length=False)
cohere = CohereEmbeddings(model=MODEL, **COHERE)
reranker = CohereRerank(model=MODEL, top_n=2, **COHERE)
ollama = OllamaEmbeddings(model=MODEL, base_url=URL, validate_model_on_init=True)
print(
    json.dumps(
        {
            "OpenAIEmbeddings": texts_alone.embed_documents(TEXTS),
            "OpenAIEmbeddings query": texts_alone.embed_query(QUERY),
            "OpenAIEmbeddings dimensions": shortened.embed_documents(TEXTS),
            "OpenAIEmbeddings by default": token_ids_are_refused(),
            "AzureOpenAIEmbeddings": azure.embed_documents(TEXTS),
            "CohereEmbeddings": cohere.embed_documents(TEXTS),
            "CohereEmbeddings query": cohere.embed_query(QUERY),
            "CohereRerank": [
                [each["index"], each["relevance_score"]] for each in reranker.rerank(TEXTS, QUERY)
            ],
            "HuggingFaceEndpointEmbeddings": ask_an_endpoint(),
            "OllamaEmbeddings": ollama.embed_documents(TEXTS),
            "OllamaEmbeddings query": ollama.embed_query(QUERY),
        }
    )
)
