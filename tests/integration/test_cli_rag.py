"""`ekiben rag` as a user runs it: an index's versions and its moves, in the model store and on a real server."""

import json
import os  # noqa: TID251  a store of one's own for the command
import subprocess
import sys
from pathlib import Path

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore
from typer.testing import CliRunner

from services.cli import app
from services.cli.console import err, out

# Of what BentoML imports, when it makes a model.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
ROOT = Path(__file__).resolve().parents[2]
BUNDLE = """name: {name}
model: {{name: m, source: 'pypi:m==1'}}
prompts: {{p: {{path: p.yaml}}}}
policies: {{g: {{path: g.yaml}}}}
collections: {{docs: {{path: docs{store}}}}}
routes: {{r: {{prompt: p, policy: g, collection: docs}}}}
"""


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A bundle in a folder, and its commands, in this process: each of its own would spend its time on imports."""
    for console in (err, out):
        monkeypatch.setattr(console, "_width", 200)
    (tmp_path / "docs").mkdir()
    (tmp_path / "p.yaml").write_text("system: s {{ passages }}\n")
    (tmp_path / "g.yaml").write_text("")

    class Box:
        def __init__(self):
            self.variables = {}

        def write(self, text, store=None, name="box"):
            (tmp_path / "docs" / "a.md").write_text(f"# Shop\n{text}\n")
            (tmp_path / "docs" / "b.jsonl").write_text(
                '{"text": "Secret plans of the shop.", "tenant": "acme", "labels": ["board"]}\n'
            )
            (tmp_path / "bundle.yaml").write_text(BUNDLE.format(name=name, store=f", store: '{store}'" if store else ""))
            if not (tmp_path / "bundle.lock").exists():
                (tmp_path / "bundle.lock").write_text(json.dumps({"name": name, "model": "m:1"}))

        def __call__(self, *arguments, code=0):
            # The store makes its folders when it is opened; one that was moved away is a new one.
            store = tmp_path / "bentoml" / "models"
            store.mkdir(parents=True, exist_ok=True)
            with BentoMLContainer.model_store.patch(ModelStore(store)), pytest.MonkeyPatch.context() as patch:
                for name, value in self.variables.items():
                    patch.setenv(name, value)
                done = CliRunner().invoke(app, ["rag", *arguments, "--bundle", str(tmp_path / "bundle.yaml")])
            assert done.exit_code == code, done.output
            return done

        def versions(self):
            return json.loads(self("versions", "docs", "--json").stdout)

        def found(self, *caller):
            told = json.loads(self("search", "docs", "plans of the shop that opens", *caller, "--json").stdout)
            return [source["excerpt"] for source in told]

        @property
        def lock(self):
            return json.loads((tmp_path / "bundle.lock").read_text()).get("indexes", {})

    return Box()


def test_versions_in_the_model_store(box):
    box.write("It opens at nine.")
    box("ingest", "docs")
    first = box.lock["docs"].rpartition(":")[2]
    box.write("It opens at ten.")
    box("ingest", "docs")
    assert [(v["chunks"], v["current"]) for v in box.versions()] == [(2, False), (2, True)]
    assert "ten" in str(box.found("--tenant", "x"))

    assert f"searched in {first}" in box("switch", "docs", first).stdout
    assert box.lock["docs"].endswith(first)
    assert box.found("--tenant", "x") == ["It opens at nine."]
    assert (
        set(box.found("--tenant", "acme", "--label", "board"))
        == set(box.found())
        == {"It opens at nine.", "Secret plans of the shop."}
    )
    assert box.found("--label", "board") == ["It opens at nine."]

    assert f"{first} is searched" in box("remove", "docs", first, code=1).stderr
    box("remove", "docs", box.versions()[1]["name"])
    assert [v["name"] for v in box.versions()] == [first]
    assert "not in the model store" in box("switch", "docs", "0" * 16, code=1).stderr


def test_versions_on_a_server_and_moves(box, postgres_url):
    box.write("It opens at nine.")
    box("ingest", "docs")
    tag = box.lock["docs"]
    moved = box("move", "docs", "--to", postgres_url)
    assert "write `store: postgresql://" in moved.stdout

    box.write("It opens at ten.", store=postgres_url)
    assert box.found("--tenant", "x") == ["It opens at nine."]
    box("ingest", "docs")
    assert box.lock == {"docs": tag}
    assert box.found("--tenant", "x") == ["It opens at ten."]
    first, second = (v["name"] for v in box.versions())
    assert tag.endswith(first)

    box("switch", "docs", first)
    assert box.found("--tenant", "x") == ["It opens at nine."]
    assert [v["current"] for v in box.versions()] == [True, False]
    assert "is searched" in box("remove", "docs", first, code=1).stderr
    assert "no version '0'; there is" in box("switch", "docs", "0", code=1).stderr

    box("switch", "docs", second)
    assert "take `store` out" in box("move", "docs", "--to", "embedded").stdout
    box.write("It opens at ten.")
    assert box.found("--tenant", "x") == ["It opens at ten."]
    assert box.lock["docs"].endswith(second)


def test_what_arrives_in_another_model_store_is_what_was_sent(box, postgres_url, tmp_path):
    """The box that fetches has neither the documents' index nor their vectors."""
    box.write("It opens at nine.", store=postgres_url, name="far")
    box("ingest", "docs")
    (tmp_path / "bentoml").rename(tmp_path / "elsewhere")
    box("move", "docs", "--to", "embedded")
    box.write("It opens at nine.", name="far")

    [version] = box.versions()
    assert version["current"]
    assert set(box.found()) == {"It opens at nine.", "Secret plans of the shop."}


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none", "http://127.0.0.1:1"])
def test_a_server_that_is_not_there_is_said_in_one_line(box, url):
    box.write("It opens at nine.", store=url)
    for arguments in (("search", "docs", "shop"), ("move", "docs", "--to", "embedded")):
        told = box(*arguments, code=1).stderr.strip()
        assert "see that it runs" in told
        assert "Traceback" not in told


def test_the_command_itself_ends_with_1_and_one_line(box, tmp_path):
    box.write("It opens at nine.", store="http://127.0.0.1:1")
    command = [sys.executable, "-m", "services.cli", "rag", "versions", "docs", "--bundle", str(tmp_path / "bundle.yaml")]
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "bentoml"), "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert "see that it runs" in done.stderr
    assert "Traceback" not in done.stderr


def test_passwords_come_from_the_environment(box, postgres_url):
    assert "postgres:@" in postgres_url
    url = postgres_url.replace("postgres:@", "postgres:${SHOP_PASSWORD}@")
    box.write("It opens at nine.", store=url)
    assert "needs the environment variable SHOP_PASSWORD" in box("versions", "docs", code=1).stderr
    box.variables = {"SHOP_PASSWORD": "a/b@c:d"}
    box("versions", "docs")

    box.write("It opens at nine.", store=url.replace("${SHOP_PASSWORD}", "secret"))
    assert "would be packed with it" in box("versions", "docs", code=1).stderr
    box.write("It opens at nine.")
    assert "would be packed" in box("move", "docs", "--to", url.replace("${SHOP_PASSWORD}", "secret"), code=1).stderr
    assert "begins with" in box("move", "docs", "--to", "mysql://x", code=1).stderr
