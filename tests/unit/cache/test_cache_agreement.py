"""What two questions have in common, as the features tell it."""

import pytest

from cache.agreement import FEATURES, measure
from services.caching import FACTS


def _features(one, other, cosine=0.9):
    return dict(zip(FEATURES, measure(one, other, cosine, FACTS), strict=True))


@pytest.mark.parametrize(
    ("one", "other", "feature"),
    [
        ("Which trains go to Riverton today?", "Which trains go to Oakfield today?", "names"),
        ("How do I use Excel on my phone?", "How do I use Word on my phone?", "names"),
        ("我想在iPhone上安装", "我想在Android上安装", "names"),
        ("从北京到上海多少钱?", "从北京到广州多少钱?", "names"),
        ("What happened in 2002?", "What happened in 1992?", "numbers"),
        ("Can I return it after ten days?", "Can I return it after 30 days?", "numbers"),
        ("退票要三天吗?", "退票要5天吗?", "numbers"),
        ("Why is smoking allowed here?", "Why is smoking not allowed here?", "opposed"),
        ("宠物可以上车吗?", "宠物不可以上车吗?", "opposed"),
        ("Who built the station?", "When was the station built?", "asked"),
        ("车站在哪里?", "车站什么时候开门?", "asked"),
        ("How many seats are there?", "How do I book seats?", "asked"),
    ],
)
def test_questions_part(one, other, feature):
    assert _features(one, other)[feature] > 0
    assert measure(one, other, 0.9, FACTS) == pytest.approx(measure(other, one, 0.9, FACTS))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I get a refund from YouTube?", "How can I get refunds from You Tube?"),
        ("Can I return it after ten days?", "Can I return it within 10 days?"),
        ("百分之十二是多少?", "12%是多少?"),
        ("退票要三天吗?", "退票需要3天吗?"),
        ("如何退票?", "怎么退票呢?"),
        ("Where is the station?", "Where's the Station?"),
    ],
)
def test_questions_agree(one, other):
    found = _features(one, other)

    assert not any(found[name] for name in ("names", "numbers", "opposed", "asked"))


def test_the_same_question_has_everything_in_common():
    found = _features("How much does a ticket cost?", "how much does a  ticket cost ?")

    assert found["shared"] == found["contained"] == found["trigrams"] == found["order"] == 1
    assert found["swapped"] == found["added"] == found["lonely"] == found["ending"] == found["length"] == 0
    assert found["cosine"] == 0.9


@pytest.mark.parametrize("text", ["", "?", "的", "a", "🙂"])
def test_questions_without_words_are_measured(text):
    assert len(measure(text, "How?", 0.5, FACTS)) == len(FEATURES)
    assert len(measure(text, text, 0.5, FACTS)) == len(FEATURES)
