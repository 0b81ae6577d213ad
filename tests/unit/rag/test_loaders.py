"""Documents of a loader from outside."""

import sys
from types import ModuleType

import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from rag.index import Recipe, build_index, read_index
from rag.plugins import BadPlugin
from rag.survey import Owner, Place

RECIPE = Recipe(400, "e")


@pytest.fixture
def plugin(monkeypatch):
    """A module that holds what a test names."""

    def plugin(**named):
        module = ModuleType("a_plugin")
        vars(module).update(named)
        monkeypatch.setitem(sys.modules, "a_plugin", module)

    return plugin


def surveyed(tmp_path, **fields):
    return Place(tmp_path, (), loader="a_plugin:loader", **fields).survey()


class Shop(BaseLoader):
    def lazy_load(self):
        yield Document("Bicycles cost 11 euros.", metadata={"source": "shop", "id": 7, "labels": ("staff",), "price": 11})
        yield Document("# Dogs\nDogs pay.", metadata={"kind": ".md", "tenant": "acme"}, id="dogs")


def documents():
    return list(Shop().lazy_load())


@pytest.mark.parametrize("loader", [Shop, Shop(), Shop().lazy_load, documents])
def test_a_loader_may_be_a_class_an_object_or_a_function(plugin, tmp_path, loader):
    plugin(loader=loader)
    found = surveyed(tmp_path, tenant="globex", labels=["all"])

    assert [(item.name, item.kind, item.owner) for item in found.items] == [
        ("a_plugin:loader#dogs", ".md", Owner("acme", ("all",))), ("shop#7", ".txt", Owner("globex", ("staff",))),
    ]  # fmt: skip
    assert found.refused == {}


def test_pages_of_one_source_are_told_apart_and_bad_documents_refused(plugin, tmp_path):
    given = [
        Document("One.", metadata={"source": "a.pdf", "page": 0}), Document("Two.", metadata={"source": "a.pdf", "page": 1}),
        Document("  "), Document("x", metadata={"labels": "staff"}), Document("y", metadata={"kind": ".pdf"}),
    ]  # fmt: skip
    plugin(loader=lambda: given)
    found = surveyed(tmp_path)

    assert [item.name for item in found.items] == ["a.pdf#page=0", "a.pdf#page=1"]
    assert list(found.refused) == ["a_plugin:loader:3", "a_plugin:loader:4", "a_plugin:loader:5"]
    assert "list of strings" in found.refused["a_plugin:loader:4"]
    assert "unknown kind '.pdf'" in found.refused["a_plugin:loader:5"]


def test_it_stands_beside_files_and_only_what_changed_is_read_again(plugin, tmp_path, embeddings):
    (tmp_path / "a.md").write_text("A file.")
    given = [Document(f"Text number {n}.", id=str(n)) for n in range(3)]
    plugin(loader=lambda: given)
    place = Place(tmp_path, ("a.md",), loader="a_plugin:loader")
    first, second, counting = tmp_path / "1", tmp_path / "2", embeddings()
    first.mkdir()
    second.mkdir()
    build_index(place.survey(), first, RECIPE, embeddings=counting, check=lambda text: None if "2" in text else text)
    given[1] = Document("Text of another kind.", id="1")
    report = build_index(place.survey(), second, RECIPE, embeddings=counting, earlier=first)

    assert report.changed == ["a_plugin:loader#1"]
    assert report.unchanged == ["a.md", "a_plugin:loader#0", "a_plugin:loader#2"]
    assert report.embedded == 1
    assert read_index(first)["sources"]["a_plugin:loader#2"]["dropped"] == 1


def breaks():
    yield Document("One.")
    raise KeyError("two")


async def later():
    yield Document("One.")


@pytest.mark.parametrize(
    ("loader", "told"),
    [
        (breaks, "failed after 1 documents: KeyError: 'two'"),
        (later, "'async_generator' object is not iterable"),
        (lambda: ["text"], "gave a str; it must give LangChain Documents"),
        (lambda: None, "'NoneType' object is not iterable"),
        (lambda: 1 / 0, "failed when it was called: ZeroDivisionError"),
        (lambda more: more, "failed when it was called: TypeError"),
        (7, "is a int; name a class or a function"),
        (lambda: sys.exit(3), "SystemExit"),
    ],
)
def test_a_loader_that_fails_is_told(plugin, tmp_path, loader, told):
    plugin(loader=loader)
    with pytest.raises(BadPlugin) as caught:
        surveyed(tmp_path)

    assert told in str(caught.value)


def test_a_loader_that_does_not_end(plugin, tmp_path, monkeypatch):
    monkeypatch.setattr("rag.survey.MAX_LINES_BYTES", 1000)

    def endless():
        number = 0
        while True:
            yield Document(f"Number {(number := number + 1)}")

    plugin(loader=endless)
    with pytest.raises(BadPlugin, match="does it end"):
        surveyed(tmp_path)
