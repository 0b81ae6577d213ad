"""The demo box, served by BentoML with real vLLM, once for all tests.

With EKIBEN_TEST_URL (and EKIBEN_TEST_KEY, an API key) the tests go to a box that is served already, and those that look into its
processes or its log are skipped.
"""

import os  # noqa: TID251  a server of one's own beside whatever runs here
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 420
ADMIN_TOKEN = "a-token-of-the-tests-own"
ELSEWHERE = os.environ.get("EKIBEN_TEST_URL")
KEY = os.environ.get("EKIBEN_TEST_KEY", "none")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Elsewhere:
    """A box that somebody else serves."""

    url, key, headers = (ELSEWHERE or "").rstrip("/"), KEY, {"authorization": f"Bearer {KEY}"}
    engine_url = url  # the gateway's metrics have the engine's


class Box:
    """A served box: its addresses, its log, and its process."""

    key, headers = "none", {}

    def __init__(self, target, cwd, home, log, environment=None):
        self.port, self.engine_port = free_port(), free_port()
        self.url, self.engine_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.engine_port}"
        self.log = log
        settings = {
            "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "EKIBEN_ENGINE_PORT": str(self.engine_port),
            "EKIBEN_STATE_DIR": str(home / "state"), "EKIBEN_CACHE_DIR": str(home / "cache"), "EKIBEN_ADMIN_TOKEN": ADMIN_TOKEN,
        }  # fmt: skip
        command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(self.port)]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=cwd, env={**os.environ, **settings, **(environment or {})}, stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/readyz", timeout=8).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(1)
        self.stop()
        pytest.fail(f"the box was not ready in {START_SECONDS} s; its log ends:\n{self.log.read_text()[-6000:]}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run_ekiben(*arguments, **environment):
    """Run the `ekiben` command in the project; its output, or a failing test."""
    command = [sys.executable, "-m", "services.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def store():
    """The user's own BentoML folder, where `ekiben pack` puts what the bundle names."""
    return Path(os.environ.get("BENTOML_HOME", Path.home() / "bentoml"))


@pytest.fixture(scope="session")
def home(store, tmp_path_factory):
    """A BentoML folder of the tests' own, over the same models: a second server would delete the first one's metrics."""
    run_ekiben("pack")
    folder = tmp_path_factory.mktemp("bentoml")
    (folder / "models").symlink_to(store / "models")
    return folder


@pytest.fixture(scope="session")
def box(request):
    if ELSEWHERE:
        yield Elsewhere()
        return
    home, log = request.getfixturevalue("home"), request.getfixturevalue("tmp_path_factory").mktemp("log")
    served = Box("services.gateway:Gateway", ROOT, home, log / "serve.log").wait_ready()
    yield served
    served.stop()


@pytest.fixture
def own_box(box):
    """The box, where its processes and its log are at hand."""
    if ELSEWHERE:
        pytest.skip("the box of EKIBEN_TEST_URL is served elsewhere")
    return box


@pytest.fixture
def http(box):
    with httpx.Client(base_url=box.url, timeout=120, headers=box.headers) as client:
        yield client


@pytest.fixture(scope="session")
def ekiben():
    """The `ekiben` command."""
    return run_ekiben


@pytest.fixture(scope="session")
def serve():
    """Serve a box of the test's own; the test stops it."""
    return Box
