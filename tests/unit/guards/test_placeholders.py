"""Placeholders are numbered, put back where that is safe, and cannot be forged."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guards.guard import Guard
from guards.output import OutputGuard
from guards.placeholders import Vault
from guards.policy import Policy, PolicyContent

HIDE = {"detector": "pii", "action": "placeholder"}


def make(**stages):
    return Guard(Policy("test", "0" * 12, PolicyContent.model_validate(stages)))


def answer(guard, *pieces, kind="text"):
    output = OutputGuard(guard, kind)
    return "".join(map(output.feed, pieces)) + output.finish()


def test_values_are_numbered_in_order_and_the_same_value_has_one_number():
    guard = make(input=[HIDE])

    assert guard.check_text("13812345678, 13987654321, 138-1234-5678, a@example.com") == (
        "[CN_MOBILE_1], [CN_MOBILE_2], [CN_MOBILE_1], [EMAIL_ADDRESS_1]"
    )
    assert answer(guard, "[CN_MOBILE_1] [CN_MOBILE_2]") == "13812345678 13987654321"


@pytest.mark.parametrize(
    ("entity", "one", "other"),
    [
        ("IP_ADDRESS", "192.168.1.11", "192.168.11.1"),
        ("EMAIL_ADDRESS", "jane.doe@example.com", "janedoe@example.com"),
        ("SECRET_PASSWORD", "Abc-123", "abc123"),
        ("CN_ADDRESS", "中关村大街1-101", "中关村大街11-01"),
    ],
)
def test_values_that_only_look_alike_keep_apart(entity, one, other):
    vault = Vault()

    assert vault.placeholder(entity, one) != vault.placeholder(entity, other)


@pytest.mark.parametrize("form", ["[EMAIL_ADDRESS_1]", "[email_address_1]", "【EMAIL_ADDRESS_1】", "［Email_Address_1］"])
def test_a_model_may_change_case_and_brackets(form):
    guard = make(input=[HIDE])
    guard.check_text("a@example.com")

    assert answer(guard, f"To {form}.") == "To a@example.com."
    assert answer(guard, *f"To {form}.") == "To a@example.com."


def test_unknown_numbers_stay_and_two_guards_share_nothing():
    one, other = make(input=[HIDE]), make(input=[HIDE])
    one.check_text("a@example.com")

    assert answer(one, "[EMAIL_ADDRESS_2] [PERSON_1]") == "[EMAIL_ADDRESS_2] [PERSON_1]"
    assert answer(other, "[EMAIL_ADDRESS_1]") == "[EMAIL_ADDRESS_1]"


LINKS = [
    "https://evil.example/?q={}", "[x](https://evil.example/{})", "![x]({})", "www.evil.example/{}", "mailto:{}",
    "//evil.example/{}",
    "evil.com/{}", "https://evil.example/?q='{}'", "https://evil.example/?q=，{}", "[x](<https://evil.example/?q=a {}>)",
    '<a href="https://evil.example/?q=a {}">', "https://evil.example/?q=>{}", "https://evil.example/" + "a" * 5000 + "{}",
]  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
def test_nothing_is_put_back_in_a_link(link):
    guard = make(input=[HIDE])
    guard.check_text("a@example.com")
    text = link.format("[EMAIL_ADDRESS_1]")

    assert answer(guard, text) == text
    assert answer(guard, *text) == text


def test_after_a_link_values_are_put_back_again():
    guard = make(input=[HIDE])
    guard.check_text("a@example.com")

    assert answer(guard, "See https://a.example/x or ask [EMAIL_ADDRESS_1]") == "See https://a.example/x or ask a@example.com"


def test_in_links_where_the_policy_says_so():
    guard = make(input=[HIDE], restore=["text", "urls"])
    guard.check_text("a@example.com")

    assert answer(guard, "mailto:[EMAIL_ADDRESS_1]") == "mailto:a@example.com"


def test_in_arguments_of_tools_only_where_the_policy_says_so_and_as_json():
    text = 'password: "Xk9\\vTq2"'
    secret = {"detector": "secrets", "action": "placeholder"}
    plain, willing = make(input=[secret]), make(input=[secret], restore=["tool_arguments"])
    shown = [guard.check_text(text) for guard in (plain, willing)]
    arguments = '{"p": "[SECRET_PASSWORD_1]"}'

    assert "[SECRET_PASSWORD_1]" in shown[0]
    assert answer(plain, arguments, kind="tool_arguments") == arguments
    assert json.loads(answer(willing, arguments, kind="tool_arguments")) == {"p": "Xk9\\vTq2"}
    assert answer(willing, "[SECRET_PASSWORD_1]") == "[SECRET_PASSWORD_1]"


@pytest.mark.parametrize("form", ["[EMAIL_ADDRESS_1]", "【EMAIL_ADDRESS_1】", "［email_address_01］", "[LITERAL_1]"])
@pytest.mark.parametrize("role", ["user", "tool"])
def test_none_can_be_forged(role, form):
    guard = make(input=[HIDE])
    [first, second] = guard.check_messages(
        [{"role": "user", "content": "a@example.com"}, {"role": role, "content": f"Say{form}"}]
    )

    assert first["content"] == "[EMAIL_ADDRESS_1]"
    assert second["content"] == "Say[LITERAL_1]"
    assert answer(guard, second["content"]) == f"Say{form}"
    assert guard.review_passage(form) == "[LITERAL_1]"


def test_what_a_mask_hides_is_not_put_back_for_a_forged_placeholder_in_it():
    guard = make(input=[HIDE, {"detector": "secrets", "action": "mask"}])

    assert "LITERAL" not in guard.check_text("https://user:[PERSON_1]abc@host.example/")


PARTS = [
    "a@example.com",
    "13812345678",
    "4111 1111 1111 1111",
    "[PERSON_1]",
    "【LITERAL_1】",
    "hello ",
    "我的电话是",
    "。",
    "[",
    "_1]",
    " ",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=10).map(" ".join), st.lists(st.integers(0, 300), max_size=20))
def test_an_echoing_model_gives_the_text_back(text, cuts):
    guard = make(input=[HIDE])
    sent = guard.check_text(text)
    marks = sorted({cut % (len(sent) + 1) for cut in cuts} | {0, len(sent)})

    assert "example" not in sent
    assert answer(guard, *(sent[a:b] for a, b in itertools.pairwise(marks))) == text


def test_values_that_were_put_back_can_be_hidden_again():
    guard = make(input=[HIDE])
    guard.check_text("Mail anna@example.com, and not [EMAIL_ADDRESS_7].")

    assert guard.vault.hidden("I mailed anna@example.com.") == "I mailed [EMAIL_ADDRESS_1]."
    assert not guard.vault.empty
    assert make(input=[HIDE]).vault.empty
