"""A Bento beside its manifest: what was altered is named."""

import io
import shlex
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import yaml
from langchain_core.documents import Document

from rag.embedded import EmbeddedStore
from rag.embedding import NoEmbeddings
from services.digests import file_digests, rows_digest, stored_files
from services.manifest import BentoError, Manifest, PackedModel, bento_files, read_manifest
from services.verification import Place, opened, verify
from tests.cards import card


class Silent:
    def step(self, text):
        pass

    def advance(self, done, total):
        pass

    def note(self, text):
        pass


@pytest.fixture
def bento(tmp_path):
    """An exported Bento: its model travels in it."""
    folder = tmp_path / "box"
    model = folder / "models" / "m" / "1"
    for name, text in {
        "src/a.py": "a = 1\n",
        "src/b.py": "",
        "models/m/1/w": "weights",
        "models/m/1/model.yaml": card("m:1"),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    info = {"name": "box", "version": "v1", "services": [{"models": [{"tag": "m:1"}]}]}
    (folder / "bento.yaml").write_text(yaml.safe_dump(info))
    packed = PackedModel(
        tag="m:1", bytes=7, files=file_digests(model, stored_files(model)), source="path:m", revision="1", recipe="none"
    )
    files = file_digests(folder, bento_files(folder))
    Manifest(name="box", version="v1", model=packed, python="3.11", packages={}, hashes=0, files=files).write(folder)
    return folder


def problems(folder):
    return verify(Place(folder), Silent())


def test_what_was_built_is_in_order(bento):
    (bento / "models" / "m" / "latest").write_text("1")
    (bento / "models" / "m" / "1" / "model.yaml").write_text(card("m:1", creation_time="2027-01-01T00:00:00+00:00"))

    assert problems(bento) == []


def test_files_changed_missing_and_added_are_named(bento):
    (bento / "src" / "a.py").write_text("a = 2\n")
    (bento / "src" / "b.py").unlink()
    (bento / "src" / "c.py").write_text("")

    assert problems(bento) == ["src/a.py was changed", "src/b.py is missing", "src/c.py was added"]


def test_a_link_in_a_files_place_is_named(bento, tmp_path):
    shutil.copy(bento / "src" / "a.py", tmp_path / "same.py")
    (bento / "src" / "a.py").unlink()
    (bento / "src" / "a.py").symlink_to(tmp_path / "same.py")

    assert problems(bento) == ["src/a.py is a link", "src/a.py is missing"]


def test_a_model_altered_is_named(bento):
    (bento / "models" / "m" / "1" / "w").write_text("Weights")
    (bento / "models" / "m" / "1" / "extra.py").write_text("")

    assert problems(bento) == ["model m:1: extra.py was added", "model m:1: w was changed"]


@pytest.mark.parametrize(
    ("altered", "told"),
    [
        ("models/other/1/w", "models/other/1 was added"),
        ("models/m/2/deep/w", "models/m/2 was added"),
        ("models/m/extra", "models/m/extra was added"),
        ("models/m/latest", "models/m/latest was added"),
        ("models/extra", "models/extra was added"),
        ("hf-models/other/w", "hf-models/other/w was added"),
        ("models/m/1/__pycache__/w.pyc", "model m:1: __pycache__/w.pyc was added"),
        ("models/m/1/lance/w", "model m:1: lance/w was added"),
        ("models/m/1/model.yaml", "model m:1: model.yaml was changed"),
    ],
)
def test_what_travels_along_and_is_not_listed_is_named(bento, altered, told):
    (bento / altered).parent.mkdir(parents=True, exist_ok=True)
    (bento / altered).write_text("altered")

    assert problems(bento) == [told]


def test_a_folder_behind_a_link_is_named(bento, tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (bento / "models" / "m" / "1" / "more").symlink_to(tmp_path / "elsewhere")
    (bento / "models" / "m" / "2").symlink_to(tmp_path / "elsewhere")

    assert problems(bento) == [
        "model m:1: more is a link", "models/m/2 was added", "models/m/1/more is a link", "models/m/2 is a link",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"module": "evil"}, "module"),
        ({"version": "2"}, "version"),
        ({"options": {"x": 1}, "signatures": {"run": {}}}, "options, signatures"),
        ({"more": 1}, "more"),
        ({"context": None}, "context"),
        ({"metadata": {"source": "path:x", "recipe": "w8a8"}}, "metadata.recipe"),
        ({"metadata": {"source": "hf:other@1"}}, "metadata.source"),
        ({"metadata": {"more": "x"}}, "metadata.more"),
    ],
)
def test_a_card_that_says_what_was_not_written_is_named(bento, changed, told):
    (bento / "models" / "m" / "1" / "model.yaml").write_text(card("m:1", **changed))

    assert problems(bento) == [f"model m:1: model.yaml was changed: {told}"]


