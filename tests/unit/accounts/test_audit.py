"""The audit trail is verified against every kind of tampering, and survives what disks do."""

import errno
import os  # noqa: TID251  disks that fail
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts import audit
from accounts.audit import AuditFailed, AuditLog, Entry
from accounts.chain import chain_files, derived
from accounts.verify import verify

KEY = derived("a secret of the box", "chain")
LINES = 12


def entry(number):
    return Entry(id=f"r{number}", action="chat", tenant="acme", key="k1", route="handbook", micros=number, completion_tokens=3)


def written(folder, key=KEY, lines=LINES, **more):
    with AuditLog(folder, key, sync_seconds=None, **more) as log:
        for number in range(lines):
            log.append(entry(number))
    return [one.path for one in chain_files(folder)]


@pytest.fixture(scope="module", params=["keyed", "bare"])
def trail(request, tmp_path_factory):
    """A trail of one file: an opening line and twelve requests."""
    folder = tmp_path_factory.mktemp("trail")
    key = KEY if request.param == "keyed" else None
    [path] = written(folder, key)
    return folder, path.name, key, path.read_bytes().splitlines(keepends=True)


def tampered(tmp_path_factory, trail, lines):
    folder, name, key, _ = trail
    copy = tmp_path_factory.mktemp("copy") / "audit"
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(b"".join(lines))
    found = verify(copy, key)
    shutil.rmtree(copy.parent)
    return found


def test_a_trail_that_was_left_alone_holds(trail):
    folder, _, key, lines = trail
    found = verify(folder, key)

    assert found.ok
    assert not found.problems
    assert (found.files, found.lines, found.requests) == (1, len(lines), LINES)


PROPERTY = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLACE = st.integers(0, LINES)


@PROPERTY
@given(place=PLACE, data=st.data())
def test_any_changed_byte_is_located(trail, tmp_path_factory, place, data):
    lines = list(trail[3])
    at = data.draw(st.integers(0, len(lines[place]) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value not in (lines[place][at], 10)))
    lines[place] = lines[place][:at] + bytes([byte]) + lines[place][at + 1 :]
    found = tampered(tmp_path_factory, trail, lines)

    assert [(problem.what, problem.line) for problem in found.problems] == [("altered", place + 1)]


@PROPERTY
@given(first=PLACE, count=st.integers(1, 4))
def test_removed_lines_are_located(trail, tmp_path_factory, first, count):
    lines = trail[3][:first] + trail[3][first + count :]
    found = tampered(tmp_path_factory, trail, lines)

    [problem] = found.problems
    assert problem.what == "removed"
    # Before the line that follows, or where the file ends now.
    assert problem.line == (first + 1 if first + count <= LINES else first)


@PROPERTY
@given(place=st.integers(0, LINES + 1), line=st.binary(min_size=1, max_size=60).filter(lambda raw: b"\n" not in raw))
def test_an_inserted_line_is_located(trail, tmp_path_factory, place, line):
    lines = [*trail[3][:place], line + b"\n", *trail[3][place:]]
    found = tampered(tmp_path_factory, trail, lines)

    assert [(problem.what, problem.line) for problem in found.problems] == [("inserted", place + 1)]


@PROPERTY
@given(origin=PLACE, place=st.integers(0, LINES + 1))
def test_a_copied_line_is_located(trail, tmp_path_factory, origin, place):
    lines = [*trail[3][:place], trail[3][origin], *trail[3][place:]]
    found = tampered(tmp_path_factory, trail, lines)

    [problem] = found.problems
    assert problem.what == "inserted"
    # A copy beside its original is no other than the original.
    assert problem.line in ({place + 1} if place not in (origin, origin + 1) else {origin + 1, origin + 2})


@PROPERTY
@given(first=PLACE, second=PLACE)
def test_swapped_lines_are_located(trail, tmp_path_factory, first, second):
    lines = list(trail[3])
    lines[first], lines[second] = lines[second], lines[first]
    found = tampered(tmp_path_factory, trail, lines)

    assert found.ok == (first == second)
    assert {problem.line for problem in found.problems} <= set(range(min(first, second) + 1, max(first, second) + 2))


