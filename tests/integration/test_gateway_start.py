"""A box that lacks something says so in one line and ends; a defect keeps its stack."""

import json
import os  # noqa: TID251  an environment of its own
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import asyncio
from contextlib import asynccontextmanager
from accounts.audit import AuditFailed
from services import gateway
from services.bundle import BundleError
from services.wiring import MissingVariable

@asynccontextmanager
async def compose():
    gateway.configure_logs()
    raise {error}
    yield

async def start():
    async with gateway.started():
        pass

gateway.compose = compose
asyncio.run(start())
"""

PROBES = """
import asyncio
from types import SimpleNamespace
from services import gateway

async def probe():
    box = SimpleNamespace(watch=None, slots=None)
    served = gateway.Gateway.inner
    told = [await served.__is_ready__(box)]
    box.slots = SimpleNamespace(ready=lambda: True)
    told += [await served.__is_ready__(box), await served.__is_alive__(box), await served.__metrics__(box, "ours")]
    print(told, hasattr(served, "engine"))

asyncio.run(probe())
"""
APART = """
import asyncio
from types import SimpleNamespace
from services import gateway

async def away():
    return False

box = SimpleNamespace(watch=SimpleNamespace(alive=away, ready=away), slots=SimpleNamespace(ready=lambda: True))
served = gateway.Gateway.inner
print(asyncio.run(served.__is_alive__(box)), asyncio.run(served.__is_ready__(box)))
"""
KEYED = """
import os
from services import gateway
from services.launch import Launch

gateway.engine_launch = lambda settings, lock, drain_seconds: Launch(["--drained", str(drain_seconds)], {{"A": "b"}})
gateway._end_with_child = lambda: None
print(" ".join(gateway.Engine.inner().__command__()))
print(os.environ.get("VLLM_API_KEY"))
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "bundle.lock").write_text('{"name": "ekiben", "model": "m:1", "adapters": {}, "indexes": {}}')

    def run(error, code=CODE, **variables):
        environment = {**os.environ, "EKIBEN_BUNDLE": str(tmp_path / "bundle.yaml"), "BENTOML_HOME": str(tmp_path), **variables}
        command = [sys.executable, "-c", code.format(error=error)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("error", ["MissingVariable('no BIG_KEY')", "AuditFailed('no BIG_KEY')", "BundleError(['no BIG_KEY'])"])
def test_what_is_missing_is_told_in_one_line(start, error):
    done = start(error)
    line = json.loads(done.stdout.splitlines()[-1])

    assert (done.returncode, line["event"], line["problem"]) == (1, "the box cannot start", "no BIG_KEY")
    assert "Traceback" not in done.stderr


def test_a_defect_keeps_its_stack(start):
    done = start("KeyError('x')")

    assert done.returncode == 1
    assert "KeyError: 'x'" in done.stderr


def test_a_setting_that_cannot_be_used_ends_it_before_anything_starts(start):
    done = start("KeyError('x')", EKIBEN_REDIS_URL="hidden")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("the box cannot start: EKIBEN_REDIS_URL: a URL that begins with redis://")
    assert "hidden" not in done.stderr


def test_readiness_and_liveness_do_not_ask_for_an_engine_that_sleeps(start):
    done = start("", PROBES, EKIBEN_ENGINE_URL="http://127.0.0.1:9", EKIBEN_ENGINE_SLEEPS="true")

    assert done.stdout.splitlines()[-1] == "[False, True, True, 'ours'] False"


@pytest.mark.parametrize(("told", "probes"), [({}, "False False"), ({"EKIBEN_ENGINE_URL": "http://127.0.0.1:9"}, "True False")])
def test_a_gateway_lives_on_without_an_engine_that_runs_elsewhere(start, told, probes):
    """To start gateways anew would heal nothing, and takes their streams, keys and documents away."""
    assert start("", APART, **told).stdout.splitlines()[-1] == probes


def test_the_engine_beside_the_gateway_gets_the_key_by_its_environment(start):
    done = start("", KEYED, EKIBEN_ENGINE_KEY="a-key-of-the-engine-0123")
    command, key = done.stdout.splitlines()[-2:]

    assert key == "a-key-of-the-engine-0123"
    assert key not in command
    assert command.endswith("-m services.child " + sys.executable + " -m vllm.entrypoints.openai.api_server --drained 25")
