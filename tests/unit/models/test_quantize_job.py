"""The job's own decisions; that it quantizes is shown in tests/integration."""

import json

import pytest

from models.quantize_job import MAX_SAMPLES, MAX_TOKENS, blocks, group_size, read_calibration


class Words:
    """A tokenizer that takes each word for a token."""

    def __call__(self, text, *, truncation, max_length):
        assert truncation
        return {"input_ids": list(range(len(text.split())))[:max_length]}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([4096, 14336], 128), ([576, 1536], 64), ([576, 1536, 96], 32), ([128], 128)],
)
def test_the_group_size_is_the_largest_that_divides_every_layer(sizes, expected):
    assert group_size(sizes) == expected


def test_a_model_that_no_group_divides_is_refused_with_its_sizes():
    with pytest.raises(ValueError, match=r"\[100, 576\]: take w8a8"):
        group_size([576, 100])


def test_texts_are_parted_by_blank_lines():
    assert blocks("one\nstill one\n\n\n two \n") == ["one\nstill one", "two"]


def test_a_users_texts_are_read_and_cut(tmp_path):
    plain, rows = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("one two three\n\nalone\n\n" + "long " * (MAX_TOKENS + 9))
    rows.write_text("\n".join(json.dumps({"text": "one two", "label": "x"}) for _ in range(MAX_SAMPLES + 9)) + "\n\n")

    assert [len(sample) for sample in read_calibration(plain, Words())] == [3, MAX_TOKENS]
    assert [len(sample) for sample in read_calibration(rows, Words())] == [2] * MAX_SAMPLES
