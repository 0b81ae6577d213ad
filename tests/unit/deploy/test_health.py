"""The health check of a container."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from deploy.health import answers


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/readyz" else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_it_follows_the_status(server):
    assert answers(f"{server}/readyz")
    assert not answers(f"{server}/livez")


def test_nobody_there_is_no_answer():
    assert not answers("http://127.0.0.1:1/readyz")
