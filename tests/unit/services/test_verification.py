"""A Bento beside its manifest: what was altered is named."""

import io
import shutil
import tarfile

import pytest
import yaml

from services.digests import file_digests, stored_files
from services.manifest import BentoError, Manifest, PackedModel, bento_files
from services.verification import Place, opened, verify


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
    for name, text in {"src/a.py": "a = 1\n", "src/b.py": "", "models/m/1/w": "weights", "models/m/1/model.yaml": "now"}.items():
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
    (bento / "models" / "m" / "1" / "model.yaml").write_text("another time")

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
