"""Masking in streams: no chunking changes the result, and no part of a value leaves early."""

import functools
import itertools

from guards.mask import MAX_RUN, Masker, mask, pii_masker
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guards.pii import ENTITIES, Span, find_pii

VALUES = {
    "4111111111111111": "CREDIT_CARD",
    "4111 1111 1111 1111": "CREDIT_CARD",
    "jane.doe@example.com": "EMAIL_ADDRESS",
    "536-90-4399": "US_SSN",
    "192.168.17.34": "IP_ADDRESS",
    "GB82 WEST 1234 5698 7654 32": "IBAN_CODE",
    "13812345678": "CN_MOBILE",
    "11010519491231002X": "CN_ID_CARD",
    "6222021234567890123": "CN_BANK_CARD",
    "京A12345": "CN_PLATE",
}
WORDS = ["the", "number", "is", "我的卡号是", "请查收", "。", "\n", "order 7", "and", "(", ")", ",", "v1.2.3", "é", "😀", "电话:"]


def chunked(text, cuts):
    marks = sorted({c % (len(text) + 1) for c in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


@functools.cache
def detect(run):
    return find_pii(run, ENTITIES, 0.4)


def through(pieces):
    masker = Masker(detect)
    return "".join(masker.feed(piece) for piece in pieces) + masker.finish()


@st.composite
def texts(draw):
    parts = draw(st.lists(st.sampled_from([*WORDS, *VALUES]), min_size=1, max_size=12))
    glue = draw(st.lists(st.sampled_from(["", " ", "  ", "\n"]), min_size=len(parts), max_size=len(parts)))
    return "".join(p + g for p, g in zip(parts, glue, strict=True))


@settings(max_examples=400, deadline=None)
@given(texts(), st.lists(st.integers(0, 400), max_size=20))
@example("我的卡号是4111111111111111请查收", [8, 12])
def test_any_chunking_gives_the_result_of_the_whole(text, cuts):
    whole = through([text])

    assert through(chunked(text, cuts)) == whole


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(VALUES)),
    st.sampled_from(["my number is ", "我的号码是", "write to "]),
    st.sampled_from([" please", "谢谢", "\n", ""]),
    st.lists(st.integers(0, 80), max_size=12),
)
def test_no_prefix_of_a_value_is_ever_shown(value, before, after, cuts):
    """Not four characters in a row of what is masked, at no moment of the stream."""
    masker, shown = Masker(detect), ""
    for piece in chunked(before + value + after, cuts):
        shown += masker.feed(piece)
        assert not any(value[i : i + 4] in shown for i in range(len(value) - 3))
    shown += masker.finish()

    assert f"<{VALUES[value]}>" in shown
    assert not any(value[i : i + 4] in shown for i in range(len(value) - 3))


def test_every_single_cut_of_a_mixed_text():
    text = "Mail jane.doe@example.com or 电话13812345678, card 4111 1111 1111 1111."
    whole, found = mask(text, ENTITIES, 0.4)

    assert whole == "Mail <EMAIL_ADDRESS> or 电话<CN_MOBILE>, card <CREDIT_CARD>."
    assert found == {"EMAIL_ADDRESS": 1, "CN_MOBILE": 1, "CREDIT_CARD": 1}
    for cut in range(len(text) + 1):
        assert through([text[:cut], text[cut:]]) == whole


def test_full_width_digits_and_hidden_characters_do_not_hide_a_value():
    wide = "4111111111111111".translate({ord("0") + i: 0xFF10 + i for i in range(10)})
    assert mask(f"卡号{wide}。", ENTITIES, 0.4)[0] == "卡号<CREDIT_CARD>。"
    assert mask("call 138\u200b1234\u200b5678 now", ENTITIES, 0.4)[0] == "call <CN_MOBILE> now"


def test_plain_text_is_not_touched_and_hardly_held_back():
    text = "A sentence of plain words, in 2024 and after. 一句普通的中文,没有秘密。"
    masker, shown, held = pii_masker(ENTITIES, 0.4), 0, []
    for at, char in enumerate(text, start=1):
        shown += len(masker.feed(char))
        held.append(at - shown)

    assert through(list(text)) == text
    assert sum(held) / len(held) < 8


def test_a_run_without_end_is_bounded_and_searched_all_the_same():
    card = "4111111111111111"
    text = "x" * (MAX_RUN - 8) + "/" + card + "/" + "y" * (3 * MAX_RUN) + " end"
    masker, shown, longest = pii_masker(ENTITIES, 0.4), "", 0
    for piece in [text[i : i + 7] for i in range(0, len(text), 7)]:
        shown += masker.feed(piece)
        longest = max(longest, len(masker._pending))
    shown += masker.finish()

    assert card not in shown
    assert "<CREDIT_CARD>" in shown
    assert longest <= MAX_RUN + 7
    assert shown == mask(text, ENTITIES, 0.4)[0]


def test_one_value_longer_than_the_window_is_hidden_to_its_end():
    def everything(run):
        return [Span(0, len(run), "SECRET", 1.0)] if len(run) > 5 else []

    text = "a" * (3 * MAX_RUN) + " b"
    for size in (1, 5, len(text)):
        masker = Masker(everything)
        shown = "".join(masker.feed(text[i : i + size]) for i in range(0, len(text), size)) + masker.finish()
        assert shown == "<OVERLONG> b"
