"""A window over a stream: no chunking changes the result, and no part of a value leaves early."""

import functools
import itertools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guards.pii import ENTITIES, Span, find_pii
from guards.stream import MAX_BLOCK, MAX_SEGMENT, TAIL, Stop, Window

BODY = "\n".join(["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"] * 5)
KEY = f"-----BEGIN PRIVATE KEY-----\n{BODY}\n-----END PRIVATE KEY-----"
RSA = f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n-----END RSA PRIVATE KEY-----"
VALUES = [
    "4111111111111111", "4111 1111 1111 1111", "jane.doe@example.com", "536-90-4399",
    "192.168.17.34",
    "GB82 WEST 1234 5698 7654 32", "13812345678", "１３８１２３４５６７８", "138\u200b1234\u200b5678", "11010519491231002X",
    "6222021234567890123", "京A12345", "北京市海淀区中关村大街27号", "password: Xk9!vTq2", "密码：Xk9!vTq2",
    KEY, RSA, "Jane Roe", "王小明",
]  # fmt: skip
WORDS = [
    "the", "number is ", "我的卡号是", "请查收", "。", "，", "\n", "order 7", "and", "(", ")", ",", "v1.2.3", "é", "😀", "电话:",
    "-", "---",
    "-----", "-----BEGIN ", "Dr. ", "e.g. ", "! ", "【", "[", "\u200b", "A.",
]  # fmt: skip


