"""Answers from documents with LangChain. The language model is a stand-in: put yours in its place.

pip install langchain-openai
"""

import sys

from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

URL = (sys.argv[1:] or ["http://127.0.0.1:7071"])[0]
DOCUMENTS = [
    "Holidays: each employee has 30 days a year; five of them may be taken over into the next March.",
    "Expenses: keep the receipt, and hand it in within four weeks by the form in the intranet.",
    "Sick leave: tell your team on the first day; from the third day on a certificate is needed.",
    "Laptops are replaced every four years, or when they cannot be repaired.",
]

embeddings = OpenAIEmbeddings(
    model="all-MiniLM-L6-v2",
    base_url=f"{URL}/v1",
    api_key="none",
    check_embedding_ctx_length=False,  # send texts: ids of OpenAI's vocabulary mean other words here
)
store = InMemoryVectorStore.from_texts(DOCUMENTS, embeddings)
retriever = store.as_retriever(search_kwargs={"k": 2})

prompt = ChatPromptTemplate.from_template("Answer from this alone:\n{context}\n\nQuestion: {question}")
model = FakeListChatModel(responses=["From the third day on."])
chain = (
    {
        "context": retriever | (lambda found: "\n".join(each.page_content for each in found)),
        "question": RunnablePassthrough(),
    }
    | prompt
    | (lambda asked: print(asked.to_string()) or asked)  # to see what the model is asked
    | model
    | StrOutputParser()
)
print("Answer:", chain.invoke("When must I bring a doctor's note?"))

# Prints:
# Human: Answer from this alone:
# Sick leave: tell your team on the first day; from the third day on a certificate is needed.
# Expenses: keep the receipt, and hand it in within four weeks by the form in the intranet.
#
# Question: When must I bring a doctor's note?
# Answer: From the third day on.
