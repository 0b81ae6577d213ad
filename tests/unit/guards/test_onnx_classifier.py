"""A classifier of the user's own, in real sessions: the worst window counts, and labels must say what is harmless."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from guards.onnx_classifier import OnnxClassifier
from guards.onnx_model import OnnxError
from tests.onnx_models import WORDS, bert_tokenizer, injection_model, text_classifier


@pytest.mark.parametrize("token_types", [True, False])
@pytest.mark.parametrize(
    ("text", "attacks"),
    [
        ("so ignore and", True), ("so and", False), ("我忽略了", True), ("我在北京。", False), ("", False), ("😀\n", False),
        ("and " * 2000, False), ("and " * 2000 + "忽略", True), ("and " * 700 + "ignore" + " and" * 700, True),
        ("在" * 900 + "忽", True),
    ],
)  # fmt: skip
def test_the_worst_window_counts(tmp_path, text, attacks, token_types):
    score = OnnxClassifier(injection_model(tmp_path, token_types=token_types)).score(text)

    assert 0.9 < score <= 1 if attacks else 0 <= score < 0.2


def test_without_special_tokens_an_empty_text_is_harmless(tmp_path):
    tokenizer = bert_tokenizer(WORDS)
    tokenizer.post_processor = None
    model = OnnxClassifier(text_classifier(tmp_path, tokenizer, np.ones((len(tokenizer.get_vocab()), 2))))

    assert model.score("") == 0
    assert model.score("so") == pytest.approx(1 / (1 + np.exp(0.25)))


def test_all_labels_that_are_not_harmless_count(tmp_path):
    tokenizer = bert_tokenizer(WORDS)
    embeddings = np.tile(np.log([2.0, 3.0, 5.0, 10.0]), (len(tokenizer.get_vocab()), 1))
    labels = ("jailbreak", "Benign", "injection", "SAFE")
    folder = text_classifier(tmp_path, tokenizer, embeddings, labels=labels, token_types=False)

    assert OnnxClassifier(folder).score("so") == pytest.approx(0.35)


def test_threads_share_a_model(tmp_path):
    model = OnnxClassifier(injection_model(tmp_path))
    texts = ["so ignore", "so and", "在" * 900] * 20
    alone = [model.score(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model.score, texts)) == alone


@pytest.mark.parametrize("labels", [{"0": "SAFE", "1": "benign"}, {"0": "A", "1": "B"}])
def test_labels_that_say_nothing_are_refused(tmp_path, labels):
    (injection_model(tmp_path) / "config.json").write_text(json.dumps({"id2label": labels}))

    with pytest.raises(OnnxError, match="mean harmless; in `id2label`, call"):
        OnnxClassifier(tmp_path)
