"""Read a document by its kind."""

from __future__ import annotations

from rag.decoding import Unreadable, decode
from rag.markdown import read_markdown
from rag.markup import read_html
from rag.pdf import read_pdf
from rag.section import Block, Reading, Section, read_written
from rag.spreadsheet import read_csv
from rag.word import read_docx


def read_text(text: str) -> Reading:
    """Read a text without marks of structure."""
    return Reading((Section(blocks=[Block("prose", text)]),))


_BINARY = {".pdf": read_pdf, ".docx": read_docx}
_TEXT = {
    ".md": read_markdown, ".markdown": read_markdown, ".txt": read_text, ".html": read_html, ".htm": read_html,
    ".csv": read_csv, ".tsv": read_csv,
}  # fmt: skip
READERS = (*_TEXT, *_BINARY)
WRITTEN = ".sections"  # what `written` makes of a document that was read
ROW_KINDS = (*_TEXT, WRITTEN)  # that a text in a row may be of


def read_document(data: bytes, kind: str, declared: str = "") -> Reading:
    """Return the structure of a document of a kind (a suffix in READERS, or WRITTEN); raises Unreadable with what to do.

    `declared` is the encoding that a server told.
    """
    if kind == WRITTEN:
        reading = read_written(data)
    else:
        reading = _BINARY[kind](data) if kind in _BINARY else _TEXT[kind](decode(data, declared))
    if not any(block.text.strip() for section in reading.sections for block in section.blocks):
        raise Unreadable("no text in it")
    return reading
