"""A route's documents from another program."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import pytest

from rag.remote import EkibenRetriever

FOUND = {"number": 1, "source": "a.md", "page": None, "heading": "Bikes", "score": 0.9, "text": "11 euros"}


@pytest.fixture
def box():
    """A server that answers as a box does, and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append((self.path, body, self.headers.get("x-tenant")))
            content = json.dumps({"data": [FOUND]}).encode()
            self.send_response(200 if body["model"] == "ask" else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


async def test_it_finds_passages(box):
    url, asked = box
    retriever = EkibenRetriever(url=url, route="ask", top_k=3, headers={"x-tenant": "acme"})

    for found in (retriever.invoke("bikes?"), await retriever.ainvoke("bikes?")):
        [document] = found
        assert document.page_content == "11 euros"
        assert document.metadata == {"number": 1, "source": "a.md", "page": None, "heading": "Bikes", "score": 0.9}
    assert asked == [("/v1/rag/search", {"model": "ask", "query": "bikes?", "top_k": 3}, "acme")] * 2
    assert "acme" not in repr(retriever)


def test_a_refusal_is_raised(box):
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        EkibenRetriever(url=box[0], route="nobody").invoke("bikes?")
