"""What the docs say is so: excerpts of bundle.yaml pass `ekiben check`, tables name what there is, links lead somewhere."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from accounts.audit import AuditLog, Entry
from deploy.environment import Environment
from deploy.fitting import check
from guards.policy import load_policy
from services import errors
from services.cli import app
from services.settings import Settings
from services.telemetry import Telemetry
from tests.deploying import box

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
GATEWAY = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(ya?ml[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(kind, text, id=f"{page.name}-{page.read_text(encoding='utf-8')[: found.start()].count(chr(10)) + 1}")
    for page in PAGES
    for found in FENCE.finditer(page.read_text(encoding="utf-8"))
    for kind, text in [found.groups()]
]
TICKETS = re.search(
    r"```python\n(# tickets\.py\n.*?)```", (ROOT / "docs" / "documents.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.fixture
def root(tmp_path):
    """A folder in which whatever an excerpt names is there."""
    for name in ("prompts", "guards", "adapters", "rag"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs" / "handbook").mkdir(parents=True)
    for name in ("docs/handbook/a.md", "docs/fees.csv"):
        (tmp_path / name).write_text("a\n")
    assert TICKETS
    (tmp_path / "tickets.py").write_text(TICKETS[1])
    (tmp_path / "bentofile.yaml").write_text("include: [tickets.py]\n")
    return tmp_path


def completed(excerpt):
    """The demo's bundle with an excerpt in it; what an excerpt leaves out, since it is about something else, is filled in."""
    base = yaml.safe_load((ROOT / "bundle.yaml").read_text(encoding="utf-8"))
    base["adapters"]["support"] = base["adapters"]["banking-intents"]
    base["engine"]["max_cpu_loras"] = 8
    for section, told in excerpt.items():
        if section == "collections":
            for name, entry in told.items():
                documents = {} if {"path", "sources", "loader", "retriever"} & set(entry) else {"path": "rag/documents"}
                base["collections"][name] = {**documents, **entry}
        elif section == "routes":
            for name, entry in told.items():
                base["routes"][name] = {**base["routes"].get(name, {}), **entry}
        elif isinstance(told, dict):
            base[section] = {**base.get(section, {}), **told}
        else:
            base[section] = told
    return base


@pytest.mark.parametrize(("kind", "text"), BLOCKS)
def test_every_excerpt_passes(root, monkeypatch, kind, text):
    if kind == "yaml environment":
        assert check(box(cpus={"amd64": ()}, variables=()), Environment.model_validate(yaml.safe_load(text)), "keda") is not None
        return
    if kind == "yaml policy":
        (root / "policy.yaml").write_text(text, encoding="utf-8")

        assert load_policy("p", root / "policy.yaml").content.checks()
        return
    assert kind == "yaml", "an excerpt of bundle.yaml begins with ```yaml, a policy with ```yaml policy"
    (root / "bundle.yaml").write_text(yaml.safe_dump(completed(yaml.safe_load(text))), encoding="utf-8")
    monkeypatch.syspath_prepend(str(root))
    done = CliRunner().invoke(app, ["check", "--bundle", str(root / "bundle.yaml")])

    assert done.exit_code == 0, done.output


def test_there_are_excerpts_of_every_part():
    sections = {name for block in BLOCKS if block.values[0] == "yaml" for name in yaml.safe_load(block.values[1])}

    assert {"callers", "tenants", "upstreams", "queue", "cache", "alerts", "audit", "currency", "routes"} <= sections


def test_a_broken_excerpt_would_be_found(root):
    (root / "bundle.yaml").write_text(yaml.safe_dump(completed({"tenants": {"acme": {"limit": {}}}})), encoding="utf-8")
    done = CliRunner().invoke(app, ["check", "--bundle", str(root / "bundle.yaml")])

    assert (done.exit_code, "tenants.acme.limit: unknown key 'limit'" in done.output) == (1, True)


