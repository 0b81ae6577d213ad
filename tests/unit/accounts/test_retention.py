"""What is old goes, the rest holds, and evidence stays."""

import os  # noqa: TID251  times of files
import time

import pytest

from accounts.audit import AuditLog, Entry
from accounts.chain import PRUNED, chain_files, derived
from accounts.retention import prune
from accounts.verify import verify

KEY = derived("a secret of the box", "chain")


def fill(log, lines=8):
    for number in range(lines):
        log.append(Entry(id=f"r{number}", action="chat", tenant="acme"))


def age(paths, days):
    for path in paths:
        os.utime(path, (time.time() - days * 86_400,) * 2)


def paths(folder):
    return [one.path for one in chain_files(folder)]


def test_old_files_go_and_the_rest_holds(tmp_path):
    with AuditLog(tmp_path, KEY, max_bytes=900) as log:
        fill(log)
        old = paths(tmp_path)[:2]
        age(old, 10)
        done = prune(tmp_path, KEY, 9)
        fill(log)
    found = verify(tmp_path, KEY)

    assert done.files == [path.name for path in old]
    assert found.ok
    assert not found.problems
    assert 0 < found.requests < 16
    assert prune(tmp_path, KEY, 9).files == []


def test_a_chain_that_has_ended_goes_whole_and_is_not_missed(tmp_path):
    with AuditLog(tmp_path, KEY, max_bytes=900) as log:
        fill(log)
    with AuditLog(tmp_path, KEY) as log:
        fill(log)
    ended = [path for path in tmp_path.iterdir() if not path.name.startswith(log.chain)]
    age(ended, 10)
    prune(tmp_path, KEY, 9)
    found = verify(tmp_path, KEY)

    assert not any(path.exists() for path in ended)
    assert list(found.chains) == [log.chain]
    assert not found.problems


def test_the_last_file_of_a_process_that_lives_is_kept(tmp_path):
    with AuditLog(tmp_path, KEY) as log:
        fill(log)
        age(tmp_path.iterdir(), 10)
        assert prune(tmp_path, KEY, 9).files == []
        log.append(Entry(id="more", action="chat", tenant="acme"))

    assert verify(tmp_path, KEY).requests == 9


def test_it_holds_too_where_pruning_was_stopped_between_note_and_removal(tmp_path):
    with AuditLog(tmp_path, KEY, max_bytes=900) as log:
        fill(log)
        old = {path: path.read_bytes() for path in paths(tmp_path)[:2]}
        age(old, 10)
        prune(tmp_path, KEY, 9)
    second = list(old)[1]
    second.write_bytes(old[second])
    assert not verify(tmp_path, KEY).problems
    age([second], 10)
    prune(tmp_path, KEY, 9)

    assert not second.exists()
    assert not verify(tmp_path, KEY).problems


def test_more_than_was_noted_is_missed(tmp_path):
    with AuditLog(tmp_path, KEY, max_bytes=900) as log:
        fill(log)
        age(paths(tmp_path)[:1], 10)
        prune(tmp_path, KEY, 9)
    paths(tmp_path)[0].unlink()

    assert [problem.what for problem in verify(tmp_path, KEY).problems] == ["removed"]


def test_a_chain_that_was_pruned_in_part_and_is_gone_whole_is_missed(tmp_path):
    with AuditLog(tmp_path, KEY, max_bytes=900) as log:
        fill(log)
        age(paths(tmp_path)[:1], 10)
        prune(tmp_path, KEY, 9)
    for path in tmp_path.glob(f"{log.chain}*"):
        path.unlink()

    assert [(problem.what, problem.file) for problem in verify(tmp_path, KEY).problems] == [("removed", log.chain)]


def test_a_broken_chain_is_evidence_and_stays(tmp_path):
    with AuditLog(tmp_path, KEY) as log:
        fill(log)
    [path] = paths(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"acme", b"acne", 1))
    age(tmp_path.iterdir(), 10)
    done = prune(tmp_path, KEY, 9)

    assert done.files == []
    assert f"{path.name}:2: its seal does not hold" in done.kept[log.chain]
    assert path.exists()


def test_a_forged_note_is_found_and_nothing_goes(tmp_path):
    with AuditLog(tmp_path, KEY, max_bytes=900) as log:
        fill(log)
        age(paths(tmp_path)[:1], 10)
        prune(tmp_path, KEY, 9)
    note = tmp_path / PRUNED
    note.write_bytes(note.read_bytes().replace(b'"gone":false', b'"gone":true'))

    assert "altered" in {problem.what for problem in verify(tmp_path, KEY).problems}
    with pytest.raises(ValueError, match="nothing was removed"):
        prune(tmp_path, KEY, 9)


def test_a_day_is_kept_at_least(tmp_path):
    with pytest.raises(ValueError, match="a day at least"):
        prune(tmp_path, KEY, 0)
