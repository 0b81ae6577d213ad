"""The container: read-only, not root, limited, and what the box does in it when it is asked, checked and stopped."""

import json
import os  # noqa: TID251  the tests of a served box, in a process of their own
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.containers.tools import ROOT, podman, run

SERVED = [
    "test_a_base_answer",
    "test_a_stream_equals_the_whole",
    "test_an_adapter_answer",
    "test_base_and_adapter_share_a_batch_and_each_gets_its_own_answer",
    "test_a_cited_answer_from_documents",
    "test_a_chinese_question_finds_chinese_documents",
    "test_personal_data_is_masked",
    "test_the_model_does_not_learn_who_is_spoken_of_and_the_caller_does",
    "test_injection_is_refused",
    "test_what_the_engine_can_is_passed_through",
    "test_tools",
    "test_embeddings",
    "test_a_route_of_labels_answers_with_nothing_else",
    "test_models_health_and_metrics",
    "test_a_caller_who_leaves_frees_the_engine_within_a_second",
]
"""Of the end-to-end tests; `make test` runs them all, outside a container."""


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
    """Those that an image could break: each library, model and data file of the box is used by one."""
    chosen = [f"tests/e2e/test_served.py::{name}" for name in SERVED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen], cwd=ROOT,
        env={**os.environ, "EKIBEN_TEST_URL": box.url, "EKIBEN_TEST_KEY": box.key},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip

    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{box.log[-3000:]}"
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_its_log_holds_no_trace_of_a_failure(box):
    assert "Traceback" not in box.log


def test_stopped_it_ends_cleanly_and_its_streams_whole(box):
    """Last, because it ends the box."""
    messages, wanted = [{"role": "user", "content": "Tell a story."}], 120
    body = {
        "model": "raw", "messages": messages, "max_tokens": wanted, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    with httpx.Client(base_url=box.url, timeout=120, headers=box.headers) as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            stopping = threading.Thread(target=podman, args=("stop", "--time", "60", box.id))
            stopping.start()
            rest = [line for line in lines if line]
        stopping.join(90)

    chunks = [json.loads(line.removeprefix("data: ")) for line in [first, *rest[:-1]] if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    assert not [chunk for chunk in chunks if "error" in chunk]
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c.get("finish_reason")] == ["length"]
    assert chunks[-1]["usage"]["completion_tokens"] == wanted
    assert podman("inspect", "--format", "{{.State.ExitCode}}", box.id).strip() == "0"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{box.url}/livez", timeout=5)
