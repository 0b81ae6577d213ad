"""The audit trail of the wired gateway: a line a request, however it ends, and none lost when the process is killed."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from accounts.audit import TextKey
from accounts.chain import derived
from accounts.verify import verify
from services.auth import Auth
from services.preparing import Preparation
from services.settings import Settings
from tests.serving import ATTACK, audit_lines, engines, serving, until, written

ROOT = Path(__file__).resolve().parents[2]
ROUTES = """
audit: {enabled: true, texts: TEXTS}
tenants: {poor: {limits: {requests_per_minute: 1}}}
routes:
  chat: {prompt: plain, policy: safe, price: {completion: 100}}
"""
KEY = "0123456789abcdef"


@pytest.fixture
async def engine():
    async with engines() as [engine]:
        yield engine


def folder_of(tmp_path, texts="none"):
    return written(tmp_path, ROUTES.replace("TEXTS", texts))


async def test_an_error_of_the_system_has_its_line(tmp_path, engine, monkeypatch):
    async def full(*_):
        raise OSError(28, "No space left on device")

    async with serving(folder_of(tmp_path), engine.url) as box:
        monkeypatch.setattr(Preparation, "checked", full)
        routed = await box.post()
        monkeypatch.setattr(Auth, "caller", full)
        unknown = await box.post()
        await until(lambda: len(box.lines()) == 2)

        assert [answer.status_code for answer in (routed, unknown)] == [500, 500]
        assert {answer.json()["error"]["type"] for answer in (routed, unknown)} == {"server_error"}
        assert [line["outcome"] for line in box.lines()] == ["error", "error"]


async def test_a_line_for_whatever_becomes_of_a_request(tmp_path, engine):
    async with serving(folder_of(tmp_path), engine.url) as box:
        key = await box.key(tenant="acme")
        answers = [
            await box.post("mail jane@example.com", key=key),
            await box.post(stream=True),
            await box.post(ATTACK),
            await box.post(tenant="poor"),
            await box.post(tenant="poor"),
        ]
        engine.status = 500
        answers += [await box.post(), await box.post(stream=True)]
        engine.status, engine.delay = 200, 5
        task = asyncio.create_task(box.post())
        await until(lambda: engine.running)
        task.cancel()
        await until(lambda: len(box.lines()) == 8)

        lines = {line["id"]: line for line in box.lines()}
        assert [answer.status_code for answer in answers] == [200, 200, 400, 200, 429, 503, 503]
        ended = [lines[answer.headers["x-request-id"]] for answer in answers]
        assert [line["outcome"] for line in ended] == ["ok", "ok", "refused", "ok", "refused", "error", "error"]
        assert {line["outcome"] for line in lines.values()} == {"ok", "refused", "error", "cancelled"}
        first = ended[0]
        assert (first["tenant"], first["key"], first["micros"], first["prompt_tokens"]) == ("acme", key[3:19], 300, 7)
        assert first["versions"]["model"] == "tiny:1"
        assert first["versions"]["policy"].startswith("safe@")
        assert [verdict["action"] for verdict in first["verdicts"]] == ["mask"]
        assert [verdict["action"] for verdict in ended[2]["verdicts"]] == ["block"]
        assert "jane" not in json.dumps(list(lines.values()))
        assert box.metric("llm_degraded", store="audit") == 0
    assert verify(box.settings.audit("box"), None).problems == []


async def test_texts_are_kept_as_the_guards_let_them_through(tmp_path, engine):
    engine.pieces = ["Write to", " bob@example.com", " now"]
    async with serving(folder_of(tmp_path, "masked"), engine.url) as box:
        for stream in (False, True):
            await box.post("mail jane@example.com", stream=stream)
        lines = box.lines()

    for line in lines:
        assert line["more"]["question"].startswith("mail ")
        assert line["more"]["answer"].startswith("Write to")
        assert "example.com" not in json.dumps(line)


async def test_texts_are_encrypted(tmp_path, engine):
    async with serving(folder_of(tmp_path, "encrypted"), engine.url, audit_text_key=KEY, audit_key=KEY) as box:
        await box.post("What is it?")
        [line] = box.lines()

    assert "What is it" not in json.dumps(line)
    texts = TextKey(derived(KEY, "texts")).decrypt(line["sealed"], line["id"])
    assert texts == {"question": "What is it?", "answer": "One two three"}
    assert verify(box.settings.audit("box"), derived(KEY, "chain")).problems == []


async def test_what_no_route_answered_has_a_line_too(tmp_path, engine):
    """Who was not let in, what is no request, routes that are not there or not for this key; vectors, documents."""
    folder = folder_of(tmp_path)
    bundle = folder / "bundle.yaml"
    bundle.write_text(bundle.read_text().replace("anonymous: true", "anonymous: false"))
    async with serving(folder, engine.url) as box:
        key = await box.key(tenant="acme", routes=frozenset({"other", "e5"}))
        sent = {"authorization": f"Bearer {key}"}
        answers = [
            await box.http.post(f"{box.url}/v1/chat/completions", json={}),  # nobody
            await box.post(key="ek_" + "0" * 40),  # wrong
            await box.http.post(f"{box.url}/v1/chat/completions", content=b"{", headers=sent),
            await box.post(model="nothing", key=key),
            await box.post(model="chat", key=key),
            await box.http.post(f"{box.url}/v1/rag/search", json={"model": "none", "query": "x"}, headers=sent),
            await box.http.post(f"{box.url}/v1/embeddings", json={"model": "e5", "input": ["abc", "de"]}, headers=sent),
            await box.http.delete(f"{box.url}/v1/files/file-1", headers=sent),
            await box.http.get(f"{box.url}/v1/models", headers=sent),
        ]
        lines = {line["id"]: line for line in box.lines()}
        told = [
            (answer.status_code, line["action"], line["outcome"], line.get("tenant", ""), line["more"]["status"])
            for answer in answers[:-1]
            for line in [lines.pop(answer.headers["x-request-id"])]
        ]

    assert told == [
        (401, "chat", "refused", "", 401),
        (401, "chat", "refused", "", 401),
        (400, "chat", "refused", "acme", 400),
        (404, "chat", "refused", "acme", 404),
        (403, "chat", "refused", "acme", 403),
        (404, "search", "refused", "acme", 404),
        (200, "embedding", "ok", "acme", 200),
        (403, "DELETE /v1/files/{file}", "refused", "acme", 403),
    ]
    assert lines == {}  # a list of models is nothing to keep
    assert verify(box.settings.audit("box"), None).problems == []


@pytest.mark.parametrize("text", ["\ud800", "\u0000", "é" * 5000])
async def test_any_text_can_be_written(tmp_path, engine, text):
    async with serving(folder_of(tmp_path, "masked"), engine.url) as box:
        engine.pieces = [text]
        sent = json.dumps({"model": "chat", "messages": [{"role": "user", "content": text}]})
        answer = await box.http.post(f"{box.url}/v1/chat/completions", content=sent)

        assert answer.status_code in {200, 400}
        assert [line["outcome"] for line in box.lines()] == ["ok" if answer.status_code == 200 else "refused"]


async def test_a_trail_that_cannot_be_written_lets_nothing_in(tmp_path, engine):
    async with serving(folder_of(tmp_path), engine.url) as box:
        assert (await box.post()).status_code == 200
        trail = box.settings.audit("box")
        shutil.rmtree(trail)
        trail.write_text("in the way")
        answers = [await box.post(), await box.post(stream=True)]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "audit_unavailable")
        assert box.metric("llm_degraded", store="audit") == 1
        assert len(engine.asked) == 1
        trail.unlink()
        trail.mkdir()
        await asyncio.sleep(1.1)
        assert (await box.post()).status_code == 200
        assert box.metric("llm_degraded", store="audit") == 0
        assert [line["outcome"] for line in box.lines()] == ["error", "error", "ok"]  # what waited is written too


@pytest.mark.parametrize("stream", [False, True])
async def test_a_process_killed_at_the_answers_last_byte_has_written_its_line(tmp_path, engine, stream):
    folder = folder_of(tmp_path)
    settings = Settings(state_dir=folder / "state")
    heard = []
    for _ in range(3):
        process, url = await asyncio.to_thread(served_apart, folder, engine.url)
        try:
            async with httpx.AsyncClient(timeout=30) as http:
                body = {"model": "chat", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
                async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                    text = b""
                    async for piece in answer.aiter_raw():
                        text += piece
                        if text.endswith(b"data: [DONE]\n\n" if stream else b"}"):
                            process.send_signal(signal.SIGKILL)
                            heard.append(answer.headers["x-request-id"])
                            break
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)

    lines = audit_lines(settings)
    assert [(line["id"], line["outcome"]) for line in lines] == [(one, "ok") for one in heard]
    assert verify(settings.audit("box"), None).problems == []


def served_apart(folder, engine_url):
    """A gateway in a process of its own, once it answers."""
    from services.engine_process import free_port

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving", str(folder), engine_url, str(port)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    until_then = time.monotonic() + 60
    while time.monotonic() < until_then and process.poll() is None:
        try:
            httpx.get(f"{url}/v1/models")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return process, url
    process.kill()
    process.wait()
    raise RuntimeError("the gateway does not start")
