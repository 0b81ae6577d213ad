"""A bundle's own loaders, retrievers and rerankers, as `ekiben check` and `ekiben pack` see them."""

import json
import sys

import pytest

from rag.plugins import BadPlugin
from services.bundle import BundleError, load_bundle
from services.packing import try_plugins

MODULE = """
from langchain_core.retrievers import BaseRetriever

class Finder(BaseRetriever):
    access: object
    def _get_relevant_documents(self, query, *, run_manager):
        return []

class Blind(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return []

def fails(access):
    raise OSError("the server is away")

def load():
    raise AssertionError("not called by check")

NUMBER = 7
"""


@pytest.fixture
def bundle(bundle_folder, monkeypatch, request):
    """A bundle whose collection has these settings, with a module of its own beside it."""
    name = f"own_{abs(hash(request.node.name))}"
    monkeypatch.setattr(sys, "path", [*sys.path])

    def bundle(settings, include=None):
        package = bundle_folder / name
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text("")
        (package / "parts.py").write_text(MODULE)
        path = bundle_folder / "bundle.yaml"
        path.write_text(path.read_text().replace("{path: papers}", settings.replace("OWN", f"{name}.parts")))
        if include is not None:
            (bundle_folder / "bentofile.yaml").write_text(json.dumps({"include": [one.replace("OWN", name) for one in include]}))
        return path

    yield bundle
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


class Silent:
    def __init__(self):
        self.notes = []

    def step(self, text):
        pass

    def advance(self, done, total):
        pass

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(
    "settings", ["{loader: 'OWN:load'}", "{path: papers, loader: 'OWN:load'}", "{retriever: 'OWN:Finder', deadline_ms: 100}"]
)
def test_good_ones(bundle, settings):
    loaded = load_bundle(bundle(settings, include=["OWN/*.py"]))
    progress = Silent()
    try_plugins(loaded, progress)

    assert len(progress.notes) == ("retriever" in settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("{loader: 'OWN:gone'}", "papers.loader: loader: 'OWN:gone' cannot be imported: AttributeError"),
        ("{loader: 'no.such:loader'}", "put its module beside bundle.yaml, or install it"),
        ("{loader: 'OWN:NUMBER'}", "is a int; name a class or a function"),
        ("{loader: load}", "pattern"),
        ("{retriever: 'OWN:Blind'}", "no field `access`"),
        ("{retriever: 'OWN:load'}", "cannot be called with access= alone"),
        ("{path: papers, retriever: 'OWN:Finder'}", "leave out path"),
        ("{retriever: 'OWN:Finder', uploads: {writers: [a]}}", "leave out uploads"),
        ("{path: papers, deadline_ms: 10}", "deadline_ms is for a retriever"),
        ("{path: papers, rerank: 'OWN:gone'}", "papers.rerank: rerank: 'OWN:gone' cannot be imported"),
    ],
)
def test_what_check_says(bundle, settings, told):
    path = bundle(settings)
    own = next(line for line in path.read_text().splitlines() if "papers: {" in line)
    module = own.partition("own_")[2].partition(":")[0]
    with pytest.raises(BundleError) as caught:
        load_bundle(path)

    assert told.replace("OWN", f"own_{module}") in str(caught.value)
    assert ":11: collections.papers" in str(caught.value)


@pytest.mark.parametrize("include", [[], ["OWN/parts.py"], ["OWN/__init__.py"]])
def test_what_would_not_travel_is_told(bundle, include):
    with pytest.raises(BundleError, match="add it to `include`"):
        load_bundle(bundle("{retriever: 'OWN:Finder'}", include))


def test_a_loader_need_not_travel_and_a_box_imports_nothing_when_it_reads_its_bundle(bundle):
    load_bundle(bundle("{loader: 'OWN:load'}", include=[]))
    load_bundle(bundle("{loader: 'no.such:loader'}"), packed=True)


def test_packing_makes_the_retriever(bundle):
    loaded = load_bundle(bundle("{retriever: 'OWN:fails'}"))

    with pytest.raises(BadPlugin, match="failed when it was called: OSError: the server is away"):
        try_plugins(loaded, Silent())
