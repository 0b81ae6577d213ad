"""DOCX as sections: heading styles, paragraphs, lists and tables, from a zip file that is not trusted."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

from rag.decoding import Unreadable
from rag.section import Block, Outline, Reading, table

MAX_PART_BYTES = 100 * 1024 * 1024
MAX_RATIO = 200
_SMALL = 1024 * 1024  # any ratio is harmless below
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_MODIFIED = "{http://purl.org/dc/terms/}modified"
_OLE = b"\xd0\xcf\x11\xe0"
_HEADING = re.compile(r"(?:heading|标题|標題)\s*([1-9])", re.IGNORECASE)


def read_docx(data: bytes) -> Reading:
    """Read a document; raises Unreadable where it is encrypted, broken, or unpacks to more than is sane."""
    if data.startswith(_OLE):
        raise Unreadable("encrypted, or in Word's old format; save it as .docx without a password")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            body = _part(archive, "word/document.xml")
            styles = _part(archive, "word/styles.xml")
            core = _part(archive, "docProps/core.xml")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise Unreadable(f"not a DOCX file ({error}); save it anew") from error
    if body is None:
        raise Unreadable("there is no word/document.xml in it; save it as .docx anew")
    levels = _levels(styles)
    outline = Outline()
    for element in _flat(body.find(f"{_W}body")):
        if element.tag == f"{_W}tbl":
            rows = [[_text(cell) for cell in row.iterchildren(f"{_W}tc")] for row in element.iterchildren(f"{_W}tr")]
            outline.add(table([row for row in rows if any(row)]))
            continue
        style, text = element.find(f"{_W}pPr/{_W}pStyle"), _text(element)
        level = levels.get(style.get(f"{_W}val")) if style is not None else None
        if level is not None:
            outline.head(level, text)
        else:
            listed = element.find(f"{_W}pPr/{_W}numPr") is not None
            outline.add(Block("prose", f"- {text}" if listed and text else text))
    return Reading(outline.sections(), date=((core.findtext(_MODIFIED) if core is not None else "") or "")[:10])


def _part(archive: zipfile.ZipFile, name: str) -> Any:
    from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]  compiled, without stubs

    try:
        told = archive.getinfo(name)
    except KeyError:
        return None
    if told.file_size > MAX_PART_BYTES or (told.file_size > _SMALL and told.file_size > MAX_RATIO * told.compress_size):
        raise Unreadable(f"{name} in it unpacks from {told.compress_size} to {told.file_size} bytes; that is no document")
    with archive.open(told) as packed:
        content = packed.read(MAX_PART_BYTES + 1)
    if len(content) > MAX_PART_BYTES:
        raise Unreadable(f"{name} in it unpacks to over {MAX_PART_BYTES // 2**20} MiB")
    try:
        return etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except etree.XMLSyntaxError as error:
        raise Unreadable(f"{name} in it is broken ({error}); save it anew") from error


def _levels(styles: Any) -> dict[str | None, int]:
    levels: dict[str | None, int] = {}
    for style in [] if styles is None else styles.iter(f"{_W}style"):
        named, outlined = style.find(f"{_W}name"), style.find(f"{_W}pPr/{_W}outlineLvl")
        name = "" if named is None else named.get(f"{_W}val") or ""
        if match := _HEADING.match(name):
            levels[style.get(f"{_W}styleId")] = int(match[1])
        elif name.lower() == "title":
            levels[style.get(f"{_W}styleId")] = 0
        elif outlined is not None and (outlined.get(f"{_W}val") or "").isdigit() and int(outlined.get(f"{_W}val")) < 9:  # noqa: PLR2004  9: body text
            levels[style.get(f"{_W}styleId")] = int(outlined.get(f"{_W}val")) + 1
    return levels


def _flat(parent: Any) -> Any:
    """Yield the paragraphs and tables of a body, also those in content controls."""
    for element in [] if parent is None else parent:
        if element.tag in {f"{_W}p", f"{_W}tbl"}:
            yield element
        elif element.tag == f"{_W}sdt":
            yield from _flat(element.find(f"{_W}sdtContent"))


def _text(element: Any) -> str:
    pieces: list[str] = []
    for node in element.iter(f"{_W}t", f"{_W}tab", f"{_W}br", f"{_W}cr", f"{_W}p"):
        if any(above.tag == _FALLBACK for above in node.iterancestors()):
            continue
        pieces.append((node.text or "") if node.tag == f"{_W}t" else "\t" if node.tag == f"{_W}tab" else "\n")
    return "".join(pieces).strip()
