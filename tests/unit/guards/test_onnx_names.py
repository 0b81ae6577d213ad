"""A token-classification model: tokens become names with offsets; what is missing is said."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from guards import onnx_names
from guards.onnx_names import OnnxNames, merge

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG"]
WORDS = {"[UNK]": 0, "Ada": 1, "Lovelace": 2, "Lisbon": 3, "Initech": 5}


class Session:
    """Gives each token the label of its id."""

    def get_inputs(self):
        return [SimpleNamespace(name="input_ids"), SimpleNamespace(name="attention_mask")]

    def run(self, output_names, feed):
        assert set(feed) == {"input_ids", "attention_mask"}
        return [5 * np.eye(len(LABELS), dtype=np.float32)[feed["input_ids"]]]


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): label for i, label in enumerate(LABELS)}}))
    return tmp_path


def test_finds_names_with_their_offsets(folder):
    text = "so Ada Lovelace left Initech for Lisbon"
    spans = OnnxNames(folder, session=Session()).find(text)

    assert [(s.entity, text[s.start : s.end]) for s in spans] == [("PERSON", "Ada Lovelace"), ("LOCATION", "Lisbon")]
    assert all(0.9 < s.score <= 1 for s in spans)


def test_a_text_longer_than_a_window_is_searched_to_its_end(folder, monkeypatch):
    monkeypatch.setattr(onnx_names, "_WINDOW", 8)
    monkeypatch.setattr(onnx_names, "_STRIDE", 3)
    text = "and " * 30 + "Ada Lovelace " + "or " * 20 + "Lisbon"
    spans = OnnxNames(folder, session=Session()).find(text)

    assert [text[s.start : s.end] for s in spans] == ["Ada Lovelace", "Lisbon"]


def test_under_the_threshold_is_left_out(folder):
    assert OnnxNames(folder, threshold=0.999, session=Session()).find("Ada Lovelace") == []


def test_names_side_by_side_and_a_continuation_without_a_beginning():
    tokens = [(0, 3, "B-PER", 1.0), (4, 7, "B-PER", 0.5), (8, 9, "I-LOC", 1.0), (10, 12, "I-LOC", 0.8)]

    assert [(s.start, s.end, s.entity, s.score) for s in merge(tokens)] == [
        (0, 3, "PERSON", 1.0),
        (4, 7, "PERSON", 0.5),
        (8, 12, "LOCATION", 0.9),
    ]


def test_what_is_missing_is_said(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"model\.onnx"):
        OnnxNames(folder)
    (folder / "model.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match="onnxruntime"):
        OnnxNames(folder)
