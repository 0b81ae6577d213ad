"""`ekiben bento` over folders: what it says, and what it leaves behind."""

import pytest
from typer.testing import CliRunner

from services.cli import app, bento
from services.manifest import Manifest, PackedModel

LOCK = "aiohttp==3.14.5 \\\n    --hash=sha256:aa\n"


@pytest.fixture
def box(tmp_path):
    """A Bento with a manifest and a lock."""
    folder = tmp_path / "box"
    (folder / "env" / "python").mkdir(parents=True)
    (folder / "env" / "python" / "requirements.txt").write_text(LOCK)
    model = PackedModel(tag="m:1", bytes=7, files={"w": "0" * 64}, source="path:m", revision="1", recipe="none")
    Manifest(name="box", version="v1", model=model, python="3.11", packages={}, hashes=0, files={}).write(folder)
    return folder


def ekiben(*arguments):
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["bento", *map(str, arguments)])


def test_two_manifests_that_are_the_same_vouch_for_no_file(box):
    done = ekiben("diff", box, box)

    assert done.exit_code == 0
    assert "files were not read: `ekiben bento verify` does" in done.stdout


def test_a_version_alone_is_of_this_bundle(box, monkeypatch):
    monkeypatch.setattr(bento, "_here", lambda: "box:fedcba9876543210")

    assert bento._which("0123456789abcdef") == "box:0123456789abcdef"
    assert bento._which(None) == "box:fedcba9876543210"
    assert bento._which(str(box)) == str(box)
    assert "box:0123456789abcdef is not in the store" in ekiben("diff", box, "0123456789abcdef").stderr
    assert "box:fedcba9876543210 is not in the store" in ekiben("diff", box).stderr


@pytest.mark.parametrize("name", ["none/x.json", "folder"])
def test_a_bill_that_cannot_be_written_is_one_line_and_leaves_nothing(box, tmp_path, name):
    (tmp_path / "folder" / "kept").mkdir(parents=True)
    done = ekiben("sbom", box, "-o", tmp_path / name)

    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_bill_is_written(box, tmp_path):
    assert ekiben("sbom", box, "-o", tmp_path / "x.json").exit_code == 0
    assert (tmp_path / "x.json").read_text() == ekiben("sbom", box).stdout


def test_what_is_no_bento_is_told_in_one_line(tmp_path):
    (tmp_path / "README.md").write_text("hello")
    done = ekiben("verify", tmp_path / "README.md")

    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
