"""Real sessions over small models: what the slots take, and what they refuse with a reason."""

import json
import sys

import numpy as np
import pytest

from guards.onnx_model import MissingPackage, OnnxError, OnnxModel
from tests.onnx_models import WORDS, bert_tokenizer, injection_model, names_model, text_classifier


@pytest.fixture
def tokenizer():
    return bert_tokenizer(WORDS)


@pytest.fixture
def embeddings(tokenizer):
    return np.random.default_rng(3).normal(size=(len(tokenizer.get_vocab()), 2))


def expected(tokenizer, embeddings, text, shift=(0, 0)):
    """What the model must say, by numpy alone: the softmax of the mean of the embeddings."""
    logits = embeddings[tokenizer.encode(text).ids].mean(axis=0) + shift
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize(("token_types", "shift"), [(True, (0.25, 0)), (False, (0, 0))])
@pytest.mark.parametrize("text", ["so", "so and or", "我在 unknown 北京。"])
def test_probabilities_are_the_model_s(tmp_path, tokenizer, embeddings, token_types, shift, text):
    model = OnnxModel(text_classifier(tmp_path, tokenizer, embeddings, token_types=token_types), of="texts")
    [window] = model.windows(text)

    assert model.labels == ["BENIGN", "INJECTION"]
    assert model.chances(window) == pytest.approx(expected(tokenizer, embeddings, text, shift), abs=1e-5)


@pytest.mark.parametrize(
    "options", [{"shape": (1, "sequence")}, {"shape": (None, None)}, {"kind": 6}, {"hidden_first": True}, {"positions": 600}]
)
def test_exports_differ(tmp_path, tokenizer, embeddings, options):
    """A batch of one, axes without names, int32, logits that are not the first output, and positions."""
    model = OnnxModel(text_classifier(tmp_path, tokenizer, embeddings, token_types=False, **options), of="texts")
    [window] = model.windows("so and or")

    assert model.chances(window) == pytest.approx(expected(tokenizer, embeddings, "so and or"), abs=1e-5)


@pytest.mark.parametrize(
    ("config", "beside", "window"),
    [
        ({}, None, 512), ({"max_position_embeddings": 514}, {"model_max_length": 1e30}, 512),
        ({"max_position_embeddings": 40}, None, 40),
        ({"max_position_embeddings": 514}, {"model_max_length": 128}, 128), ({"max_position_embeddings": -1}, {}, 512),
    ],
)  # fmt: skip
def test_windows_are_as_long_as_the_model_takes_and_cover_the_text(tmp_path, config, beside, window):
    folder = injection_model(tmp_path, positions=window, config=config)
    if beside is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(beside))
    model = OnnxModel(folder, of="texts")
    text = "我在 " * 700
    windows = model.windows(text)

    assert {len(one.ids) for one in windows[:-1]} == {window}
    assert {at for one in windows for start, end in one.offsets for at in range(start, end)} == {
        at for at, character in enumerate(text) if character != " "
    }
    for one in windows:
        assert model.chances(one).sum() == pytest.approx(1)


def test_a_tokenizer_saved_with_padding_and_truncation_of_its_own(tmp_path):
    folder = injection_model(tmp_path)
    saved = bert_tokenizer([*WORDS, "ignore", "忽", "略"])
    saved.enable_padding(length=64)
    saved.enable_truncation(8)
    saved.save(str(folder / "tokenizer.json"))
    [window] = OnnxModel(folder, of="texts").windows("so " * 20)

    assert len(window.ids) == 22


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shape": (1, 8)}, r"input_ids has the fixed shape \[1, 8\]; export it with dynamic axes"),
        ({"shape": ("batch", 512)}, "fixed shape"),
        ({"shape": (4, "sequence")}, "fixed shape"),
        ({"shape": ("batch", "sequence", "more")}, r"model\.onnx"),
        ({"more": ("position_ids", "pixels")}, "asks for pixels, position_ids; it may ask for input_ids, attention_mask"),
        ({"labels": ("SAFE", "BAD", "WORSE")}, r"'logits' has the shape \(1, 2\) for 2 tokens, not \(1, 3\)"),
        ({"positions": 100}, "failed on 512 tokens.*max_position_embeddings"),
        ({"config": {"max_position_embeddings": 3}}, "no room for a text"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused_when_it_is_opened(tmp_path, options, says):
    folder = injection_model(tmp_path, **options)

    with pytest.raises(OnnxError, match=says):
        OnnxModel(folder, of="texts")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, embeddings):
    folder = text_classifier(tmp_path, bert_tokenizer([*WORDS, "more"]), embeddings)

    with pytest.raises(OnnxError, match=r"is tokenizer\.json this model's"):
        OnnxModel(folder, of="texts")


def test_each_slot_has_its_kind_of_model(tmp_path):
    with pytest.raises(OnnxError, match=r"\(1, 2, 7\) for 2 tokens, not \(1, 7\): take a model that classifies texts"):
        OnnxModel(names_model(tmp_path / "names"), of="texts")
    with pytest.raises(OnnxError, match=r"\(1, 2\) for 2 tokens, not \(1, 2, 2\): take a model that classifies tokens"):
        OnnxModel(injection_model(tmp_path / "texts"), of="tokens")


def test_what_is_no_number_is_no_verdict(tmp_path, tokenizer, embeddings):
    embeddings[tokenizer.token_to_id("or")] = np.nan
    model = OnnxModel(text_classifier(tmp_path, tokenizer, embeddings), of="texts")

    assert model.chances(model.windows("so and")[0]).sum() == pytest.approx(1)
    with pytest.raises(OnnxError, match="no number for 4 tokens"):
        model.chances(model.windows("so or")[0])


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("harm", ["gone", "empty", "cut", "other"])
def test_a_broken_file_is_named(tmp_path, file, harm, capfd):
    path = injection_model(tmp_path) / file
    content = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "other": b"[1]"}[harm])

    with pytest.raises(OnnxError) as told:
        OnnxModel(tmp_path, of="texts")
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("labels", [None, [], {}, ["BENIGN", "INJECTION"], {"0": "BENIGN", "2": "INJECTION"}, {"a": "B"}])
def test_labels_that_are_not_named_are_refused(tmp_path, labels):
    (injection_model(tmp_path) / "config.json").write_text(json.dumps({"id2label": labels}))

    with pytest.raises(OnnxError, match=r"config\.json does not name the labels in `id2label`"):
        OnnxModel(tmp_path, of="texts")


@pytest.mark.parametrize("package", ["tokenizers", "onnxruntime"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    injection_model(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingPackage, match=f"needs {package}, which is not installed"):
        OnnxModel(tmp_path, of="texts")
