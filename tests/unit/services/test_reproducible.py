"""A Bento as BentoML leaves it, brought to what follows from its inputs."""

import os  # noqa: TID251  a umask of the test's own

import pytest
import yaml

from services.reproducible import CREATED, EPOCH, cleaned, normalise, settle

LOCK = "a==1 \\\n    --hash=sha256:aa\nbentoml==1.4.39 \\\n    --hash=sha256:bb\n"


def test_bentoml_is_named_once_and_with_its_hashes():
    assert cleaned(LOCK + "bentoml==1.4.39\n", "") == LOCK
    assert cleaned("a==1\nbentoml==1.4.39\n", "") == "a==1\nbentoml==1.4.39\n"


@pytest.mark.parametrize(
    "line",
    ["--index-url https://i.example/simple", "--extra-index-url=https://i.example", "--find-links /wheels", "-f /wheels", "-i u"],
)
def test_indexes_of_the_machine_go_and_those_of_the_bundle_stay(line):
    where = line.replace("=", " ").split()[1]

    assert cleaned(f"{line}\n{LOCK}", "") == LOCK
    assert cleaned(f"{line}\n{LOCK}", f"python:\n  find_links: [{where}]\n") == f"{line}\n{LOCK}"


@pytest.fixture
def bento(tmp_path):
    folder = tmp_path / "bento"
    for part in ("env/python", "src"):
        (folder / part).mkdir(parents=True)
    info = {
        "name": "box", "creation_time": "2026-11-23T20:23:43+00:00",
        "services": [{"models": [{"tag": "m:1", "creation_time": "2026-11-23T14:52:45+00:00"}]}],
        "image": {"python_requirements": LOCK + "bentoml==1.4.39\n"},
    }  # fmt: skip
    (folder / "bento.yaml").write_text(yaml.safe_dump(info))
    (folder / "env" / "python" / "requirements.txt").write_text(f"--find-links /wheels\n{LOCK}")
    (folder / "src" / "notes.txt").write_text("--find-links /wheels\ncreation_time: now\n")
    (folder / "src" / "run.sh").write_text("true\n")
    (folder / "src" / "run.sh").chmod(0o700)
    return folder


def test_no_time_and_no_index_is_left_and_the_source_is_left_alone(bento):
    normalise(bento)
    info = yaml.safe_load((bento / "bento.yaml").read_text())

    assert info["creation_time"] == info["services"][0]["models"][0]["creation_time"] == CREATED
    assert info["image"]["python_requirements"] == LOCK
    assert (bento / "env" / "python" / "requirements.txt").read_text() == LOCK
    assert (bento / "src" / "notes.txt").read_text() == "--find-links /wheels\ncreation_time: now\n"


def test_twice_is_as_once(bento):
    normalise(bento)
    once = (bento / "bento.yaml").read_bytes()
    normalise(bento)

    assert (bento / "bento.yaml").read_bytes() == once


def test_an_index_that_the_bundle_names_stays(bento):
    (bento / "src" / "bentofile.yaml").write_text("python: {find_links: [/wheels]}\n")
    normalise(bento)

    assert "--find-links /wheels" in (bento / "env" / "python" / "requirements.txt").read_text()


def test_times_and_modes_are_of_no_machine(bento):
    (bento / "link").symlink_to("src")
    before = os.umask(0o077)
    try:
        (bento / "src" / "private.txt").write_text("a\n")
    finally:
        os.umask(before)
    settle(bento)
    modes = {path.relative_to(bento).as_posix(): path.stat().st_mode & 0o7777 for path in bento.rglob("*")}

    assert {path.stat().st_mtime for path in (bento, *bento.rglob("*"))} == {EPOCH}
    assert (modes["src/run.sh"], modes["src/private.txt"], modes["src"]) == (0o755, 0o644, 0o755)
    assert (bento / "link").is_symlink()
