"""Documents are read with their structure; a broken one is refused and does not stop the others."""

import pytest

from rag.loading import files_of, load_folder


@pytest.fixture
def folder(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return write


def test_markdown_keeps_its_headings(folder):
    chunks, report = load_folder(folder("a.md", "# Tickets\n## Refunds\nFree.\n## Changes\nOnce.\n"), 500)

    assert [(c.metadata["heading"], c.page_content) for c in chunks] == [
        ("Tickets > Refunds", "Free."),
        ("Tickets > Changes", "Once."),
    ]
    assert report.read == ["a.md"]


def test_html_without_scripts_and_menus(folder):
    page = "<nav>menu</nav><h1>Board</h1><p>Food</p><h2>Pets</h2><ul><li>Dogs</li></ul><script>evil()</script>"
    chunks, _ = load_folder(folder("a.html", page), 500)

    assert [(c.metadata["heading"], c.page_content) for c in chunks] == [("Board", "Food"), ("Board > Pets", "Dogs")]


def test_long_chinese_is_cut_at_sentences(folder):
    sentence = "列车晚点超过六十分钟可以退还一半票价。"
    chunks, _ = load_folder(folder("a.txt", sentence * 20), 100)

    assert len(chunks) > 3
    assert all(len(c.page_content) <= 100 and c.page_content.endswith("。") for c in chunks)


def test_ids_are_stable_and_distinct(folder):
    where = folder("a.txt", "same\n\n" * 300)
    first, _ = load_folder(where, 100)
    again, _ = load_folder(where, 100)

    assert [c.id for c in first] == [c.id for c in again]
    assert len({c.id for c in first}) == len(first)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bad.pdf", b"%PDF-1.4 nonsense", ""),
        ("bad.txt", b"\xff\xfe\x00broken\xff", "UnicodeDecodeError"),
        ("a.xyz", "hello", "unknown kind '.xyz'"),
        ("empty.md", "   \n", "no text in it"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refused_with_a_reason(folder, name, content, reason):
    folder(name, content)
    chunks, report = load_folder(folder("good.txt", "good"), 500)

    assert [c.page_content for c in chunks] == ["good"]
    assert list(report.refused) == [name]
    assert reason in report.refused[name]


def test_links_out_of_the_folder_and_hidden_files_are_left_out(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.txt"
    outside.write_text("secret")
    root = folder("a.txt", "a")
    (root / "link.txt").symlink_to(outside)
    folder(".env", "KEY=1")

    assert [p.name for p in files_of(root)] == ["a.txt"]
