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


@pytest.fixture
def start(tmp_path):
    (tmp_path / "bundle.lock").write_text('{"name": "ekiben", "model": "m:1", "adapters": {}, "indexes": {}}')

    def run(error, **variables):
        environment = {**os.environ, "EKIBEN_BUNDLE": str(tmp_path / "bundle.yaml"), "BENTOML_HOME": str(tmp_path), **variables}
        command = [sys.executable, "-c", CODE.format(error=error)]
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
