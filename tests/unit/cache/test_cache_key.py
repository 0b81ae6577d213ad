"""What must be the same for an answer to be given again."""

import pytest

from cache.key import Scope, divide

VERSIONS = ("route", "model", "adapter", "prompt", "index", "policy")


def test_the_same_scope_and_question_have_one_key_in_any_order(scope):
    one = scope(labels=["a", "b", "a"], parameters={"x": 1, "y": [1, 2]})
    other = scope(labels={"b", "a"}, parameters={"y": [1, 2], "x": 1})

    assert one.key("why?") == other.key("why?")
    assert len(one.digest) == len(one.key("why?")) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "t2"},
        {"labels": ["staff", "boss"]},
        {"labels": []},
        {"documents": "8"},
        {"documents": None},
        {"parameters": {"temperature": 0.5, "max_tokens": 10}},
        {"parameters": {}},
        {"context": []},
        {"context": [{"role": "system", "content": "Be long."}]},
    ],
)
def test_whatever_makes_the_answer_changes_scope_and_key(scope, changes):
    assert scope(**changes).digest != scope().digest
    assert scope(**changes).key("why?") != scope().key("why?")


@pytest.mark.parametrize("name", VERSIONS)
def test_another_version_of_anything_misses(scope, name):
    versions = {**scope().versions, name: "other"}

    assert scope(versions=versions).digest != scope().digest
    assert scope(versions={**versions, name: None}).digest != scope(versions=versions).digest


def test_fields_do_not_run_into_each_other(scope):
    assert scope(tenant="t1", documents="x").digest != scope(tenant="x", documents="t1").digest
    assert scope().key("a") != scope().key("a ")


def test_a_lone_surrogate_has_a_key_and_what_is_not_json_has_none(scope):
    assert len(scope().key("\ud800")) == 64
    with pytest.raises(ValueError, match="JSON compliant"):
        _ = scope(parameters={"temperature": float("nan")}).digest
    with pytest.raises(TypeError):
        _ = Scope("t", [], {}, {"x": object()}).digest


def test_the_question_is_the_last_message_of_the_user():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "why?", "name": "n"}]

    assert divide(messages) == ([{"role": "system", "content": "s"}, {"role": "user", "name": "n"}], "why?")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert divide([{"role": "user", "content": parts}]) == ([{"role": "user"}], "a\nb")


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": "Because"},
        {"role": "tool", "content": "3"},
        {"role": "user", "content": "  "},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
    ],
)
def test_where_the_last_message_is_no_question_all_is_context(last):
    assert divide([{"role": "user", "content": "q"}, last]) == ([{"role": "user", "content": "q"}, last], "")
