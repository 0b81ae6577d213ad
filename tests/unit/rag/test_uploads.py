"""Documents that are added and removed while a box serves."""

import threading
from pathlib import Path

import pytest

from rag import uploads
from rag.access import Access
from rag.collection import Collection, GrowingCollection
from rag.embedded import EmbeddedStore
from rag.index import FORMAT, Recipe, UnusableIndex
from rag.uploads import Upload, Uploads, UploadsBusy

BIKES = Upload("bikes", "acme", "A bicycle costs eleven euros.", title="Bikes", labels=("staff",))
DOGS = Upload("dogs", "globex", "Dogs travel free of charge.", language="en", date="2026-11-01")


@pytest.fixture
def opened(tmp_path, embeddings):
    def opened(check=lambda text: text, most=100, with_embeddings=None):
        return Uploads(tmp_path / "up", Recipe(400, "e"), with_embeddings or embeddings(), check, most)

    return opened


def found(shelf, question, access, embeddings):
    folder = shelf.index()
    return set() if folder is None else set(EmbeddedStore(folder, embeddings()).matching(question, 5, access))


def test_what_is_put_is_found_by_whom_it_is_for(opened, embeddings):
    shelf = opened()
    change = shelf.put([BIKES, DOGS])

    assert (change.added, change.refused) == (["bikes", "dogs"], {})
    assert shelf.all() == [BIKES, DOGS]
    acme, staff = Access("acme", frozenset()), Access("acme", frozenset({"staff"}))
    assert len(found(shelf, "bicycle dogs", staff, embeddings)) == 1
    assert found(shelf, "bicycle dogs", acme, embeddings) == set()
    assert len(found(shelf, "bicycle dogs", Access("globex", frozenset({"staff"})), embeddings)) == 1


def test_the_same_id_replaces_and_tenants_do_not_share_ids(opened, embeddings):
    shelf = opened()
    shelf.put([BIKES])
    other = Upload("bikes", "globex", "Bicycles are not carried.")
    newer = Upload("bikes", "acme", "A tandem costs twenty euros.")
    change = shelf.put([other, newer])

    assert (change.added, change.replaced) == (["bikes"], ["bikes"])
    assert shelf.all() == [newer, other]
    assert len(found(shelf, "tandem bicycle bicycles", Access("acme", frozenset()), embeddings)) == 1
    assert shelf.put([newer]).unchanged == ["bikes"]


def test_only_new_texts_are_embedded(opened, embeddings):
    counting = embeddings()
    shelf = opened(with_embeddings=counting)
    shelf.put([BIKES])
    shelf.put([DOGS])

    assert len(counting.asked) == 2


def test_removing(opened, embeddings):
    shelf = opened()
    shelf.put([BIKES, DOGS])

    assert not shelf.remove("globex", "bikes")
    assert shelf.remove("acme", "bikes")
    assert shelf.all() == [DOGS]
    assert found(shelf, "bicycle", None, embeddings) == set()
    assert shelf.remove("globex", "dogs")
    assert shelf.index() is None
    assert shelf.put([BIKES]).added == ["bikes"]


def test_what_cannot_be_added_is_refused_and_the_others_go_on(opened):
    shelf = opened(most=2, check=lambda text: None if "secret" in text else text)
    again = Upload("again", "acme", BIKES.text, labels=BIKES.labels)
    secret = Upload("secret", "acme", "A secret.")
    change = shelf.put([BIKES, again, secret, Upload("fourth", "acme", "More.")])

    assert change.added == ["bikes"]
    assert change.refused["again"] == "the same content as bikes"
    assert "policy" in change.refused["secret"]
    assert "limit" in change.refused["fourth"]
    assert shelf.all() == [BIKES]


def test_a_replacement_that_is_refused_leaves_what_was_there(opened, embeddings):
    shelf = opened(check=lambda text: None if "secret" in text else text)
    shelf.put([BIKES, DOGS])
    change = shelf.put([Upload("bikes", "acme", "A secret.", labels=("staff",)), Upload("cats", "acme", "Cats pay.")])

    assert (change.added, change.replaced) == (["cats"], [])
    assert "policy" in change.refused["bikes"]
    assert shelf.all() == [BIKES, Upload("cats", "acme", "Cats pay."), DOGS]
    assert len(found(shelf, "bicycle", None, embeddings)) == 1


def test_the_text_of_a_document_that_is_replaced_is_free_for_another(opened):
    shelf = opened()
    shelf.put([BIKES])
    newer = Upload("bikes", "acme", "A tandem costs twenty euros.", labels=("staff",))
    change = shelf.put([newer, Upload("cycles", "acme", BIKES.text, labels=("staff",))])

    assert (change.added, change.replaced, change.refused) == (["cycles"], ["bikes"], {})


def test_nothing_changes_when_the_embedding_model_fails(opened, embeddings):
    shelf = opened()
    shelf.put([BIKES])
    index = shelf.index()
    broken = opened(with_embeddings=embeddings(fail_after=0))
    with pytest.raises(KeyboardInterrupt):
        broken.put([DOGS, Upload("bikes", "acme", "Changed.")])

    assert shelf.all() == [BIKES]
    assert shelf.index() == index
    assert shelf.put([DOGS]).added == ["dogs"]


def test_an_only_document_of_which_nothing_may_be_kept(opened):
    with pytest.raises(UnusableIndex):
        opened(check=lambda text: None).put([BIKES])
    assert opened().all() == []


def test_writers_at_once_lose_nothing(opened):
    shelves = [opened() for _ in range(4)]
    threads = [
        threading.Thread(target=shelf.put, args=([Upload(f"{n}-{i}", "acme", f"Text number {n} of {i}.") for i in range(3)],))
        for n, shelf in enumerate(shelves)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(opened().all()) == 12
    assert EmbeddedStore(opened().index(), None).count() == 12


def test_waiting_has_an_end(opened, monkeypatch):
    monkeypatch.setattr(uploads, "LOCK_SECONDS", 0.05)
    with opened()._locked(), pytest.raises(UploadsBusy, match="try again"):
        opened().put([BIKES])


@pytest.mark.parametrize("another", [FORMAT + 1, FORMAT - 1])
async def test_an_index_of_another_version_is_made_again_from_the_documents(opened, embeddings, monkeypatch, another):
    """After a change of the format, forward or back, what callers added is found without anybody adding anything."""

    def collection(folder):
        return Collection(
            folder, embedder="e", embeddings=embeddings(), top_k=2, dense_weight=0.5, min_score=0, max_context_characters=400
        )

    with monkeypatch.context() as other:
        other.setattr("rag.index.FORMAT", another)
        opened().put([BIKES, DOGS])
    shelf, staff = opened(), Access("acme", frozenset({"staff"}))
    made = shelf.index()
    with pytest.raises(UnusableIndex):
        collection(made)
    growing = GrowingCollection(Nothing(), shelf, collection)

    assert [passage.text for passage in await growing.search("bicycle", staff)] == [BIKES.text]
    remade = shelf.index()
    assert remade != made
    await growing.search("dogs", staff)
    assert shelf.index() == remade


class Nothing:
    """A collection in which nothing is found."""

    async def search(self, *_):
        return []


def test_what_is_removed_while_all_are_listed_is_left_out(opened, monkeypatch):
    shelf = opened()
    shelf.put([BIKES, DOGS])
    real = Path.read_bytes

    def removed_first(path):
        if BIKES.text.encode() in (content := real(path)):
            path.unlink()
            return real(path)
        return content

    monkeypatch.setattr(Path, "read_bytes", removed_first)

    assert shelf.all() == [DOGS]
