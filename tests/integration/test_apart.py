"""A document read in a process of its own."""

import pytest

from rag import apart
from rag.apart import read_apart
from rag.decoding import Unreadable
from rag.loading import read_document


def test_it_reads_what_the_readers_read():
    page = "# Café 早\nText.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n".encode()

    assert read_apart(page, ".md") == read_document(page, ".md")


@pytest.mark.parametrize(
    ("data", "kind", "told"),
    [(b"%PDF-1.4 broken", ".pdf", "the PDF is broken"), (b"no zip", ".docx", "not a DOCX file"), (b" ", ".txt", "no text in it")],
)
def test_what_cannot_be_read_is_told(data, kind, told):
    with pytest.raises(Unreadable, match=told):
        read_apart(data, kind)


def test_a_reader_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(apart, "SECONDS", 0.01)
    with pytest.raises(Unreadable, match="to read; split it"):
        read_apart(b"text", ".txt")


def test_a_reader_that_ends(monkeypatch):
    """As one does that has no memory left."""
    monkeypatch.setattr(apart.sys, "executable", "/bin/false")
    with pytest.raises(Unreadable, match="maybe out of memory"):
        read_apart(b"text", ".txt")