@PROPERTY
@given(keep=st.integers(0, 5000))
def test_a_cut_end_is_told_from_a_torn_line(trail, tmp_path_factory, keep):
    whole = b"".join(trail[3])
    found = tampered(tmp_path_factory, trail, [whole[: keep % len(whole)]])

    assert not found.ok


def test_half_a_line_behind_the_head_is_torn_and_no_tampering(tmp_path):
    [path] = written(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"at":"2026-')
    found = verify(tmp_path, KEY)

    assert found.ok
    assert [(problem.what, problem.line) for problem in found.problems] == [("torn", LINES + 2)]
    assert found.requests == LINES


def test_without_the_key_a_forger_is_not_believed(tmp_path):
    """He can hash, but not seal."""
    written(tmp_path, None)
    found = verify(tmp_path, KEY)

    assert [problem.what for problem in found.problems] == ["unsigned"]


def test_another_key_is_told_as_such(tmp_path):
    written(tmp_path)
    found = verify(tmp_path, derived("another secret", "chain"))

    assert not found.ok
    assert "another key" in {problem.what for problem in found.problems}


def test_a_removed_file_is_missed_wherever_it_was(tmp_path):
    for place in range(3):
        folder = tmp_path / str(place)
        paths = written(folder, max_bytes=1200)
        assert len(paths) > 3
        assert verify(folder, KEY).ok
        paths[(0, len(paths) // 2, -1)[place]].unlink()
        found = verify(folder, KEY)

        assert "removed" in {problem.what for problem in found.problems}


def test_the_last_line_of_a_file_that_has_a_next_one_is_located(tmp_path):
    path = written(tmp_path, max_bytes=1200)[1]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b"acme", b"acne")]))
    altered = verify(tmp_path, KEY).problems
    path.write_bytes(b"".join(lines[:-1]))
    removed = verify(tmp_path, KEY).problems

    assert [(one.what, one.file, one.line) for one in altered] == [("altered", path.name, len(lines))]
    assert [(one.what, one.file) for one in removed] == [("removed", path.name)]


def test_a_chain_that_is_gone_whole_is_missed_by_the_next_one(tmp_path):
    written(tmp_path)
    first = {path.name for path in tmp_path.iterdir()}
    written(tmp_path)
    for name in first:
        (tmp_path / name).unlink()
    [problem] = verify(tmp_path, KEY).problems

    assert problem.what == "removed"
    assert problem.file in {name.partition(".")[0] for name in first}


def test_a_trail_that_was_put_back_is_missed_by_an_earlier_verification(tmp_path):
    log = AuditLog(tmp_path / "now", KEY, sync_seconds=None)
    log.append(entry(1))
    shutil.copytree(tmp_path / "now", tmp_path / "then")
    log.append(entry(2))
    anchors = {name: chain.head for name, chain in verify(tmp_path / "now", KEY).chains.items()}
    log.close()

    assert verify(tmp_path / "now", KEY, anchors).ok
    assert verify(tmp_path / "then", KEY).ok
    assert [problem.what for problem in verify(tmp_path / "then", KEY, anchors).problems] == ["removed"]


def test_a_chain_that_was_cut_to_its_beginning_is_missed_by_the_next_one(tmp_path):
    """As if its process had been stopped while it began; only the next process knows better."""
    [path] = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    head = tmp_path / f"{path.name.partition('.')[0]}.head"
    path.write_bytes(lines[0])
    head.write_bytes(b"")
    assert [problem.what for problem in verify(tmp_path, KEY).problems] == ["torn"]
    path.write_bytes(b"".join(lines))
    assert [problem.what for problem in verify(tmp_path, KEY).problems] == ["altered"]
    head.unlink()
    assert [problem.what for problem in verify(tmp_path, KEY).problems] == ["removed"]
    [path] = written(tmp_path / "again")
    begun = path.read_bytes().splitlines(keepends=True)[0]
    written(tmp_path / "again")
    path.write_bytes(begun)
    path.with_name(f"{path.name.partition('.')[0]}.head").write_bytes(b"")
    found = verify(tmp_path / "again", KEY)

    assert "removed" in {problem.what for problem in found.problems}


