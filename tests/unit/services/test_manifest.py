"""The manifest of a Bento, and what changed between two."""

import json

import pytest

from services.manifest import (
    BentoError,
    Manifest,
    PackedAdapter,
    PackedModel,
    bento_files,
    changes,
    locked,
    manifest_digest,
    read_manifest,
)

MODEL = PackedModel(
    tag="m:1", bytes=3, files={"w": "a" * 64}, source="pypi:m==1.0", revision="1.0", recipe="w8a8", quality={"nll": 1.5}
)
ADAPTER = PackedAdapter(tag="ad:1", bytes=1, files={"w": "b" * 64}, base="pypi:m==1.0", rank=8, dataset="rows")
BASE = Manifest(
    name="box", version="v1", model=MODEL, adapters={"ad": ADAPTER}, prompts={"p": "1"}, policies={"d": "1"}, python="3.11",
    packages={"a": "1", "b": "1"}, hashes=2, files={"src/x.py": "c" * 64},
)  # fmt: skip


def test_what_is_written_is_read_and_has_one_digest(tmp_path):
    BASE.write(tmp_path)
    first = (tmp_path / "manifest.json").read_bytes()
    BASE.write(tmp_path)

    assert read_manifest(tmp_path) == BASE
    assert (tmp_path / "manifest.json").read_bytes() == first
    assert manifest_digest(tmp_path).startswith("sha256:")


def test_a_folder_that_is_no_bento(tmp_path):
    with pytest.raises(BentoError, match="that is no Bento"):
        read_manifest(tmp_path)


def test_a_bento_of_plain_bentoml(tmp_path):
    (tmp_path / "bento.yaml").write_text("name: box\n")

    with pytest.raises(BentoError, match="not made by `ekiben bento build`"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({**BASE.model_dump(), "format": 2}), '{"name": "box"}'])
def test_a_manifest_that_cannot_be_read(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)

    with pytest.raises(BentoError, match="altered, or made by another version"):
        read_manifest(tmp_path)


def test_every_file_is_listed_but_the_manifest_and_models_that_travel_along(tmp_path):
    for name in ("bento.yaml", "manifest.json", "src/a.py", "src/models/b.py", "models/m/1/w"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    assert [path.relative_to(tmp_path).as_posix() for path in bento_files(tmp_path)] == [
        "bento.yaml",
        "src/a.py",
        "src/models/b.py",
    ]


def test_a_lock_is_read_with_its_hashes():
    text = (
        "torch==2.13.0+cpu \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\npsycopg[binary,pool]==3.3.9 \\\n"
        "    --hash=sha512:cc\nplain==1\n"
    )

    assert locked(text) == [
        ("torch", "2.13.0+cpu", ["sha256:aa", "sha256:bb"]),
        ("psycopg", "3.3.9", ["sha512:cc"]),
        ("plain", "1", []),
    ]


def test_the_same_has_no_changes():
    assert changes(BASE, BASE) == []


def test_every_kind_of_change_is_named():
    model = MODEL.model_copy(update={"tag": "m:2", "recipe": "none", "files": {"w": "e" * 64}})
    other = BASE.model_copy(
        update={
            "version": "v2", "model": model, "adapters": {}, "prompts": {"p": "2"}, "policies": {"d": "1", "n": "1"},
            "packages": {"a": "2", "c": "1"}, "files": {"src/x.py": "d" * 64},
        }
    )  # fmt: skip
    found = {change.what: (change.before, change.after) for change in changes(BASE, other)}

    assert found.pop("model: content")[0] is not None
    assert found == {
        "model": ("m:1", "m:2"),
        "model: recipe": ("w8a8", "none"),
        "adapter ad": ("ad:1", None),
        "adapter ad: content": (found["adapter ad: content"][0], None),
        "prompt p": ("1", "2"),
        "policy n": (None, "1"),
        "package a": ("1", "2"),
        "package b": ("1", None),
        "package c": (None, "1"),
        "file src/x.py": ("c" * 16, "d" * 16),
    }


def test_other_bytes_under_one_tag_are_a_change():
    other = BASE.model_copy(update={"model": MODEL.model_copy(update={"files": {"w": "e" * 64}})})

    assert [change.what for change in changes(BASE, other)] == ["model: content"]
