"""What a collection is made of: each document once, each refusal with its reason, and the others go on."""

import json
import os  # noqa: TID251  pipes and times of files
from itertools import pairwise

import pytest

from rag import survey as survey_module
from rag.survey import Changed, Owner, Place


def look(root, *sources, **options):
    return Place(root.parent, sources or (root.name,), **options).survey()


def names(survey):
    return [item.name for item in survey.items]


def test_files_below_a_folder_in_order(write):
    for name in ("b.txt", "a/c.md", "退票.md"):
        root = write(name, name)

    assert names(look(root)) == ["a/c.md", "b.txt", "退票.md"]
    assert names(look(root, "docs/b.txt")) == ["b.txt"]
    assert names(look(root, "docs/a", "docs/b.txt")) == ["docs/a/c.md", "docs/b.txt"]


def test_every_refusal_has_its_reason(write, tmp_path, monkeypatch):
    monkeypatch.setattr(survey_module, "MAX_FILE_BYTES", 100)
    (tmp_path / "secret.txt").write_text("secret")
    root = write("good.txt", "good")
    write("z-copy.txt", "good")
    write("empty.md")
    write("big.txt", "x" * 101)
    write("a.xyz", "x")
    write(".env", "KEY=1")
    write(".git/config", "x")
    write("sub/b.txt", "b")
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "loop").symlink_to("loop")
    (root / "sub" / "up").symlink_to(root)
    (root / "dead.txt").symlink_to("nothing")
    os.mkfifo(root / "pipe.txt")
    found = look(root, "docs")

    assert names(found) == ["good.txt", "sub/b.txt"]
    assert {name: why.split(";")[0][:40] for name, why in found.refused.items()} == {
        "z-copy.txt": "the same content as good.txt",
        "empty.md": "empty",
        "big.txt": "0 MiB",
        "a.xyz": "unknown kind '.xyz'",
        ".env": "hidden (its name begins with a dot)",
        ".git": "hidden (its name begins with a dot)",
        "out.txt": "a link that leads out of the folder",
        "loop": "a link that leads back to itself",
        "sub/up": "a link to a folder",
        "dead.txt": "a link to nothing",
        "pipe.txt": "neither a file nor a folder",
    }
    assert look(root, "nowhere").refused == {"nowhere": "no such file or folder"}


def test_a_touched_file_keeps_its_digest_and_an_edit_does_not(write):
    root = write("a.txt", "one")
    before = look(root).items[0]
    os.utime(root / "a.txt", (0, 0))
    touched = look(root).items[0]
    write("a.txt", "two")

    assert (touched.digest, touched.date) == (before.digest, "1970-01-01")
    assert look(root).items[0].digest != before.digest
    assert look(root, labels=["staff"]).items[0].digest != look(root).items[0].digest


def test_a_file_that_changes_after_the_survey_is_noticed(write):
    [item] = look(write("a.txt", "one")).items
    write("a.txt", "two")

    with pytest.raises(Changed):
        item.read()


def test_lines_are_documents(write):
    rows = [
        {"text": "Free.", "id": "7", "title": "Refunds", "date": "2025-01-02", "labels": ["b", "a"], "language": "en"},
        {"text": "退票免费", "source": "https://example.com/zh"},
        {"text": "Nameless", "date": "2025-01-02T10:00:00Z"},
        {"text": "Nameless"},
        {"text": "Nameless", "labels": ["staff"]},
        {"text": ""}, {"text": "x", "labels": "staff"}, {"text": "x", "date": "yesterday"}, {"text": "x", "tite": "x"},
        {"text": "another", "source": "https://example.com/zh"},
    ]  # fmt: skip
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    found = look(write("a.jsonl", "\n".join([*lines, "", "no json"])), labels=["all"])
    by_name = {item.name: item for item in found.items}

    assert {"a.jsonl#7", "https://example.com/zh"} < set(by_name)
    assert by_name["a.jsonl#7"].owner.labels == ("a", "b")
    assert (by_name["a.jsonl#7"].title, by_name["a.jsonl#7"].date) == ("Refunds", "2025-01-02")
    assert by_name["https://example.com/zh"].owner.labels == ("all",)
    assert sorted(item.read().decode() for item in found.items) == ["Free.", "Nameless", "Nameless", "退票免费"]
    reasons = {name: why.split(";")[0] for name, why in found.refused.items()}
    assert len([why for why in reasons.values() if why.startswith("another document has this name")]) == 1
    assert len([why for why in reasons.values() if why.startswith("the same content as a.jsonl#")]) == 1
    assert reasons["a.jsonl:6"] == 'not an object with a "text"'
    assert reasons["a.jsonl:7"] == "labels are a list of strings"
    assert reasons["a.jsonl:8"] == "date 'yesterday' is not of the form YYYY-MM-DD"
    assert reasons["a.jsonl:9"].startswith("unknown key 'tite'")
    assert reasons["a.jsonl:12"].startswith("no JSON")


def test_a_line_before_others_leaves_their_names(write):
    first = names(look(write("a.jsonl", '{"text": "one"}\n')))
    both = names(look(write("a.jsonl", '{"text": "zero"}\n{"text": "one"}\n')))

    assert set(first) < set(both)
    assert all(one != other for one, other in pairwise(both))


def test_a_document_belongs_to_its_own_tenant_or_the_collection_s(write):
    rows = [{"text": "same", "id": 1}, {"text": "same", "id": 2, "tenant": "beta"}, {"text": "same", "id": 3, "tenant": ""},
            {"text": "x", "tenant": 3}]  # fmt: skip
    found = look(write("a.jsonl", "\n".join(json.dumps(row) for row in rows)), tenant="acme", labels=["staff"])

    assert {item.name: item.owner for item in found.items} == {
        "a.jsonl#1": Owner("acme", ("staff",)), "a.jsonl#2": Owner("beta", ("staff",)), "a.jsonl#3": Owner("", ("staff",)),
    }  # fmt: skip
    assert len({item.digest for item in found.items}) == 3
    assert found.refused == {"a.jsonl:4": "tenant is a string"}
