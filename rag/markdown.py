"""Markdown as sections: CommonMark's headings of both kinds, fenced code, and tables."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from rag.section import Block, Outline, Reading

_FRONT = re.compile(r"\A---\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)


def read_markdown(text: str) -> Reading:
    """Read a page; a front matter's `title` and `date` are taken, and the rest of it is left out."""
    from markdown_it import MarkdownIt

    front, text = _front_matter(text)
    lines = text.split("\n")
    outline, done = Outline(), 0

    def prose(end: int) -> None:
        outline.add(Block("prose", "\n".join(lines[done:end]).strip("\n")))

    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for token, inline in zip(tokens, [*tokens[1:], None], strict=False):
        if token.map is None or token.map[0] < done:
            continue
        start, end = token.map
        if token.type == "heading_open" and token.level == 0:
            prose(start)
            outline.head(int(token.tag[1]), _plain(inline.content if inline else ""))
        elif token.type in {"fence", "code_block"}:
            prose(start)
            outline.add(Block("code", "\n".join(lines[start:end]).strip("\n")))
        elif token.type == "table_open":
            prose(start)
            outline.add(Block("table", "\n".join(lines[start + 2 : end]).rstrip(), "\n".join(lines[start : start + 2])))
        else:
            continue
        done = end
    prose(len(lines))
    day = front.get("date")
    given = day.isoformat()[:10] if isinstance(day, date) else ""
    return Reading(outline.sections(), title=str(front.get("title") or ""), date=given)


def _plain(heading: str) -> str:
    return re.sub(r"[*`]|(?<!\w)_|_(?!\w)|!?\[([^\]]*)\]\([^)]*\)", lambda match: match[1] or "", heading)


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
    import yaml

    match = _FRONT.match(text)
    if match is None:
        return {}, text
    try:
        found = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return {}, text
    return (found, text[match.end() :]) if isinstance(found, dict) else ({}, text)
