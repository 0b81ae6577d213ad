"""Old encodings are recognised, and what is no text is refused."""

import pytest

from rag.decoding import Unreadable, decode

CHINESE = "列车晚点超过六十分钟可以退还一半票价。\n退票手续费是多少？"
FRENCH = "Le café fermé à l'été. Où est la gare? Déjà vu, garçon."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "utf-8"),
        (CHINESE, "utf-8-sig"),
        (CHINESE, "utf-16"),
        (CHINESE, "utf-16-le"),
        (CHINESE, "utf-32"),
        (CHINESE, "gb18030"),
        ("繁體中文的列車時刻表與退票規定說明", "big5"),
        (FRENCH, "latin-1"),
        (FRENCH, "utf-16"),
        (FRENCH, "utf-16-be"),
        ("“Quoted” – façade", "cp1252"),
    ],
)
def test_recognised(text, encoding):
    assert decode(text.encode(encoding)) == text


def test_a_page_says_its_encoding():
    page = f'<html><meta charset="gb2312"><p>{CHINESE[:4]}</p></html>'

    assert decode(page.encode("gb18030")) == page
    assert decode("退票".encode("big5"), "big5") == "退票"
    assert decode("é".encode("latin-1"), "no-such-encoding") == "é"


def test_line_ends_are_one_kind():
    assert decode(b"a\r\nb\rc") == "a\nb\nc"


@pytest.mark.parametrize("data", [b"\x00\x01\x02\x03\x04", b"text \x00 with nul", b"\xff\xfe\x00an odd lot", bytes(range(256))])
def test_no_text_is_refused(data):
    with pytest.raises(Unreadable, match="UTF-8"):
        decode(data)
