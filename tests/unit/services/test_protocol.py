"""The wire format: what is refused, and what reaches the engine."""

import json

import pytest

from services.errors import InvalidRequest
from services.parameters import SamplingParameters
from services.protocol import ChatRequest, CompletionRequest, EmbeddingRequest, frame, parse

HELLO = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return parse(ChatRequest, json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'"x"', "invalid_json"),
        (b'{"model": "m\xff"}', "invalid_json"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
        (b'{"temperature": NaN}', "invalid_json"),
        (b"[" * 10_000, "invalid_json"),
        (b"{}", "missing_required_parameter"),
    ],
)
def test_bodies_that_are_not_requests(body, code):
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, body)

    assert caught.value.code == code


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0].type"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stop": [""]}, "stop[0]"),
        ({"seed": 2**70}, "seed"),
        ({"logit_bias": {"5": 1000}}, "logit_bias.5"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"nonsense": 1}, "nonsense"),
        ({"model": ""}, "model"),
    ],
)
def test_refused_with_the_field(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)

    assert caught.value.status == 400
    assert (caught.value.param or "").startswith(param.split("[")[0].split(".")[0])
    assert "hi" not in caught.value.message


def test_stream_options_need_a_stream():
    with pytest.raises(InvalidRequest, match="stream_options"):
        chat(stream_options={"include_usage": True})


def test_a_requests_own_values_override_the_routes():
    defaults = SamplingParameters(temperature=0.5, max_tokens=9)
    payload = chat(temperature=0, user="u", metadata={"a": "b"}, top_k=3).payload(defaults)

    assert payload == {"temperature": 0, "max_tokens": 9, "top_k": 3, "stream": False, "messages": HELLO}
    assert "max_tokens" not in chat(max_completion_tokens=4).payload(defaults)


def test_what_clients_send_back_of_earlier_answers_is_taken():
    message = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None, "reasoning": None}

    assert chat(messages=[message]).messages[0].content == "x"


def test_prompts_of_completions():
    for prompt in ("a", ["a", "b"], [1, 2], [[1], [2]]):
        assert parse(CompletionRequest, json.dumps({"model": "m", "prompt": prompt}).encode()).prompt == prompt
    with pytest.raises(InvalidRequest):
        parse(CompletionRequest, b'{"model": "m", "prompt": {"a": 1}}')


def test_embeddings_need_text():
    with pytest.raises(InvalidRequest):
        parse(EmbeddingRequest, b'{"model": "m", "input": ""}')


def test_frames_are_utf8():
    assert frame({"a": "火车"}) == 'data: {"a":"火车"}\n\n'.encode()


@pytest.mark.parametrize(
    ("prompt", "n", "answers"), [("a", None, 1), ("a", 3, 3), (["a", "b"], 2, 4), ([1, 2, 3], None, 1), ([[1], [2, 3]], None, 2)]
)
def test_a_completion_has_answers_to_each_prompt(prompt, n, answers):
    assert CompletionRequest(model="m", prompt=prompt, n=n).answers == answers
