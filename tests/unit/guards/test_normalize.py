"""Normalised text knows where it came from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.normalize import normalize


@given(st.text(max_size=60))
def test_every_character_has_an_origin_in_order(text):
    seen = normalize(text)

    assert len(seen.text) == len(seen.origin)
    assert list(seen.origin) == sorted(seen.origin)
    assert all(0 <= i < len(text) for i in seen.origin)


def test_folds_width_digits_dashes_and_drops_the_invisible():
    assert normalize("12-３\u200b٤\u00a0x").text == "12-34 x"


def test_spans_map_back():
    seen = normalize("a\u200bb")

    assert seen.span(1, 2) == (2, 3)
    with pytest.raises(ValueError, match="empty span"):
        seen.span(1, 1)
