"""A light box: the gateway where no command is told, the engine where `engine serve` is. Only for tests of how pods are kept."""

import json
import os  # noqa: TID251  a program of its own
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def kept():
    """What the kernel says of this process, and where it can write."""
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if ":\t" in line
    )
    places = {"root": writable("/"), "tmp": writable("/tmp"), "state": writable("/home/bentoml/state")}
    return {"uid": os.getuid(), "capabilities": int(status["CapEff"], 16), "no_new_privs": status["NoNewPrivs"], **places}


def writable(folder):
    try:
        Path(folder, "probe").write_text("x", encoding="utf-8")
    except OSError:
        return False
    return True


class Handler(BaseHTTPRequestHandler):
    engine = False

    def do_GET(self):
        self.send({})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = f"Bearer {os.environ['EKIBEN_ENGINE_KEY']}"
        if self.engine:
            self.send({"engine": kept()} if self.headers["Authorization"] == key else {"error": "key"})
            return
        asked = urllib.request.Request(f"{os.environ['EKIBEN_ENGINE_URL']}{self.path}", body, {"Authorization": key})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            self.send({**json.load(answer), "gateway": kept()})

    def send(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


Handler.engine = sys.argv[-2:] == ["engine", "serve"]
ThreadingHTTPServer(("", int(os.environ["EKIBEN_ENGINE_PORT"]) if Handler.engine else 3000), Handler).serve_forever()
