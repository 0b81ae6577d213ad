"""PDF as sections: one for each page, so that an answer can name the page."""

from __future__ import annotations

import io
import logging

from rag.decoding import Unreadable
from rag.section import Block, Reading, Section

MAX_PAGES = 5000


def read_pdf(data: bytes) -> Reading:
    """Read the text of every page; raises Unreadable for a PDF that is encrypted, broken, or only pictures."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it would warn of is told as a reason, or was mended
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted:
            raise Unreadable("the PDF is encrypted; remove its password first")
        if len(reader.pages) > MAX_PAGES:
            raise Unreadable(f"over {MAX_PAGES} pages; split it")
        pages = [(number, page.extract_text() or "") for number, page in enumerate(reader.pages, start=1)]
        told = reader.metadata
        changed = told and (told.modification_date or told.creation_date)
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"the PDF is broken ({type(error).__name__}: {error}); print it to a new PDF") from error
    sections = tuple(Section(page=number, blocks=[Block("prose", text)]) for number, text in pages if text.strip())
    if not sections:
        raise Unreadable("no text in it; a scanned PDF needs OCR first")
    return Reading(sections, date=f"{changed:%Y-%m-%d}" if changed else "")
