"""`ekiben bento build` on two machines, as far as they can differ here: another path, clock, umask, store and environment."""

import json
import os  # noqa: TID251  stores, a umask and an environment of the tests' own
import signal
import time

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from services.cli import app
from tests.machine import ROOT, Machine


def ekiben(*arguments, fails=False):
    """`ekiben bento` in this process, which saves the start of another."""
    done = CliRunner().invoke(app, ["bento", *map(str, arguments)])
    assert done.exit_code == int(fails), done.output
    return done.stderr if fails else done.stdout


def tree(folder):
    """Path -> mode, time and content of everything below a folder."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, path.stat().st_mtime, path.is_file() and path.read_bytes())
        for path in (folder, *folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    if not (ROOT / "bundle.lock").is_file():
        pytest.skip("NOTHING IS PACKED HERE: that builds give the same bytes is not tested; run `make pack`")
    one = Machine(tmp_path_factory.mktemp("one"), 0o22)
    # The other one has variables set that must not come into a Bento.
    other = Machine(
        tmp_path_factory.mktemp("another-machine"), 0o77, EKIBEN_ENGINE_PORT="9999", EKIBEN_ENGINE_URL="http://elsewhere:8000",
        UV_INDEX_URL="https://index.example/simple", UV_FIND_LINKS="/wheels-of-mine",
    )  # fmt: skip
    return one, other


@pytest.fixture(scope="module")
def version(machines):
    return machines[0].run("version").strip()


@pytest.fixture(scope="module")
def built(machines, version):
    """The same Bento on both machines; on the second one a build was interrupted before."""
    machines[0].run("build")
    return machines


def test_an_interrupted_build_leaves_nothing_in_the_store(machines, version):
    home = machines[1].home
    process = machines[1].start("build")
    deadline = time.monotonic() + 120
    while not list((home / "tmp").glob("ekiben-build-*/tmp/*/src")):  # BentoML has begun to write
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)

    assert process.returncode != 0
    assert not machines[1].bento(version).exists()
    assert list((home / "tmp").iterdir()) == []


def test_two_machines_build_the_same_bytes(built, version):
    one, other = built
    told = other.run("build")
    first, second = tree(one.bento(version)), tree(other.bento(version))

    assert f"ekiben:{version}" in told
    assert list(filter(lambda path: first.get(path) != second.get(path), first | second)) == []
    assert {"manifest.json", "bento.yaml", "src/services/gateway.py", "env/docker/Dockerfile"} <= set(first)


def test_nothing_of_the_machine_is_in_it(built, version):
    one, other = built
    words = [str(machine.clone).encode() for machine in built] + [str(one.home).encode(), str(other.home).encode()]
    words += [b"index.example", b"wheels-of-mine", b"elsewhere:8000", b"proxy_port: 9999"]
    files = [
        path for path in other.bento(version).rglob("*") if path.is_file() and "src" not in path.relative_to(other.home).parts
    ]
    texts = b"\n".join(path.read_bytes() for path in files)

    assert [word for word in words if word in texts] == []
    assert (other.bento(version) / "env" / "python" / "requirements.txt").read_text().count("\nbentoml==") == 1


def test_building_again_does_nothing(built, version):
    before = tree(built[0].bento(version))

    assert built[0].run("build") == f"ekiben:{version}\n"
    assert tree(built[0].bento(version)) == before


def test_inspect_tells_what_is_in_it(built, version):
    told = json.loads(ekiben("inspect", built[0].bento(version), "--json"))

    assert (told["name"], told["version"]) == ("ekiben", version)
    assert told["model"]["recipe"] == "w8a8"
    assert set(told["adapters"]) == {"banking-intents", "travel-intents"}
    assert told["adapters"]["travel-intents"]["rank"] == 16
    assert told["indexes"]["handbook"]["chunks"] == 15
    assert told["packages"]["bentoml"]
    assert "assistant" in told["prompts"]
    printed = ekiben("inspect", built[0].bento(version))
    assert all(told[part]["tag"] in printed for part in ("model", "names"))  # whole, also in 80 columns


def test_the_bill_is_valid(built, version, tmp_path):
    ekiben("sbom", built[0].bento(version), "-o", tmp_path / "bill.json")
    text = (tmp_path / "bill.json").read_text()

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = json.loads(text)["components"]
    types = [part["type"] for part in parts]
    assert (types.count("machine-learning-model"), types.count("data")) == (4, 1)  # a model, two adapters, the finder of names
    assert all(part["externalReferences"][0]["hashes"] for part in parts if part["type"] == "library")


def test_verify_names_what_was_altered(built, version):
    machine = built[0]
    assert "ok  sha256:" in machine.run("verify")

    prompt = machine.bento(version) / "src" / "prompts" / "templates" / "assistant.yaml"
    index = next((machine.home / "models" / "ekiben-index-handbook").glob("*/lance/chunks.lance/data/*.lance"))
    adapter = next((machine.home / "models" / "ekiben-adapter-travel-intents").glob("*/adapter_config.json"))
    kept = {path: path.read_bytes() for path in (prompt, index, adapter)}
    prompt.write_bytes(kept[prompt] + b"\n")
    index.write_bytes(kept[index].replace(b"11 euros", b"91 euros"))
    adapter.write_bytes(kept[adapter].replace(b'"r": 16', b'"r": 32'))
    try:
        assert kept[index] != index.read_bytes()
        wrong = machine.run("verify", f"ekiben:{version}", "--digest", "sha256:" + "0" * 64, fails=True)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)

    assert "src/prompts/templates/assistant.yaml was changed" in wrong
    assert "adapter_config.json was changed" in wrong
    assert "index handbook" in wrong
    assert "manifest.json has the digest" in wrong
    assert "4 problems" in wrong


def test_diff_names_what_changed(built, version):
    one, other = built
    prompt = other.clone / "prompts" / "templates" / "assistant.yaml"
    prompt.write_text(prompt.read_text().replace("system: ", "system: In short. ", 1), encoding="utf-8")
    other.run("build")
    changed = other.run("version").strip()
    told = json.loads(ekiben("diff", one.bento(version), other.bento(changed), "--json"))

    assert changed != version
    assert {change["what"] for change in told if not change["what"].startswith("file ")} == {"prompt assistant"}
    assert "file src/prompts/templates/assistant.yaml" in {change["what"] for change in told}
    listed = {row["tag"]: row["here"] for row in json.loads(other.run("list", "--json"))}
    assert listed == {f"ekiben:{version}": False, f"ekiben:{changed}": True}
