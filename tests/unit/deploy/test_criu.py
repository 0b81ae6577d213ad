"""The criu command: which one, what it is asked, and its errors in one line. Here it is a script of the test's own."""

import stat

import pytest

from deploy.criu import Criu, CriuFailed, find_criu


@pytest.fixture
def fake(tmp_path):
    """A criu that does what a line of shell says; its words are kept in `words`."""

    def make(script):
        program = tmp_path / "criu"
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/words\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return Criu(program)

    return make


def words(tmp_path):
    return (tmp_path / "words").read_text().split("\n")[:-1]


def test_its_version_is_read(fake):
    assert fake("echo Version: 4.2.1; echo GitID: v4.2.1").version == "4.2.1"


def test_a_program_that_says_no_version_is_none(fake):
    with pytest.raises(CriuFailed, match="says nothing of a version: hello"):
        _ = fake("echo hello").version


def test_a_program_that_cannot_be_run_is_named(tmp_path):
    (tmp_path / "criu").write_text("")

    with pytest.raises(CriuFailed, match="cannot be run: Permission denied"):
        Criu(tmp_path / "criu").check()


def test_a_check_that_fails_says_the_first_error(fake):
    failing = fake("echo 'Error (criu/cr-check.c:1): no ptrace' >&2; echo 'Looks bad.' >&2; exit 1")

    with pytest.raises(CriuFailed, match=r"^criu check: no ptrace$"):
        failing.check()


def test_a_dump_names_process_and_folder(fake, tmp_path):
    fake("true").dump(1000, tmp_path / "images")

    told = words(tmp_path)
    assert told[0] == "dump"
    assert told[told.index("--tree") + 1] == "1000"
    assert told[told.index("--images-dir") + 1] == str(tmp_path / "images")
    assert "--manage-cgroups=ignore" in told


def test_a_restore_hands_files_on(fake, tmp_path):
    fake("true").restore(tmp_path / "images", tmp_path, {"pipe:[7]": 1, "pipe:[8]": 2})

    told = words(tmp_path)
    assert told[0] == "restore"
    assert [told[at + 1] for at, word in enumerate(told) if word == "--inherit-fd"] == ["fd[1]:pipe:[7]", "fd[2]:pipe:[8]"]


def test_a_failure_says_causes_and_not_what_is_harmless(fake, tmp_path):
    log = tmp_path / "restore.log"
    lines = [
        "(00.01) Error (criu/util.c:15): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted",
        "(00.02) 12: Error (criu/files-reg.c:2): Can't open file /lib/x.so",
        "(00.03) Error (criu/cr-restore.c:3): Restoring FAILED.",
    ]
    log.write_text("\n".join(lines))

    with pytest.raises(CriuFailed) as failed:
        fake("exit 1").restore(tmp_path / "images", tmp_path, {})

    assert str(failed.value) == "criu restore: Can't open file /lib/x.so; Restoring FAILED."


def test_one_that_is_named_is_taken(tmp_path):
    (tmp_path / "mine").touch()

    assert find_criu(tmp_path / "mine").program == tmp_path / "mine"


def test_one_that_is_named_and_not_there_is_an_error(tmp_path):
    with pytest.raises(CriuFailed, match="EKIBEN_CRIU names"):
        find_criu(tmp_path / "mine")


def test_the_usual_place_comes_after_the_path(tmp_path, monkeypatch):
    usual = tmp_path / "usual"
    usual.touch()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_criu(places=(usual,)).program == usual

    (tmp_path / "bin").mkdir()
    found = tmp_path / "bin" / "criu"
    found.touch(mode=0o755)
    assert find_criu(places=(usual,)).program == found


def test_where_there_is_none_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CriuFailed, match="make criu"):
        find_criu(places=())
