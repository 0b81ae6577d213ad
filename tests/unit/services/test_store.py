"""Models are found where the Bento has them, as in a container, before BentoML's folder is looked into."""

from types import SimpleNamespace

import pytest

from services import store
from services.lock import LockError


@pytest.fixture
def bento(tmp_path, monkeypatch):
    """A Bento with one model, from whose code this is run."""
    (tmp_path / "src").mkdir()
    (tmp_path / "bento.yaml").touch()
    folder = tmp_path / "models" / "tiny" / "1"
    folder.mkdir(parents=True)
    (folder / "model.yaml").touch()
    monkeypatch.setattr(store, "ROOT", tmp_path / "src")
    monkeypatch.setattr(store, "bentoml", SimpleNamespace(models=SimpleNamespace(get=missing)))
    return tmp_path


def missing(tag):
    raise store.NotFound(tag)


def test_the_bentos_own_models(bento):
    assert store.stored_path("tiny:1") == bento / "models" / "tiny" / "1"
    assert store.is_stored("tiny:1")


def test_what_it_has_not_is_looked_for_in_the_store(bento):
    assert not store.is_stored("tiny:2")
    with pytest.raises(LockError, match="tiny:2 is not in the model store; run `ekiben pack`"):
        store.stored_path("tiny:2")


def test_a_folder_beside_the_code_that_is_no_bento_is_none(bento):
    (bento / "bento.yaml").unlink()

    assert not store.is_stored("tiny:1")