def chunked(text, cuts):
    marks = sorted({c % (len(text) + 1) for c in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


@functools.lru_cache(maxsize=100_000)
def detect(segment, context):
    found = find_pii(segment, ENTITIES, 0.4, context=context)
    names = [(segment.find(name), name) for name in ("Jane Roe", "王小明")]
    spans = [*found, *(Span(at, at + len(name), "PERSON", 0.6) for at, name in names if at >= 0)]
    kept = []
    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def window(hold, find=detect):
    return Window(find, lambda value, _text: f"<{value.entity}>", hold=hold)


def through(pieces, hold, find=detect):
    one = window(hold, find)
    return "".join(one.feed(piece) for piece in pieces) + one.finish()


@st.composite
def texts(draw):
    parts = draw(st.lists(st.sampled_from([*WORDS, *VALUES]), min_size=1, max_size=10))
    glue = draw(st.lists(st.sampled_from(["", " ", "  ", "\n"]), min_size=len(parts), max_size=len(parts)))
    return "".join(p + g for p, g in zip(parts, glue, strict=True))


@pytest.mark.parametrize("hold", ["identifier", "clause", "sentence"])
@settings(max_examples=250, deadline=None)
@given(text=texts(), cuts=st.lists(st.integers(0, 2000), max_size=25))
@example(text="我的卡号是4111111111111111请查收", cuts=[8, 12])
@example(text=f"key:{KEY}", cuts=[5, 8, 20, 40])
def test_any_chunking_gives_the_result_of_the_whole(hold, text, cuts):
    whole = through([text], hold)

    assert through(chunked(text, cuts), hold) == whole
    assert through(list(text), hold) == whole


@pytest.mark.parametrize("hold", ["identifier", "clause", "sentence"])
@settings(max_examples=150, deadline=None)
@given(text=texts(), cuts=st.lists(st.integers(0, 400), max_size=20))
def test_nothing_but_what_is_found_is_changed(hold, text, cuts):
    assert through(chunked(text, cuts), hold, lambda _segment, _context: []) == text


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from([v for v in VALUES if "password" not in v and "密码" not in v]),
    st.sampled_from(["my number is ", "我的号码是", "write to ", "First: "]),
    st.sampled_from([" please", "谢谢", "\n", "", "。"]),
    st.lists(st.integers(0, 80), max_size=12),
)
def test_no_prefix_of_a_value_is_ever_shown(value, before, after, cuts):
    """Not four characters in a row of what is hidden, at no moment of the stream."""
    one, shown = window("sentence"), ""
    for piece in [*chunked(before + value + after, cuts), None]:
        shown += one.finish() if piece is None else one.feed(piece)
        said = re.sub(r"<[A-Z_]+>", "|", shown)
        assert not any(value[i : i + 4] in said for i in range(max(1, len(value) - 3)))

    assert "<" in shown


@pytest.mark.parametrize("hold", ["identifier", "clause", "sentence"])
@pytest.mark.parametrize("before", ["", "key:", "Here is it: ", "the key: Dr. A ", "如下：", "私钥", "------"])
@pytest.mark.parametrize("key", [KEY, RSA, KEY + RSA, f"{KEY} and {RSA}", KEY.split("-----END", maxsplit=1)[0]])
def test_a_private_key_is_hidden_as_a_whole_wherever_it_begins(hold, before, key):
    for size in (1, 7, 10_000):
        text = before + key + "\n"
        shown = through([text[i : i + size] for i in range(0, len(text), size)], hold)

        assert "MIIE" not in shown
        assert "U" + "t9Us8" not in shown
        assert "<SECRET_PRIVATE_KEY>" in shown


def test_every_single_cut_of_a_mixed_text():
    text = "Mail jane.doe@example.com or 电话13812345678, card 4111 1111 1111 1111."
    whole = through([text], "clause")

    assert whole == "Mail <EMAIL_ADDRESS> or 电话<CN_MOBILE>, card <CREDIT_CARD>."
    for cut in range(len(text) + 1):
        assert through([text[:cut], text[cut:]], "clause") == whole


@pytest.mark.parametrize("at", [-20, -8, -1, 0, 1, 15])
@pytest.mark.parametrize("hold", ["identifier", "clause", "sentence"])
def test_a_value_at_the_border_of_a_run_without_end_is_found(at, hold):
    card = "4111111111111111"
    for border in (TAIL, MAX_SEGMENT - TAIL, MAX_SEGMENT):
        text = "x" * (border + at - 1) + "/" + card + "/" + "y" * MAX_SEGMENT + " end"
        whole = through([text], hold)

        assert card[:4] not in whole
        assert through([text[i : i + 61] for i in range(0, len(text), 61)], hold) == whole


def test_what_is_held_back_is_bounded():
    for text in ("x" * 3 * MAX_SEGMENT, "1 " * 2 * MAX_SEGMENT, "-----BEGIN " * MAX_SEGMENT, KEY[:60] + "A" * 2 * MAX_BLOCK):
        one, shown, longest = window("clause", lambda _segment, _context: []), 0, 0
        for at in range(0, len(text), 97):
            shown += len(one.feed(text[at : at + 97]))
            longest = max(longest, min(at + 97, len(text)) - shown)

        assert longest <= MAX_BLOCK + 200


def test_one_value_longer_than_the_window_is_hidden_to_its_end():
    def everything(segment, _context):
        return [Span(0, len(segment), "SECRET", 1.0)] if len(segment) > 5 else []

    text = "a" * (3 * MAX_SEGMENT) + " b"
    for size in (50, 1001, len(text)):
        assert through([text[i : i + size] for i in range(0, len(text), size)], "identifier", everything) == "<SECRET> b"


def test_a_stop_ends_the_text_before_the_segment():
    def stop(_value, _text):
        raise Stop

    one = Window(detect, stop, hold="clause")

    assert one.feed("write to a@example.com now. ") == "write to "
    assert one.stopped is not None
    assert one.feed("more ") + one.finish() == ""


@pytest.mark.parametrize("name", ["Dr. Jane", "J. Roe", "Mrs. Roe"])
def test_a_title_or_an_initial_does_not_end_a_sentence(name):
    asked = []
    through([f"Ask {name} about it. Then go."], "sentence", lambda segment, _context: asked.append(segment) or [])

    assert asked[0] == f"Ask {name} about it."