def test_two_writers_have_chains_of_their_own(tmp_path):
    with AuditLog(tmp_path, KEY) as one, AuditLog(tmp_path, KEY) as other:
        for number in range(20):
            (one if number % 2 else other).append(entry(number))
    found = verify(tmp_path, KEY)

    assert found.ok
    assert len(found.chains) == 2
    assert found.requests == 20


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditFailed, match="cannot be written"):
        AuditLog(tmp_path / "file" / "audit", KEY)


def test_a_full_disk_refuses_and_nothing_is_lost_when_there_is_room_again(tmp_path, monkeypatch):
    """Half a line went to the disk; it is taken back, the line is kept and written later, and the chain holds."""
    log = AuditLog(tmp_path, KEY, sync_seconds=None)
    log.append(entry(0))
    real = os.write

    def full(opened, line):
        real(opened, line[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(audit, "RETRY_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(audit.os, "write", full)
        for number in (1, 2):
            with pytest.raises(AuditFailed, match="No space left"):
                log.append(entry(number))
        with pytest.raises(AuditFailed):
            log.check()
    assert verify(tmp_path, KEY).requests == 1
    log.check()
    log.append(entry(3))
    log.close()
    found = verify(tmp_path, KEY)

    assert not found.problems
    assert found.requests == 4


def test_lines_over_the_bound_are_counted_in_the_trail(tmp_path, monkeypatch):
    log = AuditLog(tmp_path, KEY, sync_seconds=None)
    monkeypatch.setattr(audit, "MAX_WAITING", 2)
    with monkeypatch.context() as patch:
        patch.setattr(audit, "_write_whole", lambda opened, line: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        for number in range(5):
            with pytest.raises(AuditFailed):
                log.append(entry(number))
    log.close()
    [path] = [one.path for one in chain_files(tmp_path)]

    assert '"kind":"lost","lines":3' in path.read_text()
    assert verify(tmp_path, KEY).requests == 2


def test_a_disk_without_room_refuses_new_requests(tmp_path, monkeypatch):
    with AuditLog(tmp_path, KEY) as log:
        monkeypatch.setattr(audit, "MIN_FREE_BYTES", 1 << 62)
        with pytest.raises(AuditFailed, match="full"):
            log.check()


def test_a_file_that_was_deleted_under_the_writer_is_not_written_on(tmp_path):
    with AuditLog(tmp_path, KEY) as log:
        log.append(entry(0))
        [first] = [one.path for one in chain_files(tmp_path)]
        first.unlink()
        log.check()
        log.append(entry(1))
    found = verify(tmp_path, KEY)

    assert found.requests == 1
    assert [problem.what for problem in found.problems] == ["removed"]


def test_a_new_day_begins_a_new_file(tmp_path, monkeypatch):
    with AuditLog(tmp_path, KEY) as log:
        log.append(entry(0))
        monkeypatch.setattr(audit, "_now", lambda: "2999-01-01T00:00:00.000Z")
        log.append(entry(1))
        log.append(entry(2))
    found = verify(tmp_path, KEY)

    assert found.ok
    assert (found.files, found.requests) == (2, 3)


def test_texts_are_encrypted_or_not_taken(tmp_path):
    texts = {"question": "wo ist mein Koffer?"}
    with AuditLog(tmp_path / "plain", KEY) as log, pytest.raises(ValueError, match="encrypted only"):
        log.append(entry(0), texts)
    key = audit.TextKey(derived("a secret for texts", "texts"))
    with AuditLog(tmp_path / "sealed", KEY, key.key) as log:
        log.append(entry(0), texts)
    [path] = [one.path for one in chain_files(tmp_path / "sealed")]
    line = audit.json.loads(Path(path).read_text().splitlines()[1])

    assert "Koffer" not in path.read_text()
    assert key.decrypt(line["sealed"], "r0") == texts
    with pytest.raises(ValueError, match="another key"):
        key.decrypt(line["sealed"], "r1")


def test_what_is_no_json_is_the_callers_error_and_the_next_line_is_written(tmp_path):
    with AuditLog(tmp_path, KEY) as log:
        with pytest.raises(TypeError):
            log.append(Entry(id="r", action="chat", tenant="acme", more={"x": object()}))
        log.append(entry(1))

    assert verify(tmp_path, KEY).requests == 1
