"""`ekiben release` from a clone of the project to an OCI folder and rendered manifests, and back: real Bentos, real skopeo."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from tests.machine import ROOT, Machine

if shutil.which("skopeo") is None:
    pytest.skip("NO skopeo HERE: releases are not tested; apt-get install skopeo", allow_module_level=True)
ENVIRONMENT = {
    "image": "registry.example/team/box:0",
    "host": "box.example",
    "namespace": "box",
    "secrets": {"engine_key": {"name": "box", "key": "engine"}},
}


class Releasing(Machine):
    """A clone whose engine for containers is one of the tests'."""

    def __init__(self, root):
        self.root = root
        images, state = root / "images", root / "state"
        super().__init__(root, 0o22, TEST_IMAGES=str(images), EKIBEN_STATE_DIR=str(state), COLUMNS="200")
        (root / "environment.yaml").write_text(yaml.safe_dump(ENVIRONMENT))
        self.kept = root / "kept"
        self.told = ["--to", f"oci:{self.kept}", "--env", root / "environment.yaml", "--output", root / "rendered"]

        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.images"], cwd=self.clone, env=self._environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0
        self._process.stdout.close()

    def ekiben(self, *arguments, fails=False, **environment):
        asked = {"arguments": list(map(str, arguments)), "environment": environment}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        done = SimpleNamespace(**json.loads(self._process.stdout.readline()))
        assert done.code == int(fails), done.stdout + done.stderr
        return done

    def release(self, *arguments, **how):
        done = self.ekiben("release", *self.told, "--yes", "--json", *arguments, **how)
        return done.stderr if how.get("fails") else json.loads(done.stdout)

    def versions(self):
        """What the folder of images has: version -> digest."""
        if not self.kept.exists():
            return {}
        names = json.loads((self.kept / "index.json").read_bytes())["manifests"]
        return {one["annotations"]["org.opencontainers.image.ref.name"]: one["digest"] for one in names}

    def served(self):
        """The images that the rendered manifests name."""
        texts = [path.read_text() for path in (self.root / "rendered").glob("*.yaml")]
        return {line.split("image: ")[1] for text in texts for line in text.splitlines() if "image: " in line}

    def prompt(self, words):
        """Change the demo: another version follows."""
        path = self.clone / "prompts" / "templates" / "assistant.yaml"
        path.write_text(path.read_text().replace("system: ", f"system: {words} ", 1), encoding="utf-8")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if not (ROOT / "bundle.lock").is_file():
        pytest.skip("NOTHING IS PACKED HERE: releases are not tested; run `make pack`")
    machine = Releasing(tmp_path_factory.mktemp("release"))
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def first(machine):
    planned = json.loads(machine.ekiben("release", *machine.told, "--plan", "--json").stdout)["plan"]
    assert [(step["name"], step["runs"]) for step in planned] == [
        (name, True) for name in ("build", "verify", "scan", "containerize", "push", "render")
    ]
    refused = machine.ekiben("release", *machine.told, fails=True).stderr
    assert "There is no terminal to ask on; give --yes." in refused
    assert machine.versions() == {}
    return machine.release()


def test_a_release_is_pushed_rendered_and_recorded(machine, first):
    version = first["bento"].partition(":")[2]

    assert machine.versions() == {version: first["results"]["digest"]}
    assert machine.served() == {f"registry.example/team/box:{version}"}
    [listed] = json.loads(machine.ekiben("release", "list", "--json").stdout)
    assert (listed["bento"], listed["kind"], listed["schema"]) == (first["bento"], "release", "0001")
    assert all(step["seconds"] > 0 and not step["skipped"] for step in first["steps"])


def test_again_nothing_is_made_that_is_there(machine, first):
    again = machine.release()

    assert {step["name"]: step["skipped"] for step in again["steps"]} == {
        "build": True, "verify": False, "scan": False, "containerize": True, "push": True, "render": False,
    }  # fmt: skip
    assert again["results"] == first["results"]


def test_what_could_not_be_scanned_is_told_and_may_be_forbidden(machine, first, tmp_path):
    for name in ("env", "skopeo"):
        (tmp_path / name).symlink_to(shutil.which(name))
    assert "NOT SCANNED: packages were not looked at: pip-audit is not installed" in machine.ekiben(
        "release", *machine.told, "--yes", PATH=str(tmp_path)
    ).stderr  # fmt: skip
    wrong = machine.release("--require-scan", fails=True, PATH=str(tmp_path))

    assert "error: --require-scan: packages were not looked at" in wrong


