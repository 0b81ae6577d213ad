"""A classifier of the user's own: the worst window counts, and what is missing is named."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from guards.classifier import ClassifierError
from guards.onnx_classifier import OnnxClassifier


class Session:
    """Says attack where the first token is 7, and refuses inputs it has not declared."""

    def get_inputs(self):
        return [SimpleNamespace(name="input_ids"), SimpleNamespace(name="attention_mask")]

    def run(self, _, given):
        assert set(given) == {"input_ids", "attention_mask"}
        return [np.array([[0.0, np.log(3)]] if given["input_ids"][0, 0] == 7 else [[np.log(3), 0.0]], dtype=np.float32)]


class Tokenizer:
    def encode(self, text):
        first, *rest = [SimpleNamespace(ids=[int(word)], attention_mask=[1]) for word in text.split()]
        return SimpleNamespace(**vars(first), overflowing=rest)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "BENIGN", "1": "INJECTION"}}))
    return tmp_path


@pytest.mark.parametrize(("text", "score"), [("7", 0.75), ("1", 0.25), ("1 1 7", 0.75)])
def test_the_worst_window_counts(folder, text, score):
    assert OnnxClassifier(folder, session=Session(), tokenizer=Tokenizer()).score(text) == pytest.approx(score)


@pytest.mark.parametrize("labels", [{"0": "SAFE", "1": "benign"}, {"0": "A", "1": "B"}])
def test_labels_that_say_nothing_are_refused(folder, labels):
    (folder / "config.json").write_text(json.dumps({"id2label": labels}))

    with pytest.raises(ClassifierError, match="mean harmless"):
        OnnxClassifier(folder)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ClassifierError, match=r"config\.json"):
        OnnxClassifier(tmp_path)


@pytest.mark.parametrize(("package", "given"), [("tokenizers", {}), ("onnxruntime", {"tokenizer": Tokenizer()})])
def test_a_missing_package_is_named(folder, monkeypatch, package, given):
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ClassifierError, match=package):
        OnnxClassifier(folder, **given)
