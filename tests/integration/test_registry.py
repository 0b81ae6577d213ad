"""Images pushed into a folder, a real registry, and servers that refuse; nothing half-made is left."""

import http.server
import json
import shutil
import socket
import subprocess
import threading
import time

import pytest

from services.journal import ReleaseError
from services.registry import Place
from tests.images import image

if shutil.which("skopeo") is None:
    pytest.skip("NO skopeo HERE: pushes of images are not tested; apt-get install skopeo", allow_module_level=True)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def one(tmp_path):
    return image(tmp_path / "one", b"base" * 1000, b"one")


@pytest.fixture
def two(tmp_path):
    return image(tmp_path / "two", b"base" * 1000, b"two" * 1_000_000)


def test_versions_lie_side_by_side_in_a_folder_and_share_their_layers(tmp_path, one, two):
    place = Place.read(f"oci:{tmp_path / 'out'}")
    assert place.digest("1") is None
    first = place.push(one, "1")
    before = len(content(tmp_path / "out"))
    second = place.push(two, "2")

    assert (place.digest("1"), place.digest("2"), place.digest("3")) == (first, second, None)
    assert first != second
    assert len(content(tmp_path / "out")) == before + 3  # a layer, a configuration, a manifest
    again = content(tmp_path / "out")
    assert place.push(two, "2") == second
    assert content(tmp_path / "out").keys() == again.keys()


def test_a_push_that_breaks_leaves_a_folder_as_it_was(tmp_path, one, two):
    place, out = Place.read(f"oci:{tmp_path / 'out'}"), tmp_path / "out"
    lost = max((tmp_path / "two" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    lost.write_bytes(lost.read_bytes()[:-1] + b"x")
    with pytest.raises(ReleaseError, match="does not take"):
        place.push(two, "2")
    assert not out.exists()

    place.push(one, "1")
    before = content(out)
    with pytest.raises(ReleaseError) as error:
        place.push(two, "2")
    assert "\n" not in str(error.value)
    assert content(out) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("box", "write REGISTRY/NAME"),
        ("Registry.example/Box", "in small letters"),
        ("registry.example/box:1", "without a tag"),
        ("https://registry.example/box", "write REGISTRY/NAME"),
        ("oci:", "oci:FOLDER"),
        ("oci:a:b", "without a tag"),
    ],
)
def test_what_is_no_place_for_images_is_told(text, told):
    with pytest.raises(ReleaseError, match=told):
        Place.read(text)


@pytest.fixture
def registry(tmp_path):
    """Debian's registry on a port of its own."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("NO docker-registry HERE: pushes to a real registry are not tested; apt-get install docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "registry.yml").write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'kept'}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = subprocess.Popen([program, "serve", str(tmp_path / "registry.yml")], stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None
        time.sleep(0.05)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


def test_a_registry_takes_versions_and_gives_them_back(tmp_path, registry, one, two):
    place = Place.read(f"{registry}/team/box", plain_http=True)
    assert place.digest("1") is None
    first, second = place.push(one, "1"), place.push(two, "2")

    assert (place.digest("1"), place.digest("2"), place.digest("3")) == (first, second, None)
    assert place.push(one, "1") == first


class Refusing(http.server.BaseHTTPRequestHandler):
    """A registry that takes layers and refuses the manifest, or everything."""

    refuses = "manifests"
    seen: list[str] = []  # noqa: RUF012  emptied by each test

    def log_message(self, *_):
        pass

    def _answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def _any(self):
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        self.rfile.read(length)
        self.seen.append(f"{self.command} {self.path.partition('?')[0]}")
        if self.path == "/v2/":
            return self._answer(200)
        if self.refuses in self.path and self.command in {"PUT", "POST"}:
            told = {"errors": [{"code": "DENIED", "message": "the quota of team is used up"}]}
            return self._answer(403, [("Content-Type", "application/json")], json.dumps(told).encode())
        if self.command == "POST":
            return self._answer(202, [("Location", f"{self.path}upload"), ("Docker-Upload-UUID", "u")])
        if self.command == "PATCH":
            return self._answer(202, [("Location", self.path), ("Docker-Upload-UUID", "u")])
        return self._answer(201 if self.command == "PUT" else 404)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _any  # noqa: N815  the library's names


@pytest.fixture
def refusing():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Refusing.seen.clear()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("at", ["manifests", "blobs"])
def test_a_registry_that_refuses_is_told_in_one_line_and_names_no_version(refusing, monkeypatch, two, at):
    monkeypatch.setattr(Refusing, "refuses", at)
    place = Place.read(f"127.0.0.1:{refusing.server_port}/team/box", plain_http=True)
    with pytest.raises(ReleaseError) as error:
        place.push(two, "2")

    assert "the quota of team is used up" in str(error.value)
    assert str(error.value).startswith(f"the registry 127.0.0.1:{refusing.server_port} does not take")
    assert "\n" not in str(error.value)
    assert place.digest("2") is None
    named = [line for line in Refusing.seen if line.startswith("PUT") and "manifests" in line]
    assert not named if at == "blobs" else named == ["PUT /v2/team/box/manifests/2"] * len(named)


def test_a_registry_that_is_not_there_is_told(one):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = Place.read(f"127.0.0.1:{port}/box", plain_http=True)
    with pytest.raises(ReleaseError, match="connection refused"):
        place.push(one, "1")
    with pytest.raises(ReleaseError, match=r"does not answer: .*connection refused"):
        place.digest("1")
