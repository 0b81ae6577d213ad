"""Bytes of a text file as text: UTF-8 first, then what a mark, a declaration or the bytes themselves say."""

from __future__ import annotations

import codecs
import re

LEGACY = ["gb18030", "big5", "shift_jis", "cp1252"]  # latin-1 is a part of cp1252
_SAMPLE = 64 * 1024
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?([A-Za-z0-9_.:-]{2,40})""")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\ufffe\uffff]")


class Unreadable(ValueError):
    """A document that cannot be read; the message says why and what to do."""


def decode(data: bytes, declared: str = "") -> str:
    """Return the text with one kind of line ends; raises Unreadable where no encoding fits.

    `declared` is what a server said. Chinese in GB18030 or Big5, Japanese in Shift JIS, European text in Latin-1 and
    UTF-16 are recognised; a few bytes in an old encoding can be taken for another one, so UTF-8 is always better.
    """
    text = _decoded(data, declared)
    if _CONTROLS.search(text[:_SAMPLE]):
        raise Unreadable("it holds control characters, so it is no text; check the file, or save it as UTF-8")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes, declared: str) -> str:
    for encoding in ["utf-8", *_told(data, declared)]:
        try:
            return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    from charset_normalizer import from_bytes

    sample = data[: _SAMPLE - _SAMPLE % 2]
    candidates = ["utf_16_le", "utf_16_be"] if b"\0" in sample else LEGACY
    best = from_bytes(sample, cp_isolation=candidates).best()
    if best is not None:
        try:
            return data.decode(best.encoding)
        except UnicodeDecodeError:
            pass
    raise Unreadable("its encoding is not recognised; save it as UTF-8")


def _told(data: bytes, declared: str) -> list[str]:
    marked = [encoding for mark, encoding in _MARKS if data.startswith(mark)][:1]
    found = _DECLARED.search(data[:1024]) if data.lstrip()[:1] == b"<" else None
    names = [declared, found[1].decode("ascii") if found else ""]
    # GB2312 is what pages in GB18030 say of themselves.
    return marked + ["gb18030" if name.lower() in {"gb2312", "gbk"} else name for name in names if name]
