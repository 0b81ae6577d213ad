"""`ekiben engine serve` out of a Bento, as in a container: what it becomes, and what it says where something is missing.

The program that it becomes is a stand-in of vLLM's name.
"""

import json
import os  # noqa: TID251  an environment of its own
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-the-engine-0123"
SERVER = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
names = ("VLLM_API_KEY", "PROMETHEUS_MULTIPROC_DIR", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
told = {"pid": os.getpid(), "cwd": os.getcwd(), "arguments": sys.argv[1:], "environment": {n: os.environ.get(n) for n in names}}
print(json.dumps(told), flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def bento(tmp_path_factory):
    """A Bento with what travels in it, and the folders of its models, which are empty."""
    folder = tmp_path_factory.mktemp("bento")
    for pattern in yaml.safe_load((ROOT / "bentofile.yaml").read_text(encoding="utf-8"))["include"]:
        for file in ROOT.glob(pattern):
            place = folder / "src" / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    lock = json.loads((ROOT / "bundle.lock").read_text(encoding="utf-8"))
    for tag in (lock["model"], *lock["adapters"].values()):
        place = folder / "models" / tag.replace(":", "/")
        place.mkdir(parents=True)
        (place / "model.yaml").touch()
    (folder / "bento.yaml").touch()
    stand_in = folder / "stand-in" / "vllm" / "entrypoints" / "openai"
    stand_in.mkdir(parents=True)
    for package in (stand_in, stand_in.parent, stand_in.parent.parent):
        (package / "__init__.py").touch()
    (stand_in / "api_server.py").write_text(SERVER)
    return folder


@pytest.fixture
def serve(bento, tmp_path):
    started = []

    def start(*arguments, **variables):
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "BENTOML_HOME": str(tmp_path), "EKIBEN_DEVICE": "cuda",
            "PYTHONPATH": str(bento / "stand-in"), "PROMETHEUS_MULTIPROC_DIR": "/nowhere", **variables,
        }  # fmt: skip
        command = [sys.executable, "-m", "services.cli", "engine", "serve", *arguments]
        process = subprocess.Popen(
            command, cwd=bento / "src", env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_becomes_the_server_with_the_bentos_own_models(serve, bento):
    process = serve(
        EKIBEN_ENGINE_HOST="0.0.0.0", EKIBEN_ENGINE_KEY=KEY, EKIBEN_ENGINE_PORT="8999", EKIBEN_ENGINE_DRAIN_SECONDS="77"
    )
    told = json.loads(process.stdout.readline())
    command = psutil.Process(process.pid).cmdline()
    process.send_signal(signal.SIGTERM)

    assert process.wait(10) == 7
    arguments = told["arguments"]
    lock = json.loads((bento / "src" / "bundle.lock").read_text())
    assert (told["pid"], told["cwd"]) == (process.pid, str(bento / "src"))
    assert arguments[arguments.index("--model") + 1] == str(bento / "models" / lock["model"].replace(":", "/"))
    assert arguments[arguments.index("--host") :][:4] == ["--host", "0.0.0.0", "--port", "8999"]
    assert arguments[-2:] == ["--shutdown-timeout", "77"]
    assert sum(str(bento / "models" / tag.replace(":", "/")) in " ".join(arguments) for tag in lock["adapters"].values()) == 2
    assert told["environment"] == {
        "VLLM_API_KEY": KEY, "PROMETHEUS_MULTIPROC_DIR": None, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"
    }  # fmt: skip
    assert KEY not in " ".join(command)


def test_what_would_be_started_is_shown_without_the_key(serve):
    out, err = serve("--show", EKIBEN_ENGINE_KEY=KEY).communicate(timeout=60)

    assert (err, KEY in out) == ("", False)
    assert json.loads(out)["command"][:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert "--shutdown-timeout" not in out


def test_answers_under_way_get_their_time_where_it_is_told(serve):
    out, _ = serve("--show", EKIBEN_ENGINE_DRAIN_SECONDS="90").communicate(timeout=60)
    command = json.loads(out)["command"]

    assert command[command.index("--shutdown-timeout") + 1] == "90"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EKIBEN_BUNDLE": "/nowhere/bundle.yaml"}, "/nowhere/bundle.lock does not exist; run `ekiben pack` first"),
        ({"EKIBEN_ENGINE_HOST": "0.0.0.0"}, "other machines could reach the engine there: set EKIBEN_ENGINE_KEY"),
        ({"PYTHONPATH": "", "PYTHONNOUSERSITE": "1", "EKIBEN_ENGINE_PORT": "x"}, "EKIBEN_ENGINE_PORT: "),
    ],
)
def test_what_is_missing_is_told_in_one_line(serve, variables, message):
    process = serve(**variables)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_a_model_that_is_nowhere_is_told_in_one_line(serve, bento):
    away = bento / "elsewhere"
    (bento / "models").rename(away)
    try:
        process = serve()
        out, err = process.communicate(timeout=60)
    finally:
        away.rename(bento / "models")

    assert (process.returncode, out, len(err.splitlines())) == (1, "", 1)
    assert "is not in the model store; run `ekiben pack`" in err
