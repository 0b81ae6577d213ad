"""Prompts: versions by content, values as data."""

import pytest

from prompts.template import PromptError, load_prompt


@pytest.fixture
def prompt_file(tmp_path):
    def write(text):
        path = tmp_path / "prompt.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_version_is_that_of_the_content_not_of_the_file(prompt_file):
    one = load_prompt("p", prompt_file("description: a\nsystem: Hello\n"))
    two = load_prompt("p", prompt_file("# a comment\nsystem: 'Hello'\n"))
    other = load_prompt("p", prompt_file("system: Hello!\n"))

    assert one.version == two.version != other.version
    assert one.label == f"p@{one.version}"


def test_renders_around_the_callers_messages(prompt_file):
    prompt = load_prompt("p", prompt_file("system: Be kind.\nuser: '{{ passages }} Q: {{ question }}'\n"))
    messages = [
        {"role": "system", "content": "mine"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and?"},
    ]
    rendered = prompt.render(messages, question="and?", passages="[1] x")

    assert [m["content"] for m in rendered] == ["Be kind.", "mine", "first", "yes", "[1] x Q: and?"]
    assert messages[-1]["content"] == "and?"


def test_values_are_never_rendered_again(prompt_file):
    prompt = load_prompt("p", prompt_file("system: s\nuser: '{{ question }}'\n"))
    [_, user] = prompt.render([{"role": "user", "content": "x"}], question="{{ 7 * 7 }}")

    assert user["content"] == "{{ 7 * 7 }}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("system: '{{ secrets }}'\n", "secrets"),
        ("system: '{{ question '\n", "not a prompt"),
        ("sytem: x\n", "sytem"),
        ("[]\n", "not a prompt"),
        ("system: ''\n", "at least 1"),
    ],
)
def test_refuses(prompt_file, text, reason):
    with pytest.raises(PromptError, match=reason):
        load_prompt("p", prompt_file(text))


def test_the_sandbox_holds(prompt_file):
    prompt = load_prompt("p", prompt_file("system: '{{ question.__class__.__mro__ }}'\n"))
    with pytest.raises(Exception, match="unsafe"):
        prompt.render([], question="x")