def test_bytecode_of_code_that_was_run_in_place_is_told_with_its_remedy(bento):
    for name in ("a", "b"):
        (bento / "src" / "__pycache__").mkdir(exist_ok=True)
        (bento / "src" / "__pycache__" / f"{name}.pyc").write_bytes(b"x")
    [line] = problems(bento)

    assert line.startswith("src/__pycache__/a.pyc was added, and 2 files of bytecode in all")
    command = line.rpartition("remove them: ")[2].strip("`")
    subprocess.run(shlex.split(command), check=True)
    assert problems(bento) == []


def test_what_lies_beside_the_rows_of_an_index_is_named(bento):
    folder = bento / "models" / "m" / "1"
    store = EmbeddedStore(folder, NoEmbeddings())
    store.put([Document(page_content="seats are numbered", id=one) for one in "ab"], np.ones((2, 2), dtype=np.float32))
    store.put([Document(page_content="luggage is free", id="b")], np.ones((1, 2), dtype=np.float32))
    store.delete(["a"])
    store.finish()
    manifest = read_manifest(bento)
    told = {"files": file_digests(folder, stored_files(folder)), "rows": rows_digest(folder)}
    manifest.model_copy(update={"model": manifest.model.model_copy(update=told)}).write(bento)
    assert problems(bento) == []
    for name in ("lance/x.py", "lance/other.lance/data/a.lance", "lance/chunks.lance/data/x.sh"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")

    assert problems(bento) == [
        "model m:1: lance/chunks.lance/data/x.sh was added",
        "model m:1: lance/other.lance/data/a.lance was added",
        "model m:1: lance/x.py was added",
    ]


def test_a_model_that_is_not_there(bento):
    shutil.rmtree(bento / "models" / "m")

    assert problems(bento) == ["model m:1: is missing; run `ekiben pack`, or import the exported Bento"]


def test_a_card_of_another_bento(bento):
    info = {"name": "box", "version": "v2", "services": [{"models": [{"tag": "m:2"}]}]}
    (bento / "bento.yaml").write_text(yaml.safe_dump(info))

    assert problems(bento) == [
        "bento.yaml was changed",
        "bento.yaml names m:2, which the manifest does not",
        "bento.yaml says box:v2, the manifest box:v1",
    ]


def test_an_exported_file_is_unpacked_and_verified(bento, tmp_path):
    with tarfile.open(tmp_path / "box.bento", "w:xz") as archive:
        archive.add(bento, arcname=".")
    with opened(str(tmp_path / "box.bento")) as place:
        assert place.folder != bento
        assert verify(place, Silent()) == []
    assert not place.folder.exists()


def test_a_file_that_would_leave_its_folder_is_refused(tmp_path):
    with tarfile.open(tmp_path / "bad.bento", "w:xz") as archive:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))

    with pytest.raises(BentoError, match="cannot be unpacked"), opened(str(tmp_path / "bad.bento")):
        pass
    assert not (tmp_path / "escaped").exists()


def test_a_file_cut_short_is_refused(bento, tmp_path):
    with tarfile.open(tmp_path / "box.bento", "w:xz") as archive:
        archive.add(bento, arcname=".")
    cut = tmp_path / "cut.bento"
    cut.write_bytes((tmp_path / "box.bento").read_bytes()[:300])

    with pytest.raises(BentoError, match="cannot be unpacked"), opened(str(cut)):
        pass


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(BentoError, match="does not exist"), opened(str(tmp_path / "none.bento")):
        pass
