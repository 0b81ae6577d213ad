"""What guards share: word lists that are read again, deadlines, keys."""

import pytest

from guards.detectors import Detectors, Unavailable
from guards.policy import Policy, PolicyContent, load_policy


def test_a_word_list_that_changed_is_read_again(tmp_path):
    (tmp_path / "words.txt").write_text("alpha beta\n")
    (tmp_path / "p.yaml").write_text("output: [{detector: moderation, action: block, lists: [words.txt]}]\n")
    detectors, found = Detectors(), []
    for phrase in ("alpha beta", "gamma delta"):
        (tmp_path / "words.txt").write_text(f"{phrase}\n")
        policy = load_policy("p", tmp_path / "p.yaml")
        found.append(bool(detectors.moderation(policy, policy.content.output[0]).find("gamma delta")))

    assert found == [False, True]


def test_names_without_a_model_are_unavailable():
    policy = Policy("p", "0", PolicyContent.model_validate({"input": [{"detector": "names", "action": "mask"}]}))

    with pytest.raises(Unavailable, match=r"bundle\.yaml"):
        Detectors().check(policy)


def test_a_second_classifier_raises_the_score():
    harmless = "What time is it?"

    assert Detectors(injection_model=lambda _text: 0.99).injection(harmless, "user").score >= 0.99
    assert Detectors(injection_model=lambda _text: 0.0).injection(harmless, "user").score < 0.4


def test_hashes_and_canaries_depend_on_the_key():
    one, same, other = Detectors(key=b"a" * 32), Detectors(key=b"a" * 32), Detectors(key=b"b" * 32)

    assert one.digest("E", "v") == same.digest("E", "v") != other.digest("E", "v")
    assert one.canary("prompt") == same.canary("prompt") != other.canary("prompt")
