"""Which snapshot may be continued here, and what is said where none may."""

import json
import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from deploy.criu import CriuFailed
from deploy.snapshot import IMAGES, MANIFEST, Facts, Manifest, SnapshotError, being_made, described
from services import snapshots
from services.cli import app
from services.cli import snapshot as command
from services.layout import Layout, Machine
from services.settings import Settings
from services.snapshots import box_version, find, joined, snapshot_name

FACTS = Facts(
    box="b1", cpu="Some Processor", flags=frozenset({"avx2", "sse"}), cores=4, kernel="6.1.0", criu="4.2.1", python="3.11",
    packages={"vllm": "0.32.0"}, places={"project": "/srv"},
)  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "bundle.lock").write_text(json.dumps({"name": "demo", "model": "m:1"}))
    return Settings(bundle=tmp_path / "bundle.yaml", cache_dir=tmp_path / "cache")


@pytest.fixture
def here(monkeypatch):
    """What this machine is, for the tests to change."""
    state = SimpleNamespace(facts=FACTS)
    monkeypatch.setattr(snapshots, "facts_here", lambda settings, criu: state.facts)
    return state


def make(settings, name, facts=FACTS):
    with being_made(settings.snapshots, name) as folder:
        (folder / IMAGES / "pages-1.img").write_bytes(b"memory")
        manifest = Manifest(
            name=name, made_at=datetime.now(UTC), facts=facts, process=1000, descriptors=("a", "b", "c"), models=["m"],
            start_seconds=20, files=described(folder / IMAGES),
        )  # fmt: skip
        (folder / MANIFEST).write_text(manifest.model_dump_json())
    return settings.snapshots / name


def test_the_name_is_the_bundles_and_a_function_of_the_facts(settings):
    name = snapshot_name(settings, FACTS)

    assert name.startswith("demo-")
    assert name == snapshot_name(settings, FACTS.model_copy(update={"flags": frozenset({"sse", "avx2"})}))
    assert name != snapshot_name(settings, FACTS.model_copy(update={"kernel": "6.1.1"}))
    assert name != snapshot_name(settings, FACTS.model_copy(update={"flags": frozenset({"sse"})}))


def test_the_one_made_here_is_found(settings, here):
    folder = make(settings, snapshot_name(settings, FACTS))

    assert find(settings, None)[0] == folder


def test_without_any_it_says_how_to_make_one(settings, here):
    with pytest.raises(SnapshotError, match="ekiben snapshot create"):
        find(settings, None)


def test_of_others_the_newest_is_held_against_this_machine(settings, here):
    make(settings, snapshot_name(settings, FACTS))
    here.facts = FACTS.model_copy(update={"box": "b2", "criu": "4.3"})

    with pytest.raises(SnapshotError, match=r"box was b1, is b2; criu was 4.2.1, is 4.3"):
        find(settings, None)


def test_one_that_is_named_is_refused_with_every_difference(settings, here):
    folder = make(settings, "mine")
    (folder / IMAGES / "pages-1.img").write_bytes(b"")
    here.facts = FACTS.model_copy(update={"kernel": "6.2.0"})

    with pytest.raises(SnapshotError, match=r"kernel was 6.1.0, is 6.2.0; pages-1.img has 0 bytes, not 6"):
        find(settings, None, "mine")


def test_in_a_bento_its_tag_is_the_version(tmp_path):
    (tmp_path / "bento.yaml").write_text("name: demo\nversion: abc123\n")
    (tmp_path / "src").mkdir()

    assert box_version(tmp_path / "src") == "demo:abc123"


@pytest.mark.parametrize(
    ("layout", "fitted"),
    [
        (Layout(processes="joined", threads=4), Layout(processes="joined", threads=4)),
        (Layout(processes="apart"), Layout(processes="joined", threads=7)),
        (Layout(processes="joined", cpus="0-7"), Layout(processes="joined", threads=7)),
        (Layout(processes="apart", compiled=True), Layout(processes="joined", threads=7, compiled=True)),
    ],
)
def test_what_is_dumped_is_one_process_with_threads_that_are_not_bound(layout, fitted):
    machine = Machine(cpu="", cores=8, processors=16, node_cores=8, limited=False, memory_gib=32)

    assert joined(layout, machine) == fitted