@pytest.fixture(scope="module")
def second(machine, first):
    """Another version; its first push is refused, and the release goes on from there."""
    machine.prompt("In short.")
    refused = machine.release("--to", "127.0.0.1:9/team/box", "--plain-http", fails=True)
    assert "127.0.0.1:9" in refused
    assert "connection refused" in refused
    assert refused.count("error: ") == 1
    assert len(machine.versions()) == 1
    done = machine.release()
    assert done["bento"] != first["bento"]
    assert [step["name"] for step in done["steps"] if step["skipped"]] == ["build", "containerize"]
    return done


def test_the_way_back_says_what_differs_and_what_it_does(machine, first, second):
    told = json.loads(machine.ekiben("release", "rollback", "--dry-run", "--json").stdout)

    assert any(line.startswith("prompt assistant: ") for line in told["changes"])
    assert [step["name"] for step in told["plan"]] == ["find", "render"]
    assert told["schema"] == "0001"
    assert machine.served() == {f"registry.example/team/box:{second['bento'].partition(':')[2]}"}


def test_an_earlier_version_comes_back(machine, first, second):
    back = json.loads(machine.ekiben("release", "rollback", "--yes", "--json").stdout)
    assert (back["kind"], back["bento"]) == ("rollback", first["bento"])
    assert back["results"]["rendered"] == first["results"]["rendered"]
    assert "is the first release" in machine.ekiben("release", "rollback", "--yes", fails=True).stderr

    shutil.rmtree(machine.kept)
    forward = second["bento"].partition(":")[2]
    again = json.loads(machine.ekiben("release", "rollback", forward[:6], "--yes", "--json").stdout)
    assert [step["name"] for step in again["steps"]] == ["verify", "containerize", "push", "render"]
    assert machine.versions() == {forward: second["results"]["digest"]}
    kinds = [line["kind"] for line in json.loads(machine.ekiben("release", "list", "--json").stdout)]
    assert kinds[-3:] == ["release", "rollback", "rollback"]


def test_an_earlier_version_that_cannot_use_the_database_is_refused_with_the_command(machine, first, second, tmp_path):
    import sqlalchemy as sa

    url = f"sqlite:///{tmp_path}/ekiben.db"
    machine.ekiben("database", "upgrade", EKIBEN_DATABASE_URL=url)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0003_for_0002'")
    engine.dispose()
    before = machine.served()
    wrong = machine.ekiben("release", "rollback", first["bento"], "--yes", fails=True, EKIBEN_DATABASE_URL=url).stderr

    assert "the database's schema is 0003_for_0002" in wrong
    assert "`ekiben database downgrade --to 0001`" in wrong
    assert machine.served() == before


def test_a_bento_that_was_altered_goes_nowhere(machine, first, second):
    bento = machine.bento(second["bento"].partition(":")[2])
    prompt = bento / "src" / "prompts" / "templates" / "assistant.yaml"
    content, before = prompt.read_bytes(), machine.versions()
    prompt.write_bytes(content + b"# x\n")
    try:
        wrong = machine.release("--to", f"oci:{machine.root / 'elsewhere'}", fails=True)
    finally:
        prompt.write_bytes(content)

    assert "is not what its manifest says: src/prompts/templates/assistant.yaml was changed" in wrong
    assert machine.versions() == before
    assert not (machine.root / "elsewhere").exists()


def test_what_a_scan_finds_stops_the_release(machine, first, tmp_path):
    for name in ("env", "skopeo"):
        (tmp_path / name).symlink_to(shutil.which(name))
    told = [{"line": 1, "code": "DL9", "level": "error", "message": "no"}]
    (tmp_path / "hadolint").write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
    (tmp_path / "hadolint").chmod(0o755)
    wrong = machine.release("--to", f"oci:{machine.root / 'elsewhere'}", fails=True, PATH=str(tmp_path))

    assert "found 1: Dockerfile:1: DL9: no" in wrong
    assert not (machine.root / "elsewhere").exists()


def test_a_box_that_does_not_fit_is_told_before_an_image_is_made(machine, first, tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(ENVIRONMENT | {"engine": {"resources": {"memory": "64Mi", "cpu": "1"}}}))
    wrong = machine.release("--env", tmp_path / "small.yaml", fails=True)

    assert "it does not fit" in wrong
    assert "memory" in wrong
    assert "scan: " not in wrong  # the step after the one that looked


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "Nowhere"], "write REGISTRY/NAME"),
        (["--env", "nothing.yaml"], "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_done(machine, first, arguments, told):
    wrong = machine.release(*arguments, fails=True)

    assert told in wrong
    assert wrong.startswith("error: ")
