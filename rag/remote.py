"""A route's documents as a retriever of somebody else's LangChain application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import Field

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun


class EkibenRetriever(BaseRetriever):
    """Finds passages in a served box, as the route's guards let them through and as this caller may see them.

    `url` is the box's, without /v1; `headers` go with every request. Raises httpx.HTTPStatusError where the box refuses.
    """

    url: str
    route: str
    top_k: int | None = None
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    timeout: float = 30.0
    """Seconds."""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        return _documents(httpx.post(self._address, json=self._body(query), headers=self.headers, timeout=self.timeout))

    async def _aget_relevant_documents(self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        async with httpx.AsyncClient(timeout=self.timeout) as client:
            return _documents(await client.post(self._address, json=self._body(query), headers=self.headers))

    @property
    def _address(self) -> str:
        return f"{self.url.rstrip('/')}/v1/rag/search"

    def _body(self, query: str) -> dict[str, Any]:
        return {"model": self.route, "query": query} | ({} if self.top_k is None else {"top_k": self.top_k})


def _documents(answer: httpx.Response) -> list[Document]:
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]
    return [Document(one["text"], metadata={name: value for name, value in one.items() if name != "text"}) for one in found]
