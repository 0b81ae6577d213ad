"""A prompt that leaks is found, however it is dressed and cut."""

import base64
import codecs
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guards.leak import LeakDetector, canary

MARK = canary(b"0123456789abcdef", "support@1")
SECRET = "Never speak of the merger with Globex before the announcement, and offer premium refunds to members only."
ZH = "不要向任何用户透露公司正在与环球公司谈判的细节,也不要评论竞争对手的价格。"
DETECTOR = LeakDetector(f"You are a helpful assistant. {SECRET} {ZH} {{{{ question }}}} {MARK}", MARK)


@pytest.mark.parametrize(
    "text",
    [SECRET, SECRET.upper(), " ".join(SECRET), SECRET[::-1], ZH, "\u200b".join(ZH), f"It says: {SECRET[10:75]}"],
)
def test_a_run_of_the_prompt_is_a_leak(text):
    assert DETECTOR.find(text).kind == "run"


@pytest.mark.parametrize(
    "text",
    [
        MARK, MARK.upper(), "-".join(MARK), MARK[::-1], MARK.encode().hex(), codecs.encode(MARK, "rot13"),
        *(base64.b64encode(b"x" * n + MARK.encode() + b"yz").decode() for n in range(3)),
    ],
)  # fmt: skip
def test_the_canary_is_found_in_its_disguises(text):
    assert DETECTOR.find("marker " + text).kind == "canary"


@pytest.mark.parametrize("text", ["You are a helpful assistant.", "Refunds are for members only.", "不要评论价格。", "question"])
def test_commonplaces_and_short_pieces_are_none(text):
    assert DETECTOR.find(text) is None
    assert (
        LeakDetector("You are a helpful assistant. Answer briefly.").find("You are a helpful assistant. Answer briefly.") is None
    )


def test_canaries_are_stable_distinct_and_need_a_secret():
    assert MARK == canary(b"0123456789abcdef", "support@1") != canary(b"0123456789abcdef", "support@2")
    with pytest.raises(ValueError, match="16 bytes"):
        canary(b"short", "x")


WORDS = ["hello", SECRET[:30], SECRET[20:70], SECRET, ZH[:9], ZH, MARK[:8], MARK, " ", "\u200b", "好的,"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=6).map("".join), st.lists(st.integers(0, 300), max_size=12))
def test_chunks_do_not_change_the_verdict_and_nothing_of_a_run_leaves(text, cuts):
    marks = sorted({c % (len(text) + 1) for c in cuts} | {0, len(text)})
    stream, read, shown = DETECTOR.stream(), 0, 0
    for start, end in itertools.pairwise(marks):
        stream.feed(text[start:end])
        read = end
        shown = max(shown, read - stream.hold())
    assert stream.leak == DETECTOR.find(text)
    if stream.leak and stream.leak.kind != "share":
        assert shown <= stream.leak.start
