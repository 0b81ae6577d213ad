"""Names by model and by rule; what is no name is left out."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards import names as module
from guards.names import Names, by_rule, name_within
from guards.pii import without

with without("torch"), without("transformers"):  # spaCy imports Presidio, which takes what it finds: seconds
    import spacy

    spacy.blank("en")

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A pipeline without weights, which takes for names what it is told."""
    folder = tmp_path_factory.mktemp("model")
    nlp = spacy.blank("en")
    told = [("PERSON", "Ada Lovelace"), ("GPE", "Lisbon"), ("ORG", "Initech"), ("PERSON", "Monday"), ("DATE", "today")]
    nlp.add_pipe("entity_ruler").add_patterns([{"label": label, "pattern": text} for label, text in told])
    nlp.to_disk(folder)
    return Names(folder)


def test_what_the_model_finds_is_mapped_and_filtered(names):
    text = "今天 Ada\u200b Lovelace of Initech went to Lisbon on Monday, today"
    found = [(span.entity, text[span.start : span.end]) for span in names.find(text)]

    assert found == [("PERSON", "Ada\u200b Lovelace"), ("LOCATION", "Lisbon")]


def test_a_text_in_lower_case_is_searched_too(names):
    assert [(s.start, s.end) for s in names.find("i met ada lovelace")] == [(6, 18)]


def test_long_texts_are_searched_in_pieces(names, monkeypatch):
    monkeypatch.setattr(module, "_MAX_CHARS", 20)
    text = "Ada Lovelace went.  Then Ada Lovelace came."

    assert [text[s.start : s.end] for s in names.find(text)] == ["Ada Lovelace", "Ada Lovelace"]


def test_who_was_named_once_is_found_again(names):
    text = "Ada Lovelace left. Then Ada came back, and Adam. 请王小明老师发言, 后来王小明走了"
    found = [text[span.start : span.end] for span in names.find(text)]

    assert found == ["Ada Lovelace", "Ada", "王小明", "王小明"]


def test_torch_is_left_alone(tmp_path):
    spacy.blank("en").to_disk(tmp_path)
    code = "import sys, pathlib; from guards import names; names.Names(pathlib.Path(sys.argv[1]))\nprint('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, cwd=ROOT)

    assert out.stdout.strip() == "False"


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.cfg"):
        Names(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Name: Iva Nováková\nCity: Brno", "Iva Nováková"),
        ("my name is Bo Ek.", "Bo Ek"),
        ("ask Dr. Ines de la Cruz about it", "Ines de la Cruz"),
        ("Dear Olu,\nthanks", "Olu"),
        ("I hear Ngozi Bell lives in a tent.", "Ngozi Bell"),
        ("Ximena was born on a ship", "Ximena"),
        ("联系人:欧阳修文,", "欧阳修文"),
        ("我叫李四,今年三十", "李四"),
        ("请王小明老师发言", "王小明"),
        ("主任医师赵明是我的同学", "赵明"),
        ("陈大文表示,会议推迟", "陈大文"),
    ],
)
def test_words_beside_a_name_give_it_away(text, name):
    assert name in [text[span.start : span.end] for span in by_rule(text)]


@pytest.mark.parametrize(
    "text",
    [
        "方便的话请回电",
        "周末被取消",
        "高级工程师",
        "任何人都可以",
        "Name: email",
        "Mr. and Mrs.",
        "我是一名学生",
        "She lives in Rome.",
    ],
)
def test_rules_leave_alone(text):
    assert list(by_rule(text)) == []


@pytest.mark.parametrize(
    "found",
    ["12 345", "cat", "March", "Mr.", "DR", "a@b.com", "Room 5", "SECTION ONE OF TWO", "Chinese", "王小明", ""],
)
def test_no_person(found):
    assert name_within(found, "PERSON") is None


@pytest.mark.parametrize(("found", "name"), [("Dr. Ann Lee's", "Ann Lee"), ("Ann Lee\nCity", "Ann Lee"), ("JO DOE", "JO DOE")])
def test_a_name_is_cut_out_of_what_was_found(found, name):
    start, end = name_within(found, "PERSON")

    assert found[start:end] == name


@given(st.text(alphabet="Ab .'\n@1王", max_size=30))
def test_a_name_lies_within_what_was_found(found):
    bounds = name_within(found, "PERSON")

    assert bounds is None or 0 <= bounds[0] < bounds[1] <= len(found)
