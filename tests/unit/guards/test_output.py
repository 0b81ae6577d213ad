"""An answer on its way out: the same whatever the pieces are, and nothing in part."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guards.detectors import Detectors
from guards.guard import Guard
from guards.output import OutputGuard
from guards.pii import Span
from guards.policy import Policy, PolicyContent

PROMPT = (
    "Our discount for partners is forty percent, and nobody outside the sales team may ever be told of it. "
    "内部折扣只告诉销售部的同事不得外传给任何客户。"
)
PARTS = [
    "plain words ", "普通的句子。", "a@example.com", "4111 1111 1111 1111", "13812345678", "密码：Xk9!vTq2",
    "alpha ", "alpha beta", "beta gamma delta",
    "delta", "坏话", "坏 话连篇", "[EMAIL_ADDRESS_1]", "[CN_MOBILE_9]", "https://x.example/", "Jane Roe ",
    PROMPT[:30], PROMPT[:70], PROMPT[-30:],
    " ", "\n", ". ", "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    (folder / "w.txt").write_text("alpha beta\nbeta gamma delta\n坏话\n话连篇\n")
    return folder


class Here(Detectors):
    """No threads, and a finder of one name."""

    def in_time(self, seconds, look):
        return look()


def jane(text):
    at = text.find("Jane Roe")
    return [Span(at, at + 8, "PERSON", 0.6)] if at >= 0 else []


DETECTORS = Here(names=jane, key=b"k" * 32)
MASK = [{"detector": "pii", "action": "mask"}, {"detector": "secrets", "action": "hash"}]


def words(action):
    return {"detector": "moderation", "action": action, "lists": ["w.txt"]}


LEAK = {"detector": "leak", "action": "block", "canary": True}
POLICIES = {
    "identifier": [{"detector": "pii", "action": "mask", "entities": ["EMAIL_ADDRESS", "CREDIT_CARD"]}],
    "several": [*MASK, {"detector": "pii", "id": "seen", "action": "flag"}],
    "sentence": [*MASK, {"detector": "names", "action": "mask"}],
    "words masked": [words("mask")],
    "words blocked": [words("block")],
    "words noted": [words("flag")],
    "leak": [LEAK],
    "values blocked": [{"detector": "pii", "action": "block"}],
    "all": [*MASK, {"detector": "names", "action": "mask"}, words("mask"), LEAK],
    "all blocking": [*MASK, words("block"), LEAK],
}


def answer(folder, name, pieces):
    content = {"input": [{"detector": "pii", "action": "placeholder"}], "output": POLICIES[name]}
    guard = Guard(Policy("t", "0" * 12, PolicyContent.model_validate(content), folder), DETECTORS, system_prompt=PROMPT)
    guard.vault.placeholder("EMAIL_ADDRESS", "jane@example.com")
    output = OutputGuard(guard)
    shown = [output.feed(piece) for piece in pieces]
    return [*shown, output.finish()], output.blocked is not None


def chunked(text, cuts):
    marks = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=8), cuts=st.lists(st.integers(0, 900), max_size=15))
def test_any_chunking_gives_the_result_of_the_whole(folder, name, parts, cuts):
    text = "".join(parts)
    whole, blocked = answer(folder, name, [text])
    pieces, same = answer(folder, name, chunked(text, cuts))

    assert ("".join(pieces), same) == ("".join(whole), blocked)


@pytest.mark.parametrize("action", ["mask", "block"])
@pytest.mark.parametrize("phrase", ["alpha beta", "beta gamma delta", "alpha beta gamma delta", "al\u200bpha be.ta", "坏话连篇"])
def test_no_phrase_is_shown_in_part(folder, action, phrase):
    name = "words masked" if action == "mask" else "words blocked"
    shown, blocked = answer(folder, name, [*"well ", *phrase, *" then"])

    assert "".join(shown) == ("well " if action == "block" else "well *** then")
    assert blocked == (action == "block")


@pytest.mark.parametrize("start", [0, 20, 105])
def test_no_prompt_is_shown(folder, start):
    shown, blocked = answer(folder, "leak", [*"It says: ", *PROMPT[start:]])

    assert blocked
    assert len("".join(shown)) <= len("It says: ") + 1


def test_what_is_spoken_has_placeholders_still():
    guard = Guard(Policy("t", "0" * 12, PolicyContent()), DETECTORS)
    guard.vault.placeholder("EMAIL_ADDRESS", "a@example.com")
    output = OutputGuard(guard)

    assert output.feed("To [EMAIL_ADDRESS_1]. ") + output.finish() == "To a@example.com. "
    assert output.spoken == "To [EMAIL_ADDRESS_1]. "
