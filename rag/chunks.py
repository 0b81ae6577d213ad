"""Cut a document into chunks: whole paragraphs, tables and code where they fit, and never across a heading."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from langchain_core.documents import Document
from langchain_text_splitters import RecursiveCharacterTextSplitter

from rag.language import language_of
from rag.section import Block, Section
from rag.sentences import ENDS, sentences

OVERLAP = 0.1  # of a chunk's length, in whole sentences or paragraphs
MAX_LINE = 4000  # a line of code that is longer is no code that anybody reads
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_FINER = ["\n", "，", "、", ", ", " ", ""]


@dataclass(frozen=True)
class _Unit:
    """What is not cut any further; `text` ends with what stands between it and the next."""

    text: str
    prose: bool = True


def cut(
    sections: Iterable[Section], *, source: str, chunk_characters: int, title: str = "", about: dict[str, object] | None = None
) -> list[Document]:
    """Return the chunks of a document in order, each of at most `chunk_characters` (but see `MAX_LINE`).

    An id is a function of source, headings, text, and the number among equals: an edit leaves the chunks of other sections
    alone. `title` becomes the highest heading, `about` is metadata that all chunks share.
    """
    chunks: list[Document] = []
    seen: Counter[str] = Counter()
    for section in sections:
        path = (title, *section.heading) if title else section.heading
        heading = " > ".join(path)
        under = _digest(source, "\n".join(path))
        seen[under] += 1
        parent = _digest(under, str(seen[under]))
        for text in _texts(section, chunk_characters):
            same = _digest(under, text)
            seen[same] += 1
            metadata = {
                "source": source, "page": section.page, "heading": heading, "language": language_of(text),
                "position": len(chunks), "parent": parent, **(about or {}),
            }  # fmt: skip
            chunks.append(Document(page_content=text, metadata=metadata, id=_digest(same, str(seen[same]))))
    return chunks


def rejoined(before: str, after: str) -> str:
    """Return two chunks that stand behind one another as one text, with the sentences that both hold at the cut once."""
    for length in range(min(len(before), len(after)), 1, -1):
        if before.endswith(after[:length]) and after[:length].rstrip()[-1:] in ENDS:
            left = before[: len(before) - length]
            if not left or left[-1] in ENDS or left[-1].isspace():
                return before + after[length:]
    return f"{before}\n{after}"


def headed(heading: str, text: str) -> str:
    """Return a chunk's text as it is embedded."""
    return f"{heading}\n{text}".strip()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


def _texts(section: Section, limit: int) -> Iterator[str]:
    """Fill chunks with units; the last units of one begin the next, where both are prose."""
    held: list[_Unit] = []
    for unit in (unit for block in section.blocks for unit in _units(block, limit)):
        if held and len(_joined([*held, unit])) > limit:
            yield _joined(held)
            held = _carried(held, limit) if unit.prose else []
            while held and len(_joined([*held, unit])) > limit:
                held.pop(0)
        held.append(unit)
    if _joined(held):
        yield _joined(held)


def _joined(units: list[_Unit]) -> str:
    return "".join(unit.text for unit in units).strip()


def _carried(units: list[_Unit], limit: int) -> list[_Unit]:
    carried: list[_Unit] = []
    for unit in reversed(units):
        if not unit.prose or sum(len(one.text) for one in [*carried, unit]) > limit * OVERLAP:
            break
        carried.insert(0, unit)
    return carried


def _units(block: Block, limit: int) -> Iterator[_Unit]:
    if block.kind == "prose":
        for paragraph in _PARAGRAPH.split(block.text):
            *begin, last = [paragraph] if len(paragraph) <= limit else _sentences(paragraph, limit)
            yield from (_Unit(text) for text in begin)
            yield _Unit(last + ("\n" if last.startswith("- ") else "\n\n"))
        return
    whole = f"{block.header}\n{block.text}".strip("\n")
    if len(whole) <= limit:
        yield _Unit(whole + "\n\n", prose=False)
        return
    header = f"{block.header}\n" if 0 < len(block.header) < limit / 2 else ""
    longest = MAX_LINE if block.kind == "code" else limit - len(header)
    for lines in _grouped(_lines(block.text, longest), limit - len(header)):
        yield _Unit(f"{header}{lines}\n\n", prose=False)


def _sentences(paragraph: str, limit: int) -> list[str]:
    finer = RecursiveCharacterTextSplitter(
        separators=_FINER, chunk_size=limit, chunk_overlap=0, keep_separator="end", strip_whitespace=False
    )
    return [part for text in sentences(paragraph) for part in ([text] if len(text) <= limit else finer.split_text(text))]


def _lines(text: str, longest: int) -> Iterator[str]:
    for line in text.split("\n"):
        for start in range(0, max(len(line), 1), longest):
            yield line[start : start + longest]


def _grouped(lines: Iterable[str], limit: int) -> Iterator[str]:
    group: list[str] = []
    length = 0
    for line in lines:
        if group and length + len(line) > limit:
            yield "\n".join(group)
            group, length = [], 0
        group.append(line)
        length += len(line) + 1
    if group:
        yield "\n".join(group)
