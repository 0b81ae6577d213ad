"""`ekiben deploy measure` on an engine's stand-in: a real process that is started, asked over HTTP and ended."""

import json
import sys
from textwrap import dedent

import psutil
import pytest
from typer.testing import CliRunner

from deploy.environment import read_environment
from services import capacity
from services.cli import app
from services.engine import UnusableEngine
from services.lock import Lock
from services.settings import ROOT
from tests.deploying import SMALL, merged

ENGINE = dedent("""
    import asyncio, json, sys
    from pathlib import Path
    from aiohttp import web

    port, log = int(sys.argv[1]), Path(sys.argv[2])

    async def health(request):
        return web.Response()

    async def models(request):
        return web.json_response({"data": [{"id": "base"}, {"id": "tuned@1", "parent": "base"}]})

    async def chat(request):
        body = await request.json()
        with log.open("a") as file:
            file.write(json.dumps([body["model"], body["messages"][0]["content"]]) + "\\n")
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(0.01)
        usage = {"prompt_tokens": 5, "completion_tokens": body["max_tokens"]}
        for event in ({"choices": [{"delta": {"content": "x"}}]}, {"choices": [], "usage": usage}):
            await response.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
        await response.write(b"data: [DONE]\\n\\n")
        return response

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
    web.run_app(app, host="127.0.0.1", port=port, print=None)
""")


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """The command on the demo's bundle for four streams; what the stand-in was asked is in asked.jsonl."""
    text = (ROOT / "bundle.yaml").read_text(encoding="utf-8")
    (tmp_path / "bundle.yaml").write_text(text.replace("max_num_seqs: 64", "max_num_seqs: 4"), encoding="utf-8")
    for name in ("adapters", "prompts", "guards", "rag"):
        (tmp_path / name).symlink_to(ROOT / name)
    Lock(name="ekiben", model="small:1", adapters={"tuned": "tuned:1"}).write(tmp_path / "bundle.lock")
    (tmp_path / "engine.py").write_text(ENGINE, encoding="utf-8")
    python = [sys.executable, str(tmp_path / "engine.py")]

    def command(settings, port):
        return [sys.executable, "-m", "services.child", *python, str(port), str(tmp_path / "asked.jsonl")]

    monkeypatch.setattr(capacity, "engine_launch", lambda settings, lock: None)
    monkeypatch.setattr(capacity, "engine_command", command)
    monkeypatch.setattr(capacity, "version_here", lambda: "0123456789abcdef")
    monkeypatch.setenv("EKIBEN_DEVICE", "cpu")

    def run(*options):
        return CliRunner().invoke(app, ["deploy", "measure", "--bundle", str(tmp_path / "bundle.yaml"), *options])

    return run


def test_it_writes_what_the_environment_file_reads(measure, tmp_path):
    done = measure("--output", str(tmp_path / "measured.json"), "--slo-ttft-ms", "60000")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))
    (tmp_path / "env.yaml").write_text(json.dumps(merged(SMALL, {"engine": {"measured": "measured.json"}})), encoding="utf-8")
    told = read_environment(tmp_path / "env.yaml")

    assert [step["streams"] for step in found["steps"]] == [1, 2, 4]
    assert found["cold_start_seconds"] >= found["healthy_seconds"] > 0
    assert (told.engine.cold_start_seconds, told.engine.saturation) == (found["cold_start_seconds"], found["saturation"])
    assert (found["engine"]["model"], found["engine"]["adapters"], found["engine"]["max_num_seqs"]) == ("small:1", 1, 4)
    assert (found["bundle"], found["place"]["device"]) == ("ekiben:0123456789abcdef", "cpu")
    assert f"saturation: {found['saturation']} stream" in done.stdout
    assert "wrote" in done.stdout


def test_base_and_adapters_are_asked_each_prompt_once_and_nothing_is_left_running(measure, tmp_path):
    done = measure("--slo-ttft-ms", "60000", "--json")
    assert done.exit_code == 0, done.output
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text(encoding="utf-8").splitlines()]

    assert json.loads(done.stdout)["slo_ttft_ms"] == 60000
    assert {model for model, _ in asked} == {"smollm2-135m-instruct", "tuned@1"}
    assert len({prompt for _, prompt in asked}) == len(asked) == 1 + 4 * (1 + 2 + 4)
    assert not [child for child in psutil.Process().children(recursive=True) if str(tmp_path) in " ".join(child.cmdline())]


def test_an_objective_that_is_never_met_writes_nothing(measure, tmp_path):
    done = measure("--output", str(tmp_path / "measured.json"), "--slo-ttft-ms", "1")

    assert (done.exit_code, (tmp_path / "measured.json").exists()) == (1, False)
    assert "1 ms are wanted: raise --slo-ttft-ms" in done.stderr
    assert "4 streams" not in done.stderr


def test_what_cannot_be_written_is_told_before_the_engine_is_started(measure, tmp_path):
    done = measure("--output", str(tmp_path / "none" / "measured.json"))

    assert (done.exit_code, "there is no folder" in done.stderr) == (1, True)
    assert not (tmp_path / "asked.jsonl").exists()


def test_an_engine_that_ends_is_told_with_its_last_words(measure, tmp_path):
    (tmp_path / "engine.py").write_text("raise SystemExit('no memory for that')", encoding="utf-8")
    done = measure()

    assert (done.exit_code, "no memory for that" in done.stderr) == (1, True)


def test_a_machine_that_cannot_run_it_is_told_in_a_line(measure, monkeypatch):
    def launch(settings, lock):
        raise UnusableEngine("libnuma is missing")

    monkeypatch.setattr(capacity, "engine_launch", launch)
    done = measure()

    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, "error: libnuma is missing")


def test_an_unpacked_bundle_is_not_measured(measure, tmp_path):
    (tmp_path / "bundle.lock").unlink()
    done = measure()

    assert (done.exit_code, "run `ekiben pack`" in done.stderr) == (1, True)
