"""A document as its readers give it: sections under headings, made of blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from rag.decoding import Unreadable

Kind = Literal["prose", "code", "table"]


@dataclass(frozen=True)
class Block:
    """A piece of a section that is cut in its own way.

    Prose is cut at paragraphs and sentences, code between lines, a table between rows; `header` is said again with
    each part of a table that is cut.
    """

    kind: Kind
    text: str
    header: str = ""


@dataclass
class Section:
    """What stands under one heading; `heading` is the path to it, `page` counts from 1, 0 where there are no pages."""

    heading: tuple[str, ...] = ()
    page: int = 0
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """What a reader found in a document; `date` is YYYY-MM-DD as the document says, or nothing."""

    sections: tuple[Section, ...]
    title: str = ""
    date: str = ""


def written(reading: Reading) -> str:
    """Return a reading as JSON, which `read_written` reads."""
    return json.dumps(asdict(reading), ensure_ascii=False)


def read_written(data: bytes) -> Reading:
    """Read what `written` wrote; raises Unreadable."""
    try:
        return TypeAdapter(Reading).validate_json(data)
    except ValidationError as error:
        raise Unreadable("not the sections of a document that was read") from error


class Outline:
    """Sections in the making: headings open them, blocks fill the last one."""

    def __init__(self) -> None:
        self._sections = [Section()]
        self._path: list[tuple[int, str]] = []

    def head(self, level: int, text: str) -> None:
        """Open a section under a heading; 1 is the highest level."""
        title = " ".join(text.split())
        if title:
            self._path = [*((above, name) for above, name in self._path if above < level), (level, title)]
            self._sections.append(Section(tuple(name for _, name in self._path)))

    def add(self, block: Block) -> None:
        """Add a block to the section that is open."""
        if block.text.strip() or block.header:
            self._sections[-1].blocks.append(block)

    def sections(self) -> tuple[Section, ...]:
        """Return the sections that hold something; a heading that stands alone, without sections below it, is its own text."""
        return tuple(_kept(self._sections))


def _kept(sections: Sequence[Section]) -> Iterator[Section]:
    for number, section in enumerate(sections):
        below = sections[number + 1].heading if number + 1 < len(sections) else ()
        if section.blocks:
            yield section
        elif section.heading and below[: len(section.heading)] != section.heading:
            yield Section(section.heading, section.page, [Block("prose", section.heading[-1])])


def table(rows: Sequence[Sequence[str]]) -> Block:
    """Return a table as Markdown writes it; the first row is its header."""
    width = max((len(row) for row in rows), default=0)
    lines = ["| " + " | ".join(_cell(row[i] if i < len(row) else "") for i in range(width)) + " |" for row in rows]
    header = "\n".join([lines[0], "|" + " --- |" * width]) if len(lines) > 1 else ""
    return Block("table", "\n".join(lines[1:] if header else lines), header)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
