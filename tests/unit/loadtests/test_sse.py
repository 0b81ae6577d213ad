"""The load test's own reading of streams."""

import json

import pytest

from loadtests.sse import StreamError, events


def frames(*contents):
    return b"".join(b"data: " + json.dumps(c, ensure_ascii=False).encode() + b"\n\n" for c in contents)


@pytest.mark.parametrize("size", [1, 3, 8, 999])
def test_any_cut(size):
    whole = frames({"a": "火车"}) + b": keep-alive\n\n" + frames({"b": 1}).replace(b"\n", b"\r\n") + b"data: [DONE]\n\n"

    assert list(events(whole[i : i + size] for i in range(0, len(whole), size))) == [{"a": "火车"}, {"b": 1}]


def test_an_error_event_or_a_cut_stream_is_a_failure():
    with pytest.raises(StreamError, match="lost"):
        list(events([frames({"error": {"message": "lost"}})]))
    with pytest.raises(StreamError, match="DONE"):
        list(events([frames({"a": 1})]))
