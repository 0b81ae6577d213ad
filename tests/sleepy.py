"""An upstream that starts in a moment: `python tests/sleepy.py PORT FILE` (the standard library alone).

Every POST is written down in FILE, its id a line, before it is answered. The body says how: `stream`, `pieces`, `pace` seconds
between them, `dies_after` so many pieces, `head_seconds` before the answer. SLEEPY_FAILS in the environment names a file: as
long as it is there, the start fails.
"""

import json
import os  # noqa: TID251  a program of its own
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORDS = ["駅弁 ", "é ", "🍱 ", "word "]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(200 if self.path == "/health" else 404, {"path": self.path})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Path(sys.argv[2]).open("a") as file:
            file.write(f"{asked['id']}\n")
        time.sleep(asked.get("head_seconds", 0))
        if not asked.get("stream"):
            time.sleep(asked.get("pace", 0))
            self._answer(200, {"id": asked["id"], "text": "".join(WORDS)})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(asked.get("pieces", 4)):
            if number == asked.get("dies_after"):
                os._exit(9)
            self._chunk(event(asked["id"], number))
            time.sleep(asked.get("pace", 0))
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)  # without the look-up of a name
        self.server_name, self.server_port = self.server_address[:2]


def event(identity, number):
    return f"data: {json.dumps({'id': identity, 'text': WORDS[number % len(WORDS)]}, ensure_ascii=False)}\n\n".encode()


if __name__ == "__main__":
    fails = os.environ.get("SLEEPY_FAILS")
    if fails and Path(fails).exists():
        sys.exit("it cannot start")
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
