"""The shipped estimator, and that what was trained is what is served. How good it is stands in docs/routing.md."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.complexity import (
    BITS,
    MAX_CHARACTERS,
    SHIPPED,
    ComplexityError,
    bare,
    character_grams,
    counts,
    load_complexity,
    word_grams,
)
from targets.evaluate import Question
from targets.train_complexity import compose, lessons, save, solve, space, unseen

ANY = st.text(st.characters(exclude_categories=()), max_size=300)


def made_questions(n=120):
    """Made-up questions: one subject gains from a strong model, the other does not, one in ten by chance."""
    chance = np.random.default_rng(3)
    found = []
    for i in range(n):
        hard = bool(i % 2)
        words = ["tort", "plaintiff", "estoppel", "lien"] if hard else ["apple", "river", "colour", "bird"]
        text = f"Question {i}: " + " ".join(chance.choice(words, 12)) + "?"
        weak = not hard if chance.random() > 0.1 else hard
        found.append(Question(text, weak=weak, strong=True, source="made", subject="law" if hard else "nature"))
    return found


@pytest.fixture(scope="module")
def questions():
    return made_questions()


@pytest.fixture(scope="module")
def trained(questions):
    made = space([bare(question.prompt) for question in questions])
    return made, solve(made.kernel, questions)


@given(ANY)
def test_any_text_has_a_score(text):
    estimator = load_complexity()

    assert 0 <= estimator.score(text) <= 1
    assert np.isfinite(estimator.raw(text))
    assert np.isfinite(counts(text)).all()


@given(ANY)
def test_grams_are_buckets(text):
    for grams in (character_grams(text), word_grams(text)):
        assert ((grams >= 0) & (grams < 2**BITS)).all()


def test_a_very_long_text_is_read_in_part():
    head = "Why is the sky blue? " * 300

    assert load_complexity().raw(head) == load_complexity().raw(head + "x" * 1_000_000)
    assert len(bare(head * 9)) == MAX_CHARACTERS


def test_the_call_for_an_answer_is_not_read():
    assert bare("2 + 2 = ?\nAnswer:") == bare("2 + 2 = ?") == "2 + 2 = ?"


def test_what_is_served_is_what_was_trained(questions, trained, tmp_path):
    made, dual = trained
    save(compose(made, dual, np.linspace(-1, 1, 101), [q.prompt for q in questions]), tmp_path / "weights.npz")
    served = load_complexity(tmp_path / "weights.npz")
    raw = [served.raw(question.prompt) for question in questions]

    assert raw == pytest.approx(made.kernel @ dual, abs=2e-3)
    assert served.knows(questions[0].prompt)
    assert not served.knows("never seen")
    assert served.score(questions[1].prompt) == pytest.approx((raw[1] + 1) / 2)


def test_it_learns_what_gains(questions, trained, tmp_path):
    made, dual = trained
    estimator = compose(made, dual, np.linspace(-1, 1, 101), [])

    assert estimator.raw("The plaintiff and the lien: is there an estoppel?") > estimator.raw("Which bird is at the river?") + 0.2


def test_figures_are_of_questions_that_were_not_trained_on():
    """With answers by chance and no subjects there is nothing to learn: a leak would show as a correlation."""
    chance = np.random.default_rng(5)
    questions = [
        Question(f"{chance.integers(1e9)} {chance.integers(1e9)}", bool(chance.random() < 0.5), True) for _ in range(200)
    ]
    values = unseen(questions, np.arange(200) % 5)
    gains = [question.strong - question.weak for question in questions]

    assert abs(np.corrcoef(values, gains)[0, 1]) < 0.25


def test_a_subject_teaches_its_mean_and_a_question_alone_itself():
    rows = [Question(f"{i}", weak=i % 2 == 0, strong=True, source="s", subject="law" if i < 80 else "") for i in range(100)]
    taught, belief = lessons(rows)

    assert len(set(taught[:80])) == 1
    assert sorted(set(np.round(taught[80:], 2))) == [-0.5, 0.5]
    assert belief[0] < belief[-1]


def test_the_shipped_file_is_small():
    assert SHIPPED.stat().st_size < 1_000_000


def test_a_file_that_holds_no_weights_is_named(tmp_path):
    for name, content in {"text.npz": b"nothing", "cut.npz": SHIPPED.read_bytes()[:5000]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ComplexityError, match=f"{name} holds no usable weights"):
            load_complexity(tmp_path / name)
    with np.load(SHIPPED, allow_pickle=False) as arrays:
        np.savez(tmp_path / "short.npz", **{**arrays, "weight": np.zeros(3, dtype=np.float32)})
    with pytest.raises(ComplexityError, match="shape"):
        load_complexity(tmp_path / "short.npz")
