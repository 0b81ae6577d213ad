"""A folder to write documents into, and embeddings that cost nothing."""

import hashlib

import pytest
from langchain_core.embeddings import Embeddings


class CountingEmbeddings(Embeddings):
    """Vectors that are a function of the text; `asked` holds every text, `fail_after` ends a run half-way."""

    def __init__(self, fail_after=None):
        self.asked = []
        self.fail_after = fail_after

    def embed_documents(self, texts):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += texts
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        numbers = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:8]]
        length = sum(number**2 for number in numbers) ** 0.5
        return [number / length for number in numbers]


@pytest.fixture
def embeddings():
    return CountingEmbeddings


@pytest.fixture
def write(tmp_path):
    root = tmp_path / "docs"
    root.mkdir()

    def write(name, content=""):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return write
