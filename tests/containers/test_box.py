"""The container: read-only, not root, limited, and what the box does in it when it is asked, checked and stopped."""

import os  # noqa: TID251  the tests of a served box, in a process of their own
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.containers.tools import ROOT, podman, run


def test_it_runs_as_nobody_on_a_root_that_is_read_only(box):
    tried = "touch /x /app/x /home/bentoml/x /home/bentoml/bento/src/x; touch /tmp/x /home/bentoml/state/x && echo written; id -u"
    done = run("podman", "exec", box.id, "sh", "-c", tried)

    assert done.stdout.split() == ["written", "1034"]
    assert done.stderr.count("Read-only file system") == 4


def test_its_health_check_follows_readiness(box):
    assert run("podman", "healthcheck", "run", box.id, check=False).returncode == 0
    done = run("podman", "exec", box.id, "python", "-IS", "deploy/health.py", "http://127.0.0.1:3000/nowhere", check=False)
    assert done.returncode == 1


def test_orphans_are_reaped(box):
    """What a process of the box leaves behind becomes a child of the first process, which must not let it stand as a zombie."""
    box.exec("sh", "-c", "for i in 1 2 3; do (sh -c 'sleep 0.2' &) ; done")
    time.sleep(2)
    states = box.exec("sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null").splitlines()

    assert states
    assert not [state for state in states if state.rpartition(")")[2].split()[0] == "Z"]


def test_the_served_box_passes_the_end_to_end_tests(box):
    """The same tests that a box outside a container passes, but for those that look into its processes."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/e2e/test_served.py"], cwd=ROOT,
        env={**os.environ, "EKIBEN_TEST_URL": box.url, "EKIBEN_TEST_KEY": box.key},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip

    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{box.log[-3000:]}"
    assert " passed" in done.stdout


def test_its_log_holds_no_trace_of_a_failure(box):
    assert "Traceback" not in box.log


def test_stopped_it_ends_cleanly_and_leaves_no_stream_hanging(box):
    """Last, because it ends the box. The engine stops with it, so the stream ends with an error that says so, and in form."""
    messages = [{"role": "user", "content": "Tell a story."}]
    body = {"model": "raw", "messages": messages, "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.Client(base_url=box.url, timeout=120, headers=box.headers) as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            stopping = threading.Thread(target=podman, args=("stop", "--time", "60", box.id))
            stopping.start()
            rest = [line for line in lines if line]
        stopping.join(90)

    assert rest[-1] == "data: [DONE]"
    assert podman("inspect", "--format", "{{.State.ExitCode}}", box.id).strip() == "0"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{box.url}/livez", timeout=5)