def test_the_example_passes_and_asks_for_its_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("TWIN_KEY", raising=False)
    example = str(ROOT / "examples" / "gateway.bundle.yaml")
    without = CliRunner().invoke(app, ["check", "--bundle", example])
    monkeypatch.setenv("TWIN_KEY", "ek_x")
    monkeypatch.setenv("EKIBEN_AUDIT_KEY", "k" * 16)
    done = CliRunner().invoke(app, ["check", "--bundle", example])

    assert (without.exit_code, done.exit_code) == (0, 0), done.output
    assert "the variable TWIN_KEY is not set here" in without.stderr
    assert done.stderr == ""


def table(title):
    """The rows of the first table under a heading of docs/gateway.md, a list of cells each."""
    part = GATEWAY.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line.startswith("| ")][1:]


def test_the_table_of_metrics_is_that_of_the_code():
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    made = {
        metric._name + ("_total" if metric._type == "counter" else ""): set(metric._labelnames)
        for metric in vars(telemetry).values()
        if hasattr(metric, "_labelnames")
    }
    told = {name: set(re.findall(r"`(\w+)`", row[2])) for row in table("Metrics") for name in re.findall(r"`(\w+)`", row[0])}

    assert told == made


def test_times_are_in_seconds_and_counts_are_totals():
    for row in table("Metrics"):
        for name in re.findall(r"`(\w+)`", row[0]):
            assert name.endswith("_seconds") == row[1].startswith("histogram"), name
            assert name.endswith("_total") == row[1].startswith("counter"), name


def test_the_table_of_errors_is_that_of_the_code():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EkibenError)]
    made = {(str(kind.status), kind.code, kind.type) for kind in kinds if kind.code}
    told = {(row[0], code, row[2].strip("`")) for row in table("Errors") for code in re.findall(r"`(\w+)`", row[1])}

    assert made <= told, made - told


def test_the_guide_has_every_setting():
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `EKIBEN_(\w+)`", guide, re.MULTILINE))

    assert told == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith(("http", "#", "mailto:"))]

    assert [target for target in links if not (page.parent / target.partition("#")[0]).exists()] == []


def test_the_readme_lists_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in readme] == []


def test_the_commands_of_the_readme_run(monkeypatch, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("## Operate it\n")[1].split("```sh\n")[1].split("```")[0]
    monkeypatch.setenv("EKIBEN_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(ROOT)
    entry = Entry(
        id="a", action="chat", tenant="acme", key="", route="assistant", versions={}, outcome="ok", verdicts=[], prompt_tokens=1,
        cached_tokens=0, completion_tokens=1, micros=1, seconds=0.1, first_token_seconds=None, more={},
    )  # fmt: skip
    with AuditLog(Settings().audit("ekiben"), None, None) as trail:
        trail.append(entry, None)
    for line in block.splitlines():
        command = shlex.split(line, comments=True)
        done = CliRunner().invoke(app, command[1:])

        assert (command[0], done.exit_code) == ("ekiben", 0), f"{line}: {done.output}"


def test_a_key_is_made_with_what_travels_in_a_bento(tmp_path):
    for pattern in yaml.safe_load((ROOT / "bentofile.yaml").read_text(encoding="utf-8"))["include"]:
        for file in ROOT.glob(pattern):
            place = tmp_path / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    command = next(
        line for line in (ROOT / "docs" / "guide.md").read_text(encoding="utf-8").splitlines() if "docker exec" in line
    )
    arguments = shlex.split(command.split(" CONTAINER python ")[1])
    environment = {"PATH": "/usr/bin", "EKIBEN_STATE_DIR": str(tmp_path / "state")}
    # An editable installation would lend what does not travel.
    apart = (
        "import runpy, sys; sys.meta_path[:] = [one for one in sys.meta_path if 'ditable' not in repr(one)]; sys.argv[1:2] = []"
    )
    program = f"{apart}; runpy.run_module('services.cli', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments[1:]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"ek_[0-9a-f]{16}_[\w-]{43}\n", done.stdout)
