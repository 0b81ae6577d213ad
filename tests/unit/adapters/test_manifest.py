"""What an adapter says of itself, and the version that follows from its files."""

import json

import pytest

from adapters.manifest import CONFIG, MANIFEST, WEIGHTS, AdapterError, Manifest, digest_files, read_manifest, write_manifest

MADE = Manifest(name="a", base_source="pypi:base==1", dataset="d", system_prompt="说", sha256="0" * 64, labels=["yes", "no"])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    write_manifest(tmp_path, MADE)
    return tmp_path


def test_what_was_written_is_read(folder):
    assert read_manifest(folder) == MADE
    assert "说" in (folder / MANIFEST).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sha256": "short"}, "sha256: String should match"),
        ({"name": None}, "name: "),
        ({"labels": ["yes", 3]}, r"labels\.1: "),
        ({"colour": "red"}, "colour: Extra inputs"),
    ],
)
def test_a_wrong_field_is_named(folder, changes, says):
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}))
    with pytest.raises(AdapterError, match=rf"ekiben\.json: {says}.*ekiben adapter train"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "\xff"}'])
def test_what_is_no_manifest_is_refused(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(AdapterError, match=r"ekiben\.json: file: "):
        read_manifest(folder)


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(AdapterError, match=r"ekiben\.json cannot be read: No such file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, MANIFEST, WEIGHTS])
def test_the_version_follows_each_file(folder, name):
    before = digest_files(folder)
    path = folder / name
    path.write_bytes(path.read_bytes() + b" ")

    assert len(before) == 16
    assert digest_files(folder) != before


def test_the_version_does_not_follow_the_card_or_the_place(folder, tmp_path_factory):
    before = digest_files(folder)
    (folder / "README.md").write_text("# A")
    moved = folder.rename(tmp_path_factory.mktemp("other") / "a")

    assert digest_files(moved) == before
