"""Programs and containers, as the tests of this folder use them."""

import os  # noqa: TID251  programs run in the environment of the tests
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
START_SECONDS = 300
BASE, BUILDER, IMAGE = "localhost/ekiben-test-base:1", "localhost/ekiben-test-build:1", "localhost/ekiben-test:1"
LIMITED = [
    "--read-only",
    "--tmpfs",
    "/tmp:rw,mode=1777",
    "--tmpfs",
    "/home/bentoml/state:rw,mode=1777",
    "--memory",
    "5g",
    "--cpus",
    "2",
]


def run(*command, check=True, timeout=600, **environment):
    """Run a program in the project; its output, or a failing test."""
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False, timeout=timeout,
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done


def podman(*arguments, **options):
    return run("podman", *arguments, **options).stdout


class Container:
    """A container that serves."""

    def __init__(self, image, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.id = podman("run", "--detach", "--publish", f"127.0.0.1:{port}:3000", *LIMITED, *options, image).strip()
        self.key = "none"

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.running:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=8).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(1)
        else:
            pytest.fail(f"the box was not ready in {START_SECONDS} s; its log ends:\n{self.log[-6000:]}")
        self.key = self.python("-m", "services.cli", "keys", "create", "--name", "tests", "--owner", "tests").strip()
        return self

    @property
    def running(self):
        return podman("inspect", "--format", "{{.State.Running}}", self.id).strip() == "true"

    @property
    def log(self):
        done = run("podman", "logs", self.id, check=False)
        return done.stdout + done.stderr

    @property
    def headers(self):
        return {"authorization": f"Bearer {self.key}"}

    def exec(self, *command, **options):
        return podman("exec", self.id, *command, **options)

    def python(self, *arguments, **options):
        return self.exec("python", *arguments, **options)

    def remove(self):
        podman("rm", "--force", "--time", "10", self.id, check=False)
