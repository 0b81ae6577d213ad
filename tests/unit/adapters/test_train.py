"""What of training needs no model: rows, groups of like length, the loss mask."""

import random

import pytest

from adapters.train import Example, batches, collate, read_rows


def test_a_broken_row_is_named_by_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n\n{"text": "c"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:3"):
        read_rows(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no rows"):
        read_rows(path)


def test_batches_hold_every_example_once_and_follow_from_the_seed():
    examples = [Example([1] * n, 0) for n in range(1, 40)]
    one = batches(examples, 4, random.Random(7))

    assert sorted(len(e.ids) for group in one for e in group) == list(range(1, 40))
    assert one == batches(examples, 4, random.Random(7))
    assert max(len(group) for group in one) == 4


def test_the_loss_covers_the_answer_only():
    ids, mask, labels = collate([Example([5, 6, 7], 2), Example([8], 0)])

    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert labels.tolist() == [[-100, -100, 7], [8, -100, -100]]
