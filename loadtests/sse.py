"""Server-sent events out of bytes, however they were cut."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any


class StreamError(RuntimeError):
    """The stream carried an error event, or ended before its end."""


def events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each event until [DONE]; raises StreamError on an error event or a stream that is cut short."""
    buffer = b""
    for chunk in chunks:
        buffer = (buffer + chunk).replace(b"\r\n", b"\n")
        *whole, buffer = buffer.split(b"\n\n")
        for event in whole:
            data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
            if data == b"[DONE]":
                return
            if data:
                content = json.loads(data)
                if "error" in content:
                    raise StreamError(content["error"]["message"])
                yield content
    msg = "the stream ended without [DONE]"
    raise StreamError(msg)
