"""Cards, addresses of the net, dates of birth, social security numbers."""

import pytest

from guards.pattern import luhn
from guards.pii import ENTITIES, find_pii


def found(text):
    return [(span.entity, text[span.start : span.end]) for span in find_pii(text, ENTITIES, 0.4)]


def test_luhn():
    assert luhn("4111111111111111")
    assert not luhn("4111111111111112")


@pytest.mark.parametrize(
    ("text", "entity", "value"),
    [
        ("pay 3782 822463 10005 now", "CREDIT_CARD", "3782 822463 10005"),
        ("30569309025904", "CREDIT_CARD", "30569309025904"),
        ("4222222222222", "CREDIT_CARD", "4222222222222"),
        ("180012345678905", "CREDIT_CARD", "180012345678905"),
        ("my card 4111 1111 1111 1112", "CREDIT_CARD", "4111 1111 1111 1112"),
        ("from 2001:db8::ff00:42:8329 on", "IP_ADDRESS", "2001:db8::ff00:42:8329"),
        ("server 4.1.2.8", "IP_ADDRESS", "4.1.2.8"),
        ("10.0.0.1", "IP_ADDRESS", "10.0.0.1"),
        ("见https://a.example/b?c=d。", "URL", "https://a.example/b?c=d"),
        ("visit www.example.museum.", "URL", "www.example.museum"),
        ("visit example.org/x, please", "URL", "example.org/x"),
        ("SSN 536904399", "US_SSN", "536904399"),
        ("born on 3 May 1980 in", "DATE_OF_BIRTH", "3 May 1980"),
        ("出生日期：1980年5月3日", "DATE_OF_BIRTH", "1980年5月3日"),
    ],
)
def test_finds(text, entity, value):
    assert found(text) == [(entity, value)]


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112 rows",
        "0000000000000000",
        "release 4.1.2.8",
        "at 12:30:45",
        "std::vector and a::b",
        "see README.md and app.py",
        "e.g. this. Next one",
        "number 536904399",
        "on 3 May 1980",
    ],
)
def test_leaves_alone(text):
    assert found(text) == []
