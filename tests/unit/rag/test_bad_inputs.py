"""What cannot be read is told with a reason, and takes nothing from the index; neither does a run that is killed."""

import io
import os  # noqa: TID251  a path for the process
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pypdf import PdfWriter

from rag.embedded import EmbeddedStore
from rag.embedding import MAX_CHARACTERS
from rag.index import CARD, Recipe, UnusableIndex, build_index
from rag.retriever import HybridRetriever
from rag.survey import Place

ROOT = Path(__file__).resolve().parents[3]
RECIPE = Recipe(900, "counting")
MIB = 2**20
KILLED = """
import os, signal, sys
from pathlib import Path
from rag.index import Recipe, build_index
from rag.survey import Place
from tests.unit.rag.conftest import CountingEmbeddings

class Killed(CountingEmbeddings):
    def embed_documents(self, texts):
        if len(self.asked) >= 64:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed_documents(texts)

root, target, scratch = map(Path, sys.argv[1:])
build_index(Place(root, ["docs"]).survey(), target, Recipe(900, "counting"), embeddings=Killed(), scratch=scratch)
"""


def encrypted_pdf():
    writer, file = PdfWriter(), io.BytesIO()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(file)
    return file.getvalue()


def bomb():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"<a>" + b" " * (20 * MIB) + b"</a>")
    return file.getvalue()


@pytest.fixture
def ingest(tmp_path, embeddings):
    def run(name, **more):
        target = tmp_path / name
        target.mkdir()
        survey = Place(tmp_path, ["docs"]).survey()
        return build_index(survey, target, RECIPE, embeddings=embeddings(), **more), target

    return run


def held(folder, embeddings):
    """Return what an index holds: every chunk with its vector."""
    return [
        (chunk.model_dump(), vector.tolist())
        for chunks, vectors in EmbeddedStore(folder, embeddings()).batches()
        for chunk, vector in zip(chunks, vectors, strict=True)
    ]


@pytest.mark.filterwarnings("ignore")
def test_bad_documents_are_refused_and_the_index_stays_as_it_was(ingest, write, embeddings):
    root = write("good.md", "# Shop\nIt opens at nine.\n")
    _, before = ingest("before")
    write("encrypted.pdf", encrypted_pdf())
    write("broken.pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog")
    write("bomb.docx", bomb())
    write("bytes.txt", bytes(range(256)) * 4)
    write("mangled.md", "# Läden\n".encode("utf-16-le")[:-1] + b"\xff\x00\x00")
    write("copy.md", "# Shop\nIt opens at nine.\n")
    write("empty.md")
    (root / "empty folder").mkdir()
    (root / "loop").symlink_to(root / "loop again")
    (root / "loop again").symlink_to(root / "loop")
    (root / "up").symlink_to(root)
    with (root / "huge.txt").open("wb") as file:
        file.truncate(200 * MIB)
    report, after = ingest("after", earlier=before)

    told = {
        "encrypted.pdf": "remove its password", "broken.pdf": "print it to a new PDF", "bomb.docx": "that is no document",
        "bytes.txt": "UTF-8", "mangled.md": "UTF-8", "good.md": "the same content as copy.md", "empty.md": "empty",
        "loop": "back to itself", "loop again": "back to itself", "up": "links to folders are not followed",
        "huge.txt": "200 MiB; over 50 MiB",
    }  # fmt: skip
    assert report.refused.keys() == told.keys()
    for name, why in told.items():
        assert why in report.refused[name]
    assert (report.chunks, report.embedded) == (1, 0)
    [(chunk, vector)], [(same, its)] = held(before, embeddings), held(after, embeddings)
    assert (chunk["page_content"], vector) == (same["page_content"], its)


@pytest.mark.parametrize("files", [{}, {"broken.pdf": b"%PDF-1.7"}])
@pytest.mark.filterwarnings("ignore")
def test_where_nothing_can_be_read_the_earlier_index_stays(ingest, write, embeddings, files):
    root = write("good.md", "# Shop\nIt opens at nine.\n")
    _, before = ingest("before")
    kept = held(before, embeddings)
    (root / "good.md").unlink()
    for name, content in files.items():
        write(name, content)
    with pytest.raises(UnusableIndex, match=r"no readable document.*" + "".join(files)):
        ingest("after", earlier=before)

    assert held(before, embeddings) == kept
    assert not (before.parent / "after" / CARD).exists()


def test_a_process_that_is_killed_leaves_its_vectors_to_the_next(ingest, write, tmp_path):
    write("a.md", "\n".join(f"# H{n}\nText {n}." for n in range(100)))
    (tmp_path / "killed").mkdir()
    scratch = tmp_path / "scratch"
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(tmp_path / "killed"), str(scratch)]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)

    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / CARD).exists()
    report, _ = ingest("again", scratch=scratch)
    assert (report.chunks, report.resumed, report.embedded) == (100, 64, 36)


@pytest.mark.parametrize("said", ["It opens at nine. ", "商店九点开门。"])
def test_of_a_question_without_end_the_beginning_counts(ingest, write, embeddings, monkeypatch, said):
    write("a.md", "# Shop\nIt opens at nine. 商店九点开门。\n")
    write("b.md", "# Dogs\nThey need a muzzle.\n")
    store = EmbeddedStore(ingest("index")[1], embeddings())
    asked = []
    matching = store.matching
    monkeypatch.setattr(store, "matching", lambda question, *rest: asked.append(question) or matching(question, *rest))
    question = said * (100_000 // len(said))
    retriever = HybridRetriever(store=store, access=None, dense_weight=0.5, top_k=2)
    found = retriever.search(question, embeddings().embed_query("x"))

    assert asked == [question[:MAX_CHARACTERS]]
    assert found[0].metadata["source"] == "a.md"
