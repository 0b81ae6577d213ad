"""One quantity, many spellings."""

import itertools

import pytest

from guards.quantities import find_quantities, numeral, occurs

SAME = [
    ("12%", "百分之十二", "twelve percent"),
    ("1.2万", "12,000", "12 thousand", "一点二万"),
    ("3 km", "3000 m", "3公里", "三公里"),
    ("9:30 pm", "21:30", "晚上九点半"),
    ("2024年3月5日", "5 March 2024", "2024-03-05", "March 5, 2024", "二〇二四年三月五日"),
    ("twenty-five kilograms", "25公斤", "25 kg"),
    ("€12", "12 euros", "12欧元"),
    ("half an hour", "30 minutes", "半小时"),
    ("Wednesday", "周三", "星期三"),
]
DIFFERENT = [
    ("12%", "12 km"),
    ("3 km", "3 m"),
    ("9:30 am", "9:30 pm"),
    ("5 March 2024", "6 March 2024"),
    ("11", "12"),
    ("€5", "$5"),
]


@pytest.mark.parametrize(("one", "other"), [pair for row in SAME for pair in itertools.permutations(row, 2)])
def test_spellings_of_the_same_agree(one, other):
    (claimed,) = find_quantities(one)

    assert occurs(claimed, find_quantities(other))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_differs_does_not_agree(one, other):
    (claimed,) = find_quantities(one)

    assert not occurs(claimed, find_quantities(other))


@pytest.mark.parametrize(("text", "value"), [("三百零五", 305), ("十二", 12), ("二〇二四", 2024), ("一亿二千万", 120_000_000)])
def test_chinese_numerals(text, value):
    assert numeral(text) == value


@pytest.mark.parametrize("text", ["万一下雨", "一些", "统一", "version B2"])
def test_words_that_are_no_numbers(text):
    assert find_quantities(text) == []
