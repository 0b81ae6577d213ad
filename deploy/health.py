"""A container's health check: `python -IS health.py URL` ends with 0 when the URL answers 200.

It runs every few seconds beside the box, so it imports next to nothing and needs no curl in the image.
"""

import http.client
import sys
from urllib.parse import urlsplit

SECONDS = 6.0


def answers(url: str) -> bool:
    """Whether the URL, which is plain HTTP, answers 200 in time."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=SECONDS)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1]) else 1)
