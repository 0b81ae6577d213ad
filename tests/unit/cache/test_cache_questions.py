"""Questions by cosine."""

import numpy as np

from cache.questions import Questions


def test_nearest_are_the_best_by_cosine_whatever_was_added_and_removed():
    rng = np.random.default_rng(1)
    questions, known = Questions(), {}
    for number in range(200):
        key = f"k{rng.integers(60)}"
        if rng.random() < 0.3:
            questions.remove(key)
            known.pop(key, None)
        else:
            vector = rng.normal(size=8)
            questions.add(key, f"text {number}", vector)
            known[key] = (f"text {number}", vector / np.linalg.norm(vector))
    asked = rng.normal(size=8)
    asked /= np.linalg.norm(asked)

    found = questions.nearest(asked * 3, 5, -1.0)

    wanted = sorted(known, key=lambda key: -float(known[key][1] @ asked))[:5]
    assert [key for key, _, _ in found] == wanted
    assert [text for _, text, _ in found] == [known[key][0] for key in wanted]
    np.testing.assert_allclose([c for _, _, c in found], [known[key][1] @ asked for key in wanted], atol=1e-6)
    assert len(questions) == len(known)


def test_none_under_the_least_and_none_of_another_length():
    questions = Questions()
    questions.add("a", "a", [1.0, 0.0])

    assert questions.nearest([0.0, 1.0], 3, 0.5) == []
    assert questions.nearest([1.0, 0.0, 0.0], 3, 0.5) == []
    questions.add("b", "b", [0.0, 0.0, 2.0])
    assert [key for key, _, _ in questions.nearest([0.0, 0.0, 1.0], 3, 0.5)] == ["b"]
    assert "a" not in questions
