"""Files that callers handed in, by tenant."""

import threading

import pytest

from rag import files as module
from rag.files import Attachment, Files, FilesFull
from rag.uploads import UploadsBusy

HR = frozenset({"hr"})


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "files", most=3, most_bytes=100)


def test_a_file_is_its_tenant_s(files):
    file = files.put("acme", "a.md", "assistants", HR, b"text")

    assert files.get("acme", file.id) == file
    assert files.all("acme") == [file]
    assert files.content(file) == b"text"
    assert (file.name, file.size, file.roles, dict(file.attached)) == ("a.md", 4, HR, {})
    assert files.get("globex", file.id) is None
    assert files.all("globex") == []


@pytest.mark.parametrize("identity", ["", "..", "../../x", "file-", "file-../../../../etc/passwd", "file-" + "0" * 24])
def test_what_is_no_file_s_id(files, identity):
    files.put("acme", "a.md", "assistants", HR, b"text")

    assert files.get("acme", identity) is None


def test_what_became_of_it_is_kept(files):
    file = files.put("acme", "a.md", "assistants", HR, b"text")
    attachment = Attachment(5.0, ("hr",), {"title": "A"}, ("invalid_file", "encrypted"))
    files.attach(file, "papers", attachment)
    files.attach(file, "others", Attachment(6.0))

    assert files.get("acme", file.id).attached == {"papers": attachment, "others": Attachment(6.0)}
    files.attach(file, "others", None)
    assert files.get("acme", file.id).attached == {"papers": attachment}


def test_deleting(files):
    file = files.put("acme", "a.md", "assistants", HR, b"text")
    files.delete(file)
    files.delete(file)

    assert not files.attach(file, "papers", Attachment(5.0))
    assert files.all("acme") == []
    assert not list(files._of("acme").glob("*file-*"))


def test_no_more_than_the_limit_also_by_writers_at_once(files):
    refused = []

    def put(number):
        try:
            files.put("acme", f"{number}.md", "assistants", HR, b"text")
        except FilesFull as error:
            refused.append(str(error))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(files.all("acme")), len(refused)) == (3, 5)
    assert "delete some first" in refused[0]
    assert files.put("globex", "a.md", "assistants", HR, b"text")


def test_waiting_for_others_has_an_end(files, monkeypatch):
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    file = files.put("acme", "a.md", "assistants", HR, b"text")
    with files._locked("acme"), pytest.raises(UploadsBusy, match="try again"):
        files.delete(file)
