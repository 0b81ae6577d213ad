"""Policies are strict, say what is wrong, and are versioned by what they do."""

from pathlib import Path

import pytest

import guards
from guards.policy import _ACTIONS, STAGES, PolicyContent, PolicyError, load_policy

ALL = ("flag", "mask", "hash", "placeholder", "drop", "block", "quote", "annotate", "regenerate")
DETECTORS = ("pii", "secrets", "names", "injection", "leak", "moderation", "groundedness", "judge")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("action", ALL)
def test_what_makes_sense_is_allowed_and_nothing_else(stage, detector, action):
    check = {"detector": detector, "action": action, **({"question": "injection"} if detector == "judge" else {})}
    if action in _ACTIONS[stage].get(detector, ()):
        assert getattr(PolicyContent.model_validate({stage: [check]}), stage)[0].id == detector
    else:
        with pytest.raises(ValueError, match=r"can do|should be"):
            PolicyContent.model_validate({stage: [check]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input: [{detector: pii, action: mask, entities: [SHOE_SIZE]}]", "SHOE_SIZE"),
        ("input: [{detector: pii, action: mask}, {detector: pii, action: flag}]", "an `id` of its own"),
        ("input: [{detector: shoes, action: mask}]", "shoes"),
        ("inputs: []", "inputs"),
        ("- a", "not a guard policy"),
        ("a: [", "not a guard policy"),
        ("output: [{detector: moderation, action: mask, lists: [none.txt]}]", r"none\.txt"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(PolicyError, match=message):
        load_policy("p", tmp_path / "p.yaml")
    with pytest.raises(PolicyError, match="does not exist"):
        load_policy("p", tmp_path / "missing.yaml")


def test_the_version_is_of_the_content_and_the_word_lists(tmp_path):
    path, words = tmp_path / "p.yaml", tmp_path / "w.txt"
    check = "output: [{detector: moderation, action: %s, lists: [w.txt]}]"

    def version(described, action, listed):
        words.write_text(listed)
        path.write_text(f"description: {described}\n{check % action}")
        return load_policy("p", path).version

    first = version("one", "mask", "alpha beta\n")

    assert version("two", "mask", "# a comment\nalpha beta\n") == first
    assert len({first, version("one", "block", "alpha beta\n"), version("one", "mask", "alphabeta\n")}) == 3


@pytest.mark.parametrize("name", ["default", "open", "private"])
def test_the_policies_that_come_along_load(name):
    policy = load_policy(name, Path(guards.__file__).parent / "policies" / f"{name}.yaml")

    assert policy.content.description
    assert bool(list(policy.content.checks())) == (name != "open")
    assert policy.label == f"{name}@{policy.version}"
