"""`ekiben deploy` on the demo's bundle, with a model store of folders."""

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from services.bundle import load_bundle
from services.cli import app
from services.lock import Lock, read_lock
from services.settings import ROOT
from tests.deploying import CLOUD, SMALL, merged

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
TARGETS = ("knative", "keda", "kserve", "plain", "compose", "bentocloud")


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """The demo packed: its lock, and a folder for each tag; weights of 1 MB each."""
    lock = Lock(
        name="ekiben", model="small:1", adapters={"banking-intents": "ekiben-adapter-banking-intents:1"}, names="ekiben-names:1"
    )
    (tmp_path / "bundle.lock").write_text(lock.model_dump_json(), encoding="utf-8")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"\0" * 2**20)
    monkeypatch.setattr("services.deploying.stored_path", lambda tag: folder)
    monkeypatch.setattr("services.bento.version_here", lambda: "0123456789abcdef")
    monkeypatch.setattr("services.cli.deploy.read_lock", lambda path: read_lock(tmp_path / "bundle.lock"), raising=False)
    monkeypatch.setattr("services.lock.read_lock", lambda path: Lock.model_validate_json((tmp_path / "bundle.lock").read_bytes()))
    return tmp_path


def file(folder, **more):
    path = folder / "env.yaml"
    path.write_text(json.dumps(merged(SMALL, more)), encoding="utf-8")
    return str(path)


def run(*arguments):
    return CliRunner().invoke(app, ["deploy", *arguments])


@pytest.mark.parametrize("target", TARGETS)
def test_the_demo_is_rendered(packed, target):
    done = run("render", "--target", target, "--env", file(packed), "--output", str(packed / "out"))

    assert done.exit_code == 0, done.output
    files = sorted((packed / "out").iterdir())
    assert f"wrote {len(files)} file" in done.stdout
    assert ("keys create" in done.stderr) is (target != "bentocloud")
    assert all(list(yaml.safe_load_all(one.read_text(encoding="utf-8"))) for one in files)


def test_it_is_printed_for_kubectl(packed):
    done = run("render", "--target", "plain", "--env", file(packed))
    kinds = {one["kind"] for one in yaml.safe_load_all(done.stdout)}

    assert {"Deployment", "Service", "Role", "NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget"} <= kinds


def test_json_has_files_and_notes(packed):
    done = run("render", "--target", "knative", "--env", file(packed), "--json")
    told = json.loads(done.stdout)

    assert (told["target"], sorted(told["files"])) == ("knative", ["engine.yaml", "gateway.yaml", "network.yaml"])
    assert any("max-revision-timeout-seconds" in line for line in told["advice"])


def test_a_chart_is_written(packed):
    done = run("helm", "--target", "keda", "--env", file(packed), "--output", str(packed / "chart"))

    assert done.exit_code == 0, done.output
    assert {"Chart.yaml", "values.yaml", "values.schema.json", "templates"} == {one.name for one in (packed / "chart").iterdir()}


