"""Scopes, bodies and tests of facts that need no other package."""

import re

import pytest

from cache.agreement import Facts
from cache.key import Scope

VERSIONS = {"route": "chat", "model": "m:1", "adapter": "a:1", "prompt": "p@1", "index": "i:1", "policy": "default@1"}


def _numbers(one, other):
    return set(re.findall(r"\d+", one)) != set(re.findall(r"\d+", other))


def _opposed(one, other):
    return (" not " in one) != (" not " in other)


@pytest.fixture
def facts():
    return Facts(_numbers, _opposed)


@pytest.fixture
def scope():
    def scope(**changes):
        given = {
            "tenant": "t1", "labels": ["staff"], "versions": VERSIONS, "parameters": {"temperature": 0.0, "max_tokens": 10},
            "context": [{"role": "system", "content": "Be brief."}], "documents": "7",
        }  # fmt: skip
        return Scope(**{**given, **changes})

    return scope


@pytest.fixture
def body():
    def body(text="forty-two", reason="stop", choices=1, **message):
        said = {"role": "assistant", "content": text, **message}
        return {
            "object": "chat.completion",
            "choices": [{"index": i, "message": said, "finish_reason": reason} for i in range(choices)],
        }

    return body
