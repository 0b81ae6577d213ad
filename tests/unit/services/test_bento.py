"""What is packed, and a build that must not begin or end."""

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services import bento, packed, store
from services.cli import app
from services.manifest import BentoError


class Silent:
    def step(self, text):
        pass

    def advance(self, done, total):
        pass

    def note(self, text):
        pass


@pytest.fixture
def home(tmp_path, monkeypatch):
    for module in (bento, store):
        monkeypatch.setattr(module, "bento_home", lambda: tmp_path)
    monkeypatch.setattr(bento, "tag_here", lambda: "box:v1")
    return tmp_path


def test_the_whitelist_is_searched_for_outside_of_hidden_folders(tmp_path):
    (tmp_path / "bentofile.yaml").write_text("include: [code/*.py, box.toml]\n")
    for name in ("code/a.py", "code/a.txt", "code/deep/b.py", "box.toml", "part/box.toml", ".venv/box.toml", ".tools/box.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    found = [path.relative_to(tmp_path).as_posix() for path in packed.packed_files(tmp_path)]
    assert found == ["box.toml", "code/a.py", "part/box.toml"]


def test_a_bento_of_plain_bentoml_is_not_taken_for_ours(home):
    (home / "bentos" / "box" / "v1").mkdir(parents=True)

    with pytest.raises(BentoError, match="`bentoml delete box:v1`"):
        bento.build(Silent())


def test_one_that_is_there_is_left_alone(home):
    (home / "bentos" / "box" / "v1").mkdir(parents=True)
    (home / "bentos" / "box" / "v1" / "manifest.json").write_text("{}")

    assert bento.build(Silent()) is None


def test_a_build_that_fails_leaves_nothing(home, monkeypatch):
    """BentoML has no models here, and says so."""
    monkeypatch.setattr(bento, "ROOT", home)

    with pytest.raises(BentoError, match="`bentoml build` failed"):
        bento.build(Silent())
    assert list((home / "tmp").iterdir()) == []
    assert not (home / "bentos").exists()


def test_files_that_change_meanwhile_end_the_build(home, monkeypatch):
    monkeypatch.setattr(bento, "_built", lambda scratch, name, version: scratch)
    monkeypatch.setattr(bento, "version_here", lambda: "v2")

    with pytest.raises(BentoError, match="changed while"):
        bento.build(Silent())
    assert not (home / "bentos").exists()


def test_a_finished_bento_is_let_in_at_once_and_is_the_latest(home):
    (home / "made").mkdir()
    (home / "made" / "bento.yaml").write_text("name: box\n")
    store.admit(home / "made", "box", "v1")

    assert (home / "bentos" / "box" / "v1" / "bento.yaml").is_file()
    assert (home / "bentos" / "box" / "latest").read_text() == "v1"


def test_a_bento_that_another_build_brought_is_not_replaced(home):
    for folder in ("made", "bentos/box/v1"):
        (home / folder).mkdir(parents=True)
        (home / folder / "file").write_text(folder)

    with pytest.raises(BentoError, match="cannot be made"):
        store.admit(home / "made", "box", "v1")
    assert (home / "bentos" / "box" / "v1" / "file").read_text() == "bentos/box/v1"


def test_a_store_on_another_disk_is_told(home, monkeypatch):
    def rename(_path, _target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", rename)

    with pytest.raises(BentoError, match="one file system"):
        store.admit(home / "made", "box", "v1")


@pytest.mark.parametrize("command", ["inspect", "verify", "digest", "sbom"])
@pytest.mark.parametrize(
    ("which", "told"),
    [("nosuch:1", "nosuch:1 is not in the store"), ("./nosuch.bento", "does not exist"), ("not a tag", "cannot be used")],
)
def test_what_is_not_there_is_told_in_one_line(command, which, told):
    done = CliRunner().invoke(app, ["bento", command, which])

    assert done.exit_code == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["inspect", "verify", "digest", "sbom"])
def test_a_folder_that_ekiben_did_not_make(command, tmp_path):
    (tmp_path / "bento.yaml").write_text("name: box\n")
    done = CliRunner().invoke(app, ["bento", command, str(tmp_path)])

    assert done.exit_code == 1
    assert "was not made by `ekiben bento build`" in done.stderr


def test_the_licence_is_that_of_the_card_or_the_pipeline(tmp_path):
    assert bento._license(tmp_path) is None

    (tmp_path / "meta.json").write_text('{"license": "MIT"}')
    assert bento._license(tmp_path) == "MIT"

    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# card\n")
    assert bento._license(tmp_path) == "apache-2.0"


def test_the_revision_is_that_of_the_source():
    assert bento._revision("pypi:a-b==1.2", "m:7") == "1.2"
    assert bento._revision("hf:org/m@abc", "m:7") == "abc"
    assert bento._revision("path:folder@x", "m:7") == "7"
