"""Rows that cannot be used are named by their line; splits and shots follow from the seed."""

import json
from collections import Counter

import pytest

from adapters.rows import Row, RowError, draw_shots, read_rows, split_rows

ROWS = [Row(f"text {i}", f"label {i % 4}") for i in range(40)]


@pytest.fixture
def written(tmp_path):
    def write(*lines):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


def test_rows_are_read_in_order_and_empty_lines_left_out(written):
    path = written('{"text": "a", "label": "b"}', "", json.dumps({"text": "une\u2028ligne", "label": "c", "more": 1}))

    assert read_rows(path) == [Row("a", "b"), Row("une\u2028ligne", "c")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object .* got list"),
        ('{"text": "c"}', "'label' is missing"),
        ('{"text": " ", "label": "b"}', "'text' must be a text that is not empty"),
        ('{"text": "a", "label": 3}', "'label' must be a text that is not empty, got 3"),
    ],
)
def test_a_broken_row_is_named_by_its_line(written, line, reason):
    with pytest.raises(RowError, match=rf"rows\.jsonl:3: {reason}"):
        read_rows(written('{"text": "a", "label": "b"}', "", line))


def test_files_that_give_no_rows_say_so(written, tmp_path):
    with pytest.raises(RowError, match="holds no rows"):
        read_rows(written(""))
    with pytest.raises(RowError, match="No such file"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9", "label": "x"}')
    with pytest.raises(RowError, match="not UTF-8"):
        read_rows(tmp_path / "latin.jsonl")


def test_a_split_holds_some_of_every_label_out_and_loses_nothing():
    kept, held = split_rows([*ROWS, Row("alone", "rare")], 0.2, seed=7)

    assert Counter(row.label for row in held) == {f"label {i}": 2 for i in range(4)}
    assert sorted([*kept, *held]) == sorted([*ROWS, Row("alone", "rare")])
    assert split_rows(ROWS, 0.2, seed=7) == split_rows(ROWS, 0.2, seed=7)
    assert split_rows(ROWS, 0.2, seed=7) != split_rows(ROWS, 0.2, seed=8)
    assert split_rows(ROWS, 0.0, seed=7)[1] == []


def test_shots_are_spread_over_the_labels():
    drawn = draw_shots(ROWS, 6, seed=7)

    assert len(set(drawn)) == 6
    assert sorted(Counter(ROWS[i].label for i in drawn).values()) == [1, 1, 2, 2]
    assert drawn == draw_shots(ROWS, 6, seed=7)
    assert draw_shots(ROWS, 0, seed=7) == []
    assert len(draw_shots(ROWS[:3], 16, seed=7)) == 3
