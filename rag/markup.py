"""HTML as sections: headings, running text, lists, tables and preformatted code; no scripts, menus or hidden parts."""

from __future__ import annotations

import re
from typing import Any

from rag.decoding import Unreadable
from rag.section import Block, Outline, Reading, table

_LEFT_OUT = frozenset({"script", "style", "nav", "template", "noscript", "svg", "iframe", "select", "button", "head", "dialog"})
_BLOCKS = frozenset(
    {
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "center",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hr",
        "html",
        "li",
        "main",
        "ol",
        "p",
        "section",
        "summary",
        "ul",
    }
)
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_DAY = re.compile(r"(?:19|20)\d\d-[01]\d-[0-3]\d")
_DATES = frozenset({"date", "dc.date", "dcterms.modified", "last-modified", "article:modified_time", "article:published_time"})


def read_html(text: str) -> Reading:
    """Read a page; raises Unreadable where there is no element in it."""
    from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]  compiled, without stubs

    parser = etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True)
    tree: Any = etree.fromstring(text.encode("utf-8", "replace"), parser)
    if tree is None:
        raise Unreadable("there is no element in it; check that it is HTML")
    page = _Page()
    walk = etree.iterwalk(tree, events=("start", "end"))
    for event, element in walk:
        if event == "end":
            page.leave(element)
        elif page.enter(element):
            walk.skip_subtree()
    page.flush()
    return Reading(page.outline.sections(), title=" ".join((tree.findtext(".//title") or "").split()), date=_date(tree))


class _Page:
    """A page as it is walked through: running text is gathered until a block begins or ends."""

    def __init__(self) -> None:
        self.outline = Outline()
        self._pieces: list[str] = []
        self._bullet = ""

    def flush(self) -> None:
        """Close the paragraph."""
        text = " ".join("".join(self._pieces).split())
        self._pieces.clear()
        if text:
            self.outline.add(Block("prose", self._bullet + text))
            self._bullet = ""

    def leave(self, element: Any) -> None:
        """Take what follows an element."""
        if element.tag in _BLOCKS:
            self.flush()
        self._pieces.append(element.tail or "")

    def enter(self, element: Any) -> bool:
        """Take an element's beginning; return whether it was taken or left out with all that is in it."""
        tag = element.tag
        if tag in _LEFT_OUT or element.get("hidden") is not None or element.get("aria-hidden") == "true":
            return True
        whole = tag in _HEADINGS or tag in {"pre", "table"}
        if whole or tag in _BLOCKS or tag == "br":
            self.flush()
        if tag in _HEADINGS:
            self.outline.head(int(tag[1]), _text(element))
        elif tag == "pre":
            self.outline.add(Block("code", _text(element).strip("\n")))
        elif tag == "table":
            rows = [[_text(cell) for cell in row.iterchildren("td", "th")] for row in element.iter("tr")]
            self.outline.add(table([row for row in rows if any(cell.strip() for cell in row)]))
        else:
            self._bullet = "- " if tag == "li" else self._bullet
            self._pieces.append(element.text or "")
        return whole


def _text(element: Any) -> str:
    return "".join(element.itertext(with_tail=False))


def _date(tree: Any) -> str:
    for meta in tree.iter("meta"):
        name = (meta.get("name") or meta.get("property") or meta.get("http-equiv") or "").lower()
        found = _DAY.search(meta.get("content") or "") if name in _DATES else None
        if found:
            return found[0]
    return ""
