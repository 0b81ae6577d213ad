"""What a call of an engine is charged."""

import pytest

from services.meter import Call, Tokens, prompt_tokens, read_usage, speaks

ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
WORD = {"choices": [{"index": 0, "delta": {"content": "word"}}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}}}


def taken(*events):
    call = Call(30)
    for event in events:
        call.event(event)
    return call.tokens


def test_the_engines_count_goes_before_estimates():
    assert taken(ROLE, WORD, WORD, USAGE) == Tokens(9, 5, 4)


@pytest.mark.parametrize(("events", "tokens"), [((), (0, 0, 0)), ((ROLE,), (0, 0, 0)), ((ROLE, WORD, WORD), (30, 0, 2))])
def test_a_stream_without_its_end_is_charged_for_what_came(events, tokens):
    assert taken(*events) == tokens


def test_who_leaves_while_the_engine_works_pays_for_the_prompt():
    call = Call(30)
    call.worked = True

    assert call.tokens == Tokens(30, 0, 0)


def test_a_whole_answer_without_usage_is_estimated():
    call = Call(30)
    call.body({"choices": [{"message": {"content": "x" * 30}}, {"text": "y" * 3}]})

    assert call.tokens == Tokens(30, 0, 11)


@pytest.mark.parametrize("usage", [None, "9", {"prompt_tokens": -1}, {"completion_tokens": 1.5}, {"prompt_tokens": "9"}])
def test_what_is_no_count(usage):
    assert read_usage(usage) is None


def test_no_more_is_cached_than_there_is():
    assert read_usage({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}}) == Tokens(3, 3, 0)


@pytest.mark.parametrize(
    ("payload", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 9}, {"role": "user", "content": [{"type": "text", "text": "yy"}]}]}, 4),
        ({"prompt": "x" * 9}, 3),
        ({"prompt": ["xxx", "yyy"]}, 3),
        ({"prompt": [1, 2, 3]}, 3),
        ({"prompt": [[1, 2], [3]]}, 3),
    ],
)
def test_prompts_are_estimated(payload, tokens):
    assert prompt_tokens(payload) == tokens


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"delta": {"role": "assistant", "content": ""}}, False),
        ({"delta": {"content": "x"}}, True),
        ({"delta": {"tool_calls": [{}]}}, True),
        ({"delta": {"reasoning": "x"}}, True),
        ({"text": "x"}, True),
        ({"text": ""}, False),
    ],
)
def test_what_says_something(choice, says):
    assert speaks(choice) is says