@pytest.fixture
def command_line(settings, monkeypatch):
    """The command with settings of the test's own and no criu."""

    def none(named):
        raise CriuFailed("criu is not on this machine")

    monkeypatch.setattr("deploy.criu.find_criu", none)
    monkeypatch.setattr("services.restoring.find_criu", none)
    monkeypatch.setattr(command, "load_settings", lambda: settings)
    return lambda *words: CliRunner().invoke(app, ["snapshot", *words])


def test_without_criu_the_engine_starts_cold_and_the_log_says_why(command_line, monkeypatch):
    started = []
    monkeypatch.setattr("services.restoring.become", lambda program, *_: started.append(program[1:]) or sys.exit(3))

    done = command_line("restore", "--or-start")

    assert started == [["-m", "services.cli", "engine", "serve"]]
    assert done.exit_code == 3
    assert json.loads(done.stdout.splitlines()[-1])["reason"] == "criu is not on this machine"


def test_without_criu_nothing_is_started_where_that_is_asked(command_line):
    done = command_line("restore", "--or-fail")

    assert done.exit_code == 1
    assert "criu is not on this machine" in done.stderr


@pytest.mark.parametrize("verb", ["create", "verify"])
def test_without_criu_it_says_so_in_one_line(settings, command_line, verb):
    make(settings, "another")
    done = command_line(verb)

    assert (done.exit_code, done.stderr) == (1, "error: criu is not on this machine\n")


def test_they_are_listed_and_removed(settings, command_line):
    make(settings, "one")
    make(settings, "two")
    listed = json.loads(command_line("list", "--json").stdout)

    assert {row["name"] for row in listed} == {"one", "two"}
    assert command_line("remove", "one").exit_code == 0
    assert [row["name"] for row in json.loads(command_line("list", "--json").stdout)] == ["two"]
    assert command_line("remove", "--all").exit_code == 0
    assert command_line("list", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "told"), [((), "name the snapshots"), (("one", "--all"), "name the snapshots"), (("nine",), "nine")]
)
def test_a_removal_of_nothing_or_of_the_unknown_is_refused(command_line, words, told):
    done = command_line("remove", *words)

    assert done.exit_code == 1
    assert told in done.stderr


@pytest.fixture
def without_criu(settings, monkeypatch):
    def missing(named=None):
        raise CriuFailed("criu is not on this machine")

    monkeypatch.setattr("deploy.criu.find_criu", missing)
    monkeypatch.setattr(command, "load_settings", lambda: settings)
    return settings


def test_that_there_is_none_is_said_before_criu_is_missed(without_criu):
    done = CliRunner().invoke(app, ["snapshot", "verify", "mine"])

    assert (done.exit_code, "there is no snapshot" in done.stderr, "criu is not" in done.stderr) == (1, True, False)
    make(without_criu, "other")
    done = CliRunner().invoke(app, ["snapshot", "verify", "mine"])
    assert (done.exit_code, "there is no snapshot mine" in done.stderr, "criu is not" in done.stderr) == (1, True, False)


def test_bytes_are_read_without_criu(without_criu):
    folder = make(without_criu, "mine")
    (folder / IMAGES / "pages-1.img").write_bytes(b"mEmory")
    done = CliRunner().invoke(app, ["snapshot", "verify", "mine"])

    assert done.exit_code == 1
    assert "pages-1.img was altered" in done.stderr
    assert "criu is not on this machine" in done.stderr


def test_an_empty_list_says_how_one_is_made(without_criu):
    done = CliRunner().invoke(app, ["snapshot", "list"])

    assert (done.exit_code, "ekiben snapshot create" in done.stderr) == (0, True)
    assert json.loads(CliRunner().invoke(app, ["snapshot", "list", "--json"]).stdout) == []
