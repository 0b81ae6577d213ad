"""Personal data by pattern, glued to Chinese or not."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.pii import BLOCK_ENTITIES, CLAUSE_ENTITIES, DEFAULT_ENTITIES, ENTITIES, find_pii

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "entity", "value"),
    [
        ("我的卡号是4111111111111111请查收", "CREDIT_CARD", "4111111111111111"),
        ("邮箱zhang@example.com谢谢", "EMAIL_ADDRESS", "zhang@example.com"),
        ("身份证11010519491231002X。", "CN_ID_CARD", "11010519491231002X"),
        ("身份证110105194912310021(最后一位打错)", "CN_ID_CARD", "110105194912310021"),
        ("手机+86 138-1234-5678", "CN_MOBILE", "+86 138-1234-5678"),
        ("座机010-62345678", "CN_LANDLINE", "010-62345678"),
        ("车牌京A12345", "CN_PLATE", "京A12345"),
        ("服务器192.168.17.34在线", "IP_ADDRESS", "192.168.17.34"),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN_CODE", "DE89 3704 0044 0532 0130 00"),
        ("SSN 536-90-4399", "US_SSN", "536-90-4399"),
        ("call (212) 555-0123 today", "PHONE_NUMBER", "(212) 555-0123"),
    ],
)
def test_finds(text, entity, value):
    [span] = find_pii(text, ENTITIES, 0.4)

    assert (span.entity, text[span.start : span.end]) == (entity, value)


@pytest.mark.parametrize(
    "text",
    ["version 3.11.7 of 2024-01-15", "订单20240115001已发货", "1607635102.00 seconds", "chapter 12, page 345", "no digits here"],
)
def test_leaves_alone(text):
    assert find_pii(text, ENTITIES, 0.4) == []


def test_only_the_entities_asked_for():
    assert find_pii("jane@example.com 13812345678", ("CN_MOBILE",), 0.4)[0].entity == "CN_MOBILE"


def test_the_detector_does_without_torch():
    """The gateway's process stays light; `thinc` would import torch where it finds it."""
    code = "import sys; from guards import pii; pii.find_pii('a@b.com', pii.ENTITIES, 0.4); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert out.stdout.strip() == "False"


def test_context_raises_scores_and_is_never_reported():
    assert find_pii("3312 4477", ENTITIES, 0.4) == []
    [span] = find_pii("3312 4477", ENTITIES, 0.4, context="a@example.com, phone: ")

    assert (span.start, span.end, span.entity) == (0, 9, "PHONE_NUMBER")


def test_a_value_that_begins_in_the_context_is_reported_from_the_text_on():
    [span] = find_pii("@example.com", ENTITIES, 0.4, context="mail jane")

    assert (span.start, span.end, span.entity) == (0, 12, "EMAIL_ADDRESS")


@given(
    st.sampled_from(["电话：", "phone ", "卡号是", "x" * 40, ""]),
    st.sampled_from(["6222021234567890", "3312 4477", "4.1.2.8"]),
)
def test_context_counts_as_if_it_were_text(context, text):
    apart = find_pii(text, ENTITIES, 0.4, context=context)
    whole = find_pii(context + text, ENTITIES, 0.4)

    assert [(s.start + len(context), s.end + len(context), s.entity) for s in apart] == [
        (s.start, s.end, s.entity) for s in whole
    ]


def test_the_default_leaves_urls_alone():
    assert set(DEFAULT_ENTITIES) < set(ENTITIES)
    assert find_pii("see https://example.com", DEFAULT_ENTITIES, 0.4) == []
    assert set(ENTITIES) >= CLAUSE_ENTITIES | BLOCK_ENTITIES


@given(st.text(alphabet="0123456789-. ()+/@:abX中电话号", max_size=80))
def test_spans_are_in_order_and_apart(text):
    spans = find_pii(text, ENTITIES, 0.4)

    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    assert all(0 <= s.start < s.end <= len(text) and 0.4 <= s.score <= 1 for s in spans)