def test_the_schema_is_that_of_the_docs():
    done = run("schema")

    assert done.stdout == (ROOT / "docs" / "environment.schema.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"engine": {"resources": {"cpu": "1", "memory": "1Gi"}}}, "engine.resources.memory: 1Gi"),
        ({"engine_key": "x"}, "engine_key: unknown key"),
        ({"secrets": {"engine_key": "hunter2-hunter2"}}, "by reference"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_written(packed, more, told):
    done = run("render", "--target", "plain", "--env", file(packed, **more), "--output", str(packed / "out"))

    assert (done.exit_code, (packed / "out").exists()) == (1, False)
    assert told in done.stderr
    assert "nothing was rendered" in done.stderr
    assert "hunter2" not in done.output


def test_an_unpacked_bundle_is_told(monkeypatch, tmp_path):
    bundle = tmp_path / "bundle.yaml"
    bundle.write_text((ROOT / "bundle.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("adapters", "prompts", "guards", "rag"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = run("render", "--target", "plain", "--env", file(tmp_path), "--bundle", str(bundle))

    assert (done.exit_code, "run `ekiben pack`" in done.stderr) == (1, True), done.output


def test_the_examples_fit(packed):
    example = ROOT / "examples" / "cluster.env.yaml"
    for target in TARGETS:
        cloud = {"bentocloud": CLOUD} if target == "bentocloud" else {}
        (packed / "example.yaml").write_text(yaml.safe_dump({**yaml.safe_load(example.read_text()), **cloud}), encoding="utf-8")
        done = run("render", "--target", target, "--env", str(packed / "example.yaml"))

        assert done.exit_code == 0, f"{target}: {done.output}"


def test_facts_are_the_bundles(packed, monkeypatch):
    from services.deploying import box_of

    content = yaml.safe_load((ROOT / "bundle.yaml").read_text(encoding="utf-8"))
    content["upstreams"] = {"twin": {"url": "http://twin:3100", "key": "${TWIN_KEY}"}, "far": {"url": "https://a.example.com"}}
    content["collections"]["handbook"]["store"] = "postgresql://me:${PG_PASSWORD}@pg/docs"
    content["audit"] = {"enabled": True}
    content["engine"] |= {"kv_cache_memory_bytes": 2**30}
    content["model"]["quantization"] = {"recipe": "w4a16-gptq"}
    (packed / "bundle.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for name in ("adapters", "prompts", "guards", "rag"):
        (packed / name).symlink_to(ROOT / name)
    from services.target import find_target

    bundle = load_bundle(packed / "bundle.yaml", packed=False, target=find_target("cuda")).bundle
    made = box_of(bundle, Lock.model_validate_json((packed / "bundle.lock").read_bytes()), "v")

    assert made.weights_bytes == 3 * 2**20
    assert made.variables == ("PG_PASSWORD", "TWIN_KEY")
    assert made.ports == (443, 3100, 5432)
    assert made.keeps_state == ("the audit trail",)
    assert made.cpus == {"amd64": ("avx512bw", "avx512dq", "avx512f", "avx512vl")}
    assert (made.saturation, made.cache_bytes, made.services) == (64, 2**30, ("engine", "embedder", "finder"))


def test_help_says_what_it_does():
    done = run("render", "--help")

    assert "nothing is written" in " ".join(done.stdout.split())


@pytest.mark.parametrize("target", ["plain", "compose"])
def test_the_activator_takes_its_command_line(packed, target):
    """Parsed by the command itself: what is rendered are its own options."""
    documents = list(yaml.safe_load_all(run("render", "--target", target, "--env", file(packed)).stdout))
    if target == "compose":
        words = next(one for one in documents if "services" in one)["services"]["engine"]["command"]
    else:
        deployment = next(one for one in documents if one["kind"] == "Deployment" and "activator" in one["metadata"]["name"])
        words = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    command = typer.main.get_command(app).commands["activate"]
    told = command.make_context("activate", words[4:]).params

    assert words[:4] == ["python", "-m", "services.cli", "activate"]
    assert (told["idle_seconds"], told["hold_seconds"], told["drain_seconds"]) == (600, 180, 600)
    assert told["deployment" if target == "plain" else "command"]


@pytest.fixture
def seen(monkeypatch):
    """A place of the project that everybody may read, wherever the tests run."""
    monkeypatch.setattr("deploy.sight.unseen", lambda paths: [])


def test_units_are_written_for_systemd(tmp_path, seen):
    done = run("systemd", "--by", "socket", "--output", str(tmp_path), "--idle-seconds", "60")

    assert (done.exit_code, sorted(one.name for one in tmp_path.iterdir())) == (
        0, ["ekiben-box.service", "ekiben.service", "ekiben.socket"],
    )  # fmt: skip
    assert "--exit-idle-time=60s" in (tmp_path / "ekiben.service").read_text(encoding="utf-8")
    box = (tmp_path / "ekiben-box.service").read_text(encoding="utf-8")
    assert "services.gateway:Gateway" in box
    assert "BENTOML_HOME=/var/lib/ekiben/bentoml" in box


@pytest.mark.parametrize(
    ("device", "option", "sees"),
    [("cuda", [], True), ("cpu", [], False), ("cpu", ["--gpu"], True), ("cuda", ["--no-gpu"], False)],
)
def test_units_for_a_gpu_let_the_box_see_it(seen, monkeypatch, device, option, sees):
    monkeypatch.setenv("EKIBEN_DEVICE", device)
    done = run("systemd", *option)

    assert (done.exit_code, "PrivateDevices=yes" not in done.stdout) == (0, sees)


def test_one_unit_is_one_file_with_what_comes_next(tmp_path, seen):
    secrets = tmp_path / "secrets"
    secrets.touch()
    done = run("systemd", "--name", "llm", "--environment-file", str(secrets), "--output", str(tmp_path / "units"))
    again = run("systemd", "--name", "llm", "--output", str(tmp_path / "units"))

    assert (done.exit_code, again.exit_code) == (0, 0), done.output
    assert "wrote 1 file to" in done.stdout
    assert "/var/lib/llm/bentoml" in done.stderr
    assert "enable --now llm.service" in done.stderr


def test_a_unit_that_could_not_read_what_it_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("services.cli.deploy.ROOT", Path("/tmp/project"))
    done = run("systemd", "--output", str(tmp_path / "units"))

    assert (done.exit_code, (tmp_path / "units").exists()) == (1, False)
    assert "/tmp/project is in a folder for temporary files" in done.stderr


def test_a_file_of_secrets_that_is_not_there_is_told(seen):
    done = run("systemd", "--environment-file", "/etc/none/of/it")

    assert (done.exit_code, "--environment-file: /etc/none/of/it cannot be read" in done.stderr) == (1, True)


def test_what_another_made_is_kept_unless_forced(packed):
    (packed / "out").mkdir()
    (packed / "out" / "gateway.yaml").write_text("mine: 1\n", encoding="utf-8")
    (packed / "out" / "old.yaml").write_bytes(b"\xff")
    arguments = ("render", "--target", "plain", "--env", file(packed), "--output", str(packed / "out"))
    refused = run(*arguments)

    assert refused.exit_code == 1
    assert "gateway.yaml" in refused.stderr
    assert "--force" in refused.stderr
    assert (packed / "out" / "gateway.yaml").read_text(encoding="utf-8") == "mine: 1\n"
    assert run(*arguments, "--force").exit_code == 0


def test_units_that_cannot_be_are_told(seen):
    done = run("systemd", "--listen", "127.0.0.1:3001")

    assert (done.exit_code, "cannot have the address" in done.stderr) == (1, True)
