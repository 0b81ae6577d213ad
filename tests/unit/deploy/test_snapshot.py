"""A snapshot's folder: made whole or not at all, trusted only where it is this user's alone; what is wrong with it is named."""

import fcntl
from datetime import UTC, datetime

import pytest

from deploy.snapshot import (
    IMAGES,
    MANIFEST,
    Facts,
    Manifest,
    SnapshotError,
    altered,
    being_made,
    described,
    missing,
    read,
    read_all,
)

FACTS = Facts(
    box="box:1", cpu="Some Processor 6/1/1", flags=frozenset({"avx2", "avx512f"}), cores=4, kernel="6.1.0", criu="4.2.1",
    python="CPython 3.11.7", packages={"torch": "2.13.0", "vllm": "0.32.0"}, places={"project": "/srv/box"},
)  # fmt: skip


def manifest(name, folder, made_at=datetime(2026, 1, 1, tzinfo=UTC)):
    return Manifest(
        name=name, made_at=made_at, facts=FACTS, process=1000, descriptors=("pipe:[1]", "pipe:[2]", "pipe:[3]"),
        models=["base"], start_seconds=20.5, files=described(folder / IMAGES),
    )  # fmt: skip


def make(root, name, made_at=datetime(2026, 1, 1, tzinfo=UTC)):
    with being_made(root, name) as folder:
        (folder / IMAGES / "pages-1.img").write_bytes(b"memory")
        (folder / IMAGES / "core.img").write_bytes(b"registers")
        (folder / MANIFEST).write_text(manifest(name, folder, made_at).model_dump_json())
    return root / name


def test_the_same_facts_differ_in_nothing():
    assert FACTS.differences(FACTS.model_copy()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel": "6.2.0"}, ["kernel was 6.1.0, is 6.2.0"]),
        ({"criu": "4.3"}, ["criu was 4.2.1, is 4.3"]),
        ({"box": "box:2"}, ["box was box:1, is box:2"]),
        ({"cores": 2}, ["cores was 4, is 2"]),
        ({"format": 2}, ["format was 1, is 2"]),
        ({"flags": frozenset({"avx2", "sse9"})}, ["the processor lacks avx512f", "the processor also has sse9"]),
        ({"packages": {"vllm": "0.33.0"}}, ["torch was 2.13.0, is None", "vllm was 0.32.0, is 0.33.0"]),
        ({"places": {"project": "/elsewhere"}}, ["project was /srv/box, is /elsewhere"]),
        ({"cpu": "Another"}, ["cpu was Some Processor 6/1/1, is Another"]),
        ({"python": "CPython 3.12.1"}, ["python was CPython 3.11.7, is CPython 3.12.1"]),
    ],
)  # fmt: skip
def test_each_difference_is_named(change, words):
    assert FACTS.differences(FACTS.model_copy(update=change)) == words


def test_a_snapshot_is_read_as_it_was_made(tmp_path):
    folder = make(tmp_path / "snapshots", "one")

    found = read(folder)

    assert found.name == "one"
    assert found.bytes == len(b"memory") + len(b"registers")
    assert missing(folder, found) == []
    assert altered(folder, found) == []


def test_nothing_is_left_of_what_failed(tmp_path):
    def fail_midway():
        with being_made(tmp_path, "one") as folder:
            (folder / IMAGES / "pages-1.img").write_bytes(b"memory")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_midway()

    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_failed_leaves_the_former_one_as_it_was(tmp_path):
    folder = make(tmp_path, "one")

    with pytest.raises(KeyboardInterrupt), being_made(tmp_path, "one"):
        raise KeyboardInterrupt

    assert altered(folder, read(folder)) == []


def test_what_a_killed_run_left_behind_is_removed_by_the_next(tmp_path):
    (tmp_path / ".part-killed" / IMAGES).mkdir(parents=True)

    make(tmp_path, "one")

    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "one"]


def test_two_are_not_made_at_once(tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SnapshotError, match="another snapshot is being made"), being_made(tmp_path, "one"):
            pass


def test_it_is_this_users_alone(tmp_path):
    folder = make(tmp_path, "one")

    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o750, 0o705])
def test_one_that_others_may_enter_is_refused(tmp_path, mode):
    folder = make(tmp_path, "one")
    folder.chmod(mode)

    with pytest.raises(SnapshotError, match="not this user's alone"):
        read(folder)


def test_a_link_is_refused(tmp_path):
    make(tmp_path, "one")
    (tmp_path / "two").symlink_to("one")

    with pytest.raises(SnapshotError, match="not this user's alone"):
        read(tmp_path / "two")


def test_one_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SnapshotError, match="there is no snapshot one in"):
        read(tmp_path / "one")


@pytest.mark.parametrize("text", ["", "{}", '{"name": "one"}'])
def test_a_manifest_of_another_form_says_what_to_do(tmp_path, text):
    folder = make(tmp_path, "one")
    (folder / MANIFEST).write_text(text)

    with pytest.raises(SnapshotError, match="remove it and create another"):
        read(folder)
    assert read_all(tmp_path) == []


def test_files_that_are_short_or_gone_are_seen_without_reading_them(tmp_path):
    folder = make(tmp_path, "one")
    (folder / IMAGES / "pages-1.img").write_bytes(b"mem")
    (folder / IMAGES / "core.img").unlink()

    assert missing(folder, read(folder)) == ["core.img is missing", "pages-1.img has 3 bytes, not 6"]


def test_a_changed_byte_is_seen_by_reading(tmp_path):
    folder = make(tmp_path, "one")
    (folder / IMAGES / "pages-1.img").write_bytes(b"memorY")

    assert missing(folder, read(folder)) == []
    assert altered(folder, read(folder)) == ["pages-1.img was altered"]


def test_the_newest_comes_first(tmp_path):
    make(tmp_path, "older", datetime(2026, 1, 1, tzinfo=UTC))
    make(tmp_path, "newer", datetime(2026, 2, 1, tzinfo=UTC))

    assert [found.name for found in read_all(tmp_path)] == ["newer", "older"]
