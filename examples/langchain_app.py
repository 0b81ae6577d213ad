"""A LangChain application on a served box: one route's documents as its retriever, another route as its chat model.

make serve
uv pip install langchain-openai
python examples/langchain_app.py "What does an ekiben cost?"
"""

from __future__ import annotations

import argparse

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from rag.remote import EkibenRetriever

PROMPT = ChatPromptTemplate.from_messages([
    ("system", "Answer the question from the passages, in one sentence."),
    ("human", "Passages:\n{passages}\n\nQuestion: {question}"),
])  # fmt: skip


def numbered(documents: list[Document]) -> str:
    """Return passages as the prompt shows them."""
    return "\n\n".join(f"[{d.metadata['number']}] {d.metadata['heading'] or ''}: {d.page_content}" for d in documents)


def main() -> None:
    """Answer a question as a stream, then name the sources."""
    parser = argparse.ArgumentParser(description="Ask a LangChain application that stands on a served box.")
    parser.add_argument("question")
    parser.add_argument("--url", default="http://localhost:3000", help="the box, without /v1")
    parser.add_argument("--documents", default="handbook", help="route whose documents are searched")
    parser.add_argument("--model", default="assistant", help="route that answers")
    options = parser.parse_args()

    retriever = EkibenRetriever(url=options.url, route=options.documents)
    chat = ChatOpenAI(base_url=f"{options.url}/v1", api_key=SecretStr("none"), model=options.model, temperature=0)
    answer = RunnablePassthrough.assign(passages=RunnableLambda(lambda found: numbered(found["documents"]))) | PROMPT | chat
    chain = RunnableParallel(documents=retriever, question=RunnablePassthrough()).assign(answer=answer | StrOutputParser())

    sources: list[Document] = []
    for piece in chain.stream(options.question):
        sources = piece.get("documents", sources)
        print(piece.get("answer", ""), end="", flush=True)
    print()
    for found in sources:
        print(f"[{found.metadata['number']}] {found.metadata['source']} ({found.metadata['score']:.2f})")


if __name__ == "__main__":
    main()
