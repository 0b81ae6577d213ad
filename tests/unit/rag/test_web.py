"""Only listed hosts, only public addresses, only so much, only so long: against a real server on the loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from yarl import URL

from rag.decoding import Unreadable
from rag.survey import Place
from rag.web import Web


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        port = self.server.server_address[1]
        where = {
            "/away": "http://example.org/", "/by-name": f"http://localhost:{port}/page", "/on": "/page",
            "/round": "/round", "/file": "file:///etc/passwd", "/odd": "http://[bad",
        }.get(self.path)  # fmt: skip
        self.send_response(302 if where else 404 if self.path == "/none" else 200)
        if where:
            self.send_header("location", where)
        self.send_header("content-type", "text/html; charset=gbk" if self.path == "/page" else "text/plain")
        self.end_headers()
        if self.path == "/big":
            self.wfile.write(b"x" * 5000)
        elif self.path == "/slow":
            self.server.ended.wait(5)
        else:
            self.wfile.write("<h1>退票</h1>免费".encode("gbk"))

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.ended = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.ended.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/page", "/on"])
def test_a_page_and_a_redirect_within_the_list(server, path):
    page = Web([server], 1000).fetch(f"http://{server}{path}")

    assert (page.data.decode("gbk"), page.kind, page.declared) == ("<h1>退票</h1>免费", ".html", "gbk")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/away", "host example.org .* is not in allow_hosts"),
        ("/file", "is no http or https URL"),
        ("/round", "redirected more than"),
        ("/odd", "not fetched: ValueError"),
        ("/none", "answers 404"),
        ("/big", "over 0 MiB"),
    ],
)
def test_refused(server, path, why):
    with pytest.raises(Unreadable, match=why):
        Web([server], 1000).fetch(f"http://{server}{path}")


def test_a_name_that_leads_inside_is_refused_unless_the_address_is_listed(server):
    port = server.rpartition(":")[2]
    url = f"http://localhost:{port}/page"

    with pytest.raises(Unreadable, match="localhost leads to a private address"):
        Web([f"localhost:{port}"], 1000).fetch(url)
    with pytest.raises(Unreadable, match=r"host localhost .* is not in allow_hosts"):
        Web([server], 1000).fetch(f"http://{server}/by-name")
    assert Web([f"localhost:{port}", "127.0.0.0/8", "::1"], 1000).fetch(url).kind == ".html"


def test_a_slow_server_is_left(server):
    with pytest.raises(Unreadable, match=r"within 0\.3 s"):
        Web([server], 1000, seconds=0.3).fetch(f"http://{server}/slow")


def test_nobody_there():
    with pytest.raises(Unreadable, match="not fetched"):
        Web(["127.0.0.1:9"], 1000).fetch("http://127.0.0.1:9/")


@pytest.mark.parametrize(
    ("url", "allow", "refused"),
    [
        ("https://example.com/a", ["example.com"], False),
        ("https://example.com:8443/a", ["example.com"], True),
        ("https://example.com:8443/a", ["example.com:8443"], False),
        ("https://docs.example.com/", ["*.example.com"], False),
        ("https://example.com/", ["*.example.com"], True),
        ("https://badexample.com/", ["*.example.com", "example.com"], True),
        ("https://example.com.evil.org/", ["example.com"], True),
        ("https://example.com@evil.org/", ["example.com"], True),
        ("ftp://example.com/", ["example.com"], True),
        ("http://10.2.3.4/", ["10.2.0.0/16"], False),
        ("http://10.3.3.4/", ["10.2.0.0/16"], True),
        ("http://[::1]/", ["::1"], False),
        ("http://169.254.169.254/", ["*.com"], True),
    ],
)
def test_hosts(url, allow, refused):
    assert (Web(allow, 1).refusal(URL(url)) is not None) is refused


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("8.8.8.8", True),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("::ffff:10.0.0.1", False),
        ("fd00::1", False),
        ("10.2.0.9", True),
    ],
)
def test_names_lead_to_public_addresses(address, reached):
    assert Web(["example.com", "10.2.0.0/16"], 1).reaches(address) is reached


def test_a_survey_fetches(server, tmp_path):
    found = Place(tmp_path, (f"http://{server}/page#part", f"http://{server}/none"), allow_hosts=[server]).survey()

    assert [(item.name, item.kind, item.declared) for item in found.items] == [(f"http://{server}/page", ".html", "gbk")]
    assert found.refused == {f"http://{server}/none": "not fetched: the server answers 404"}
