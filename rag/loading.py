"""Read a folder of documents, and cut them into chunks that keep their source, page and headings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_core.documents import Document
from langchain_text_splitters import MarkdownHeaderTextSplitter, RecursiveCharacterTextSplitter

if TYPE_CHECKING:
    from collections.abc import Iterator

READERS = (".md", ".markdown", ".txt", ".html", ".htm", ".pdf")
MAX_FILE_BYTES = 50 * 1024 * 1024
HEADINGS = [("#", "h1"), ("##", "h2"), ("###", "h3")]
# Sentences of both languages before words; Chinese has no spaces to fall back to.
SEPARATORS = ["\n\n", "\n", "。", "！", "？", "；", ". ", "! ", "? ", "; ", "，", ", ", " ", ""]


@dataclass
class Report:
    """What became of each file: read, or refused and why."""

    read: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def files_of(folder: Path) -> list[Path]:
    """Return the files below a folder, in order; links that lead out of it and hidden files are left out."""
    root = folder.resolve()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.resolve().is_relative_to(root)
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def load_folder(folder: Path, chunk_characters: int) -> tuple[list[Document], Report]:
    """Return the chunks of every readable file, and a report; a broken file is refused and does not stop the others."""
    report, chunks = Report(), []
    for path in files_of(folder):
        source = path.relative_to(folder).as_posix()
        try:
            found = list(_chunks(path, source, chunk_characters))
        except Exception as error:  # noqa: BLE001  the readers raise what they like
            report.refused[source] = f"{type(error).__name__}: {error}"
            continue
        if not found:
            report.refused[source] = "no text in it (a scanned PDF needs OCR first)"
            continue
        report.read.append(source)
        chunks += found
    return chunks, report


def _chunks(path: Path, source: str, chunk_characters: int) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        msg = f"unknown kind {suffix or path.name!r}; readable are {', '.join(READERS)}"
        raise ValueError(msg)
    if path.stat().st_size > MAX_FILE_BYTES:
        msg = f"over {MAX_FILE_BYTES // 2**20} MiB"
        raise ValueError(msg)
    splitter = RecursiveCharacterTextSplitter(
        separators=SEPARATORS, chunk_size=chunk_characters, chunk_overlap=chunk_characters // 10, keep_separator="end"
    )
    number = 0
    for section in _sections(path, suffix):
        heading = " > ".join(str(section.metadata[key]) for _, key in HEADINGS if section.metadata.get(key))
        for text in splitter.split_text(section.page_content):
            if not text.strip():
                continue
            number += 1
            identity = hashlib.sha256(f"{source}\0{number}\0{text}".encode()).hexdigest()[:32]
            metadata = {"source": source, "page": section.metadata.get("page", 0), "heading": heading}
            yield Document(page_content=text.strip(), metadata=metadata, id=identity)


def _sections(path: Path, suffix: str) -> list[Document]:
    if suffix == ".pdf":
        return _pdf(path)
    text = path.read_text(encoding="utf-8-sig")
    if suffix in {".md", ".markdown"}:
        return MarkdownHeaderTextSplitter(HEADINGS, strip_headers=True).split_text(text)
    if suffix in {".html", ".htm"}:
        return _html(text)
    return [Document(page_content=text)]


def _html(text: str) -> list[Document]:
    from lxml import html

    tree = html.fromstring(text)
    for element in tree.xpath("//script | //style | //nav | //template"):
        element.drop_tree()
    sections: list[Document] = []
    headings: dict[str, str] = {}
    lines: list[str] = []

    def close() -> None:
        if lines:
            sections.append(Document(page_content="\n".join(lines), metadata=dict(headings)))
            lines.clear()

    for element in tree.iter("h1", "h2", "h3", "p", "li", "td", "th", "pre", "dt", "dd", "blockquote"):
        content = " ".join(element.text_content().split())
        if element.tag in {"h1", "h2", "h3"}:
            close()
            for key in [key for key in headings if key >= element.tag]:
                del headings[key]
            headings[element.tag] = content
        elif content:
            lines.append(content)
    close()
    return sections


def _pdf(path: Path) -> list[Document]:
    from pypdf import PdfReader

    reader = PdfReader(path)
    if reader.is_encrypted:
        msg = "the PDF is encrypted; remove its password first"
        raise ValueError(msg)
    return [
        Document(page_content=page.extract_text() or "", metadata={"page": number})
        for number, page in enumerate(reader.pages, start=1)
    ]
