"""A token-classification model in real sessions: tokens become names, with offsets in the text as it was written."""

import json

import pytest

from guards.names import open_names
from guards.onnx_model import OnnxError
from guards.onnx_names import OnnxNames, merge
from tests.onnx_models import NAMES, WORDS, bert_tokenizer, byte_tokenizer, metaspace_tokenizer, names_model, token_classifier


def found(model, text):
    return [(span.entity, text[span.start : span.end]) for span in model.find(text)]


@pytest.mark.parametrize("token_types", [True, False])
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("so Ada Lovelace left Initech for Lisbon.", [("PERSON", "Ada Lovelace"), ("LOCATION", "Lisbon")]),
        ("我在北京见到了张三丰。", [("LOCATION", "北京"), ("PERSON", "张三丰")]),
        ("😀 José，我见到了张三,  Ada", [("PERSON", "José"), ("PERSON", "张三"), ("PERSON", "Ada")]),
        ("Ada", [("PERSON", "Ada")]),
        ("", []),
        (" \n", []),
        ("so and", []),
    ],
)
def test_finds_names_with_their_offsets(tmp_path, text, names, token_types):
    model = open_names(names_model(tmp_path, token_types=token_types))

    assert isinstance(model, OnnxNames)
    assert found(model, text) == names
    assert all(0.9 < span.score <= 1 for span in model.find(text))
    assert model.find_all([text, "Ada"]) == [model.find(text), model.find("Ada")]


@pytest.mark.parametrize("filler", ["and ", "在"])
def test_a_name_is_whole_wherever_windows_are_cut(tmp_path, filler):
    model = OnnxNames(names_model(tmp_path, config={"max_position_embeddings": 16}))
    for before in range(40):
        text = filler * before + "Ada Lovelace " + filler * 30 + "张三丰"

        assert found(model, text) == [("PERSON", "Ada Lovelace"), ("PERSON", "张三丰")], before


def test_a_text_of_several_full_windows_is_searched_to_its_end(tmp_path):
    text = "在" * 1000 + "Ada Lovelace" + "，我 " * 900 + "Lisbon"

    assert found(OnnxNames(names_model(tmp_path)), text) == [("PERSON", "Ada Lovelace"), ("LOCATION", "Lisbon")]


def test_a_model_that_names_the_first_piece_of_a_word_alone_means_the_word(tmp_path):
    kinds = {piece: kind for piece, kind in NAMES.items() if not piece.startswith("##")}
    model = OnnxNames(token_classifier(tmp_path, bert_tokenizer([*WORDS, *NAMES]), kinds))

    assert found(model, "so Lovelace, Lisbon在北京") == [("PERSON", "Lovelace"), ("LOCATION", "Lisbon"), ("LOCATION", "北京")]


def test_a_space_in_a_token_is_no_part_of_the_name(tmp_path):
    tokenizer = metaspace_tokenizer(["▁so", "▁Ada", "▁Love", "lace", "▁met", "▁", "张", "三", "在"])
    kinds = dict.fromkeys(["▁Ada", "▁Love", "lace", "张", "三"], "PER")
    model = OnnxNames(token_classifier(tmp_path, tokenizer, kinds, token_types=False))

    assert found(model, "so Ada Lovelace met 张三在") == [("PERSON", "Ada Lovelace"), ("PERSON", "张三")]


def test_characters_of_several_tokens(tmp_path):
    tokenizer = byte_tokenizer(["so Ada met"] * 9)
    pieces = tokenizer.encode("张三").tokens
    model = OnnxNames(token_classifier(tmp_path, tokenizer, dict.fromkeys([*pieces, "ĠAda"], "PER"), token_types=False))

    assert len(pieces) > 2
    assert found(model, "so Ada met 张三") == [("PERSON", "Ada"), ("PERSON", "张三")]


def test_under_the_threshold_and_of_other_entities_is_left_out(tmp_path):
    folder = names_model(tmp_path)

    assert OnnxNames(folder, threshold=0.9999).find("Ada Lovelace") == []
    assert found(OnnxNames(folder, entities=["ORGANIZATION"]), "Ada left Initech") == [("ORGANIZATION", "Initech")]


def test_names_side_by_side_and_a_continuation_without_a_beginning():
    tokens = [(0, 3, "B-PER", 1.0), (4, 7, "B-PER", 0.5), (8, 9, "I-LOC", 1.0), (10, 12, "I-LOC", 0.8)]

    assert [(s.start, s.end, s.entity, s.score) for s in merge(tokens)] == [
        (0, 3, "PERSON", 1.0),
        (4, 7, "PERSON", 0.5),
        (8, 12, "LOCATION", 0.9),
    ]


def test_labels_that_name_nothing_are_refused(tmp_path):
    folder = names_model(tmp_path)
    (folder / "config.json").write_text(json.dumps({"id2label": {str(index): f"LABEL_{index}" for index in range(7)}}))

    with pytest.raises(OnnxError, match=r"none is B- and one of PER, .* rename them in `id2label`"):
        OnnxNames(folder)
