"""The demo's engine as real vLLM, dumped and restored by a real criu."""

import contextlib
import json
import os  # noqa: TID251  processes of one's own
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.criu_here import criu_here
from tests.e2e.conftest import ROOT, free_port, run_ekiben

CRIU, REASON = criu_here()
pytestmark = pytest.mark.skipif(CRIU is None, reason=f"no working criu: {REASON}")
KEY = "a-key-that-is-read-after-the-restore"
PLANTED = "planted-where-a-token-would-be"
MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The environment of every command: a cache folder of the tests' own, and secrets that no image may hold."""
    run_ekiben("pack")
    cache = tmp_path_factory.mktemp("cache")
    return {
        "EKIBEN_CRIU": str(CRIU.program), "EKIBEN_CACHE_DIR": str(cache), "EKIBEN_ENGINE_KEY": KEY, "EKIBEN_ADMIN_TOKEN": PLANTED,
        "SOME_SERVICE_TOKEN": PLANTED,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(settings):
    """A snapshot, and its folder."""
    said = json.loads(run_ekiben("snapshot", "create", "--json", **settings))
    return Path(settings["EKIBEN_CACHE_DIR"]) / "snapshots" / said["name"], said


@contextlib.contextmanager
def restoring(settings, *options, until=None):
    """`ekiben snapshot restore` in the foreground, with a client of it once it answers; `until` waits for words of its log."""
    port = free_port()
    words = [sys.executable, "-m", "services.cli", "snapshot", "restore", *options]
    environment = {**os.environ, **settings, "EKIBEN_ENGINE_PORT": str(port)}
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            if until is not None:
                yield process, next((line for line in process.stdout if until in line), "")
                return
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
                deadline = time.monotonic() + 120
                while process.poll() is None and time.monotonic() < deadline:
                    with contextlib.suppress(httpx.TransportError):
                        client.get("/health").raise_for_status()
                        break
                    time.sleep(0.05)
                yield process, client
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(60)


def ask(client, model=MODEL, temperature=0.0, key=KEY):
    body = {"model": model, "messages": [{"role": "user", "content": "Tell me of a river."}], "max_tokens": 24}
    return client.post(
        "/v1/chat/completions", json={**body, "temperature": temperature}, headers={"authorization": f"Bearer {key}"}
    )


def text(answer):
    answer.raise_for_status()
    return answer.json()["choices"][0]["message"]["content"]


def test_two_restores_answer_alike_and_draw_differently(settings, made):
    greedy, drawn, ids = [], [], []
    for _ in range(2):
        with restoring(settings, "--or-fail") as (_, client):
            answer = ask(client)
            ids.append(answer.json()["id"])
            greedy.append(text(answer))
            drawn.append(text(ask(client, temperature=1.0)))

    assert greedy[0] == greedy[1] != ""
    assert drawn[0] != drawn[1]
    assert ids[0] != ids[1]


def test_it_asks_for_the_key_of_its_restore_and_has_its_adapters(settings, made):
    with restoring(settings, "--or-fail") as (_, client):
        assert ask(client, key="another-key-altogether").status_code == 401
        names = [card["id"] for card in client.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).json()["data"]]
        adapter = next(name for name in names if name.startswith("travel-intents@"))
        answers = {model: text(ask(client, model)) for model in (MODEL, adapter)}

    assert answers[MODEL] != answers[adapter]


def test_no_secret_is_in_the_image(made):
    folder, said = made
    secrets = re.compile(b"|".join(re.escape(one.encode()) for one in (KEY, PLANTED)))
    held = [path.name for path in folder.rglob("*") if path.is_file() and secrets.search(path.read_bytes())]

    assert said["bytes"] > 2**28
    assert held == []


def test_sigterm_ends_all_of_it(settings, made):
    with restoring(settings, "--or-fail") as (process, client):
        text(ask(client))
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    assert len(tree) >= 3
    assert not [one for one in tree if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_verify_tells_a_byte_that_was_altered(settings, made, tmp_path):
    folder, _ = made
    assert json.loads(run_ekiben("snapshot", "verify", "--json", **settings))["problems"] == []
    copied = folder.with_name("altered")
    shutil.copytree(folder, copied)
    pages = next((copied / "images").glob("pages-1.img"))
    with pages.open("r+b") as file:
        file.seek(4096)
        byte = file.read(1)
        file.seek(4096)
        file.write(bytes([byte[0] ^ 1]))
    try:
        words = [sys.executable, "-m", "services.cli", "snapshot", "verify", "altered"]
        done = subprocess.run(words, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(copied)

    assert done.returncode == 1
    assert "pages-1.img was altered" in done.stderr


def test_another_kernel_means_a_cold_start_and_a_reason(settings, made):
    folder, _ = made
    manifest = folder / "manifest.json"
    before = manifest.read_text()
    changed = json.loads(before)
    changed["facts"]["kernel"] = "1.0-another"
    manifest.write_text(json.dumps(changed))
    try:
        with restoring(settings, until="starts cold") as (process, line):
            said = json.loads(line)
            deadline = time.monotonic() + 60
            while (
                "vllm.entrypoints.openai.api_server" not in psutil.Process(process.pid).cmdline() and time.monotonic() < deadline
            ):
                time.sleep(0.05)
            started = psutil.Process(process.pid).cmdline()
    finally:
        manifest.write_text(before)

    assert "kernel was 1.0-another, is " in said["reason"]
    assert "vllm.entrypoints.openai.api_server" in started
