"""Telephone numbers: with a sign that they are one, or words before them that say so."""

import pytest

from guards.pii import ENTITIES, find_pii


def found(text):
    return [(span.entity, text[span.start : span.end]) for span in find_pii(text, ENTITIES, 0.4)]


@pytest.mark.parametrize(
    ("text", "entity", "value"),
    [
        ("+49 30 901820", "PHONE_NUMBER", "+49 30 901820"),
        ("or 212-555-0123 x44 today", "PHONE_NUMBER", "212-555-0123 x44"),
        ("reach me at 3312 4477", "PHONE_NUMBER", "3312 4477"),
        ("Fax: 04 9215 7700", "PHONE_NUMBER", "04 9215 7700"),
        ("电话13812345678", "CN_MOBILE", "13812345678"),
        ("他的号码+8613812345678", "CN_MOBILE", "+8613812345678"),
        ("座机：021-6234 5678转801", "CN_LANDLINE", "021-6234 5678转801"),
        ("回电075583765566即可", "CN_LANDLINE", "075583765566"),
        ("客服热线4008123123", "CN_LANDLINE", "4008123123"),
        ("拨打固话62345678", "CN_LANDLINE", "62345678"),
    ],
)
def test_finds(text, entity, value):
    assert found(text) == [(entity, value)]


@pytest.mark.parametrize(
    "text",
    [
        "2018-10-30 12:00",
        "pages 100 200 300",
        "12.14 (115)",
        "20 41 49 20 74",
        "1 000 000 euros",
        "ratio 3.14159265",
        "3312 4477",
        "99999999",
    ],
)
def test_leaves_alone(text):
    assert found(text) == []


def test_asked_for_alone_a_chinese_number_is_a_phone_number():
    assert [s.entity for s in find_pii("13812345678", ("PHONE_NUMBER",), 0.4)] == ["PHONE_NUMBER"]
