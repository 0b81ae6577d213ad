"""Weights come over HTTP whole, or not at all."""

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def served(tmp_path):
    """A folder over HTTP: (folder, URL)."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pack(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(url, digest, into):
    command = [sys.executable, "-m", "deploy.download", url, "--sha256", digest, "--into", str(into)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_archive_is_brought_once(served, tmp_path):
    folder, url = served
    digest = pack(folder / "w.tar.gz", {"small/1/model.safetensors": b"x" * 3_000_000, "small/latest": b"1"})
    into = tmp_path / "models"
    first = run(f"{url}/w.tar.gz", digest, into)
    (folder / "w.tar.gz").unlink()
    second = run(f"{url}/w.tar.gz", digest, into)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert (into / "small" / "1" / "model.safetensors").stat().st_size == 3_000_000
    assert "has it already" in second.stdout


def test_another_version_takes_the_place_of_its_folders(served, tmp_path):
    folder, url = served
    into = tmp_path / "models"
    run(f"{url}/a.tgz", pack(folder / "a.tgz", {"small/1/old": b"1", "other/1/kept": b"1"}), into)
    run(f"{url}/b.tgz", pack(folder / "b.tgz", {"small/2/new": b"2"}), into)

    assert sorted(file.relative_to(into).as_posix() for file in into.rglob("*") if file.is_file() and file.name[0] != ".") == [
        "other/1/kept", "small/2/new",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "digest", "told"),
    [
        ("w.tgz", "0" * 64, "is wanted; nothing was unpacked"),
        ("none.tgz", "0" * 64, "cannot be fetched"),
        ("text", None, "no archive"),
    ],
)
def test_what_is_not_it_leaves_nothing(served, tmp_path, name, digest, told):
    folder, url = served
    pack(folder / "w.tgz", {"small/1/model": b"1"})
    (folder / "text").write_text("hello", encoding="utf-8")
    done = run(f"{url}/{name}", digest or hashlib.sha256(b"hello").hexdigest(), tmp_path / "models")

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert told in done.stderr
    assert list((tmp_path / "models").iterdir()) == []


def test_an_archive_cannot_write_elsewhere(served, tmp_path):
    folder, url = served
    digest = pack(folder / "w.tgz", {"../../outside": b"1"})
    done = run(f"{url}/w.tgz", digest, tmp_path / "deep" / "models")

    assert (done.returncode, (tmp_path / "outside").exists()) == (1, False)


def test_a_server_that_is_away_is_told(tmp_path):
    done = run("http://127.0.0.1:9/w.tgz", "0" * 64, tmp_path / "models")

    assert (done.returncode, "cannot be fetched" in done.stderr) == (1, True)
