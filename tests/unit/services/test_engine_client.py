"""The client's commands for adapters, against a server that answers as vLLM 0.32.0 does."""

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.engine_client import EngineClient
from services.errors import EngineRefused, EngineUnavailable


class Vllm:
    def __init__(self):
        self.names: dict[str, str] = {}
        self.broken: web.Response | None = None

    def app(self):
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/load_lora_adapter", self.load)
        app.router.add_post("/v1/unload_lora_adapter", self.unload)
        return app

    async def models(self, _request):
        cards = [{"id": "tiny", "parent": None}, *({"id": name, "parent": "tiny"} for name in self.names)]
        return self.broken or web.json_response({"object": "list", "data": cards})

    async def load(self, request):
        body = await request.json()
        name = body["lora_name"]
        if name in self.names:
            return refusal(400, f"The lora adapter '{name}' has already been loaded. If you want to load it in place, say so.")
        if not Path(body["lora_path"]).is_dir():  # noqa: ASYNC240  a double
            return refusal(404, f"Loading lora {name} failed: No adapter found for {body['lora_path']}")
        self.names[name] = body["lora_path"]
        return self.broken or web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request):
        name = (await request.json())["lora_name"]
        if self.names.pop(name, None) is None:
            return refusal(404, f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


def refusal(status, message):
    return web.json_response({"error": {"message": message, "type": "x", "param": None, "code": status}}, status=status)


@pytest.fixture
def vllm():
    return Vllm()


@pytest.fixture
async def client(vllm):
    async with TestServer(vllm.app()) as server, EngineClient(str(server.make_url("")).rstrip("/")) as client:
        yield client


async def test_loading_and_unloading(client, vllm, tmp_path):
    assert await client.adapters() == frozenset()  # the base is none
    await client.load_adapter("a@1", tmp_path)
    assert vllm.names == {"a@1": str(tmp_path)}
    assert await client.adapters() == {"a@1"}
    await client.unload_adapter("a@1")
    assert await client.adapters() == frozenset()


async def test_what_is_done_already_is_no_error(client, vllm, tmp_path):
    await client.load_adapter("a@1", tmp_path)
    await client.load_adapter("a@1", tmp_path)
    await client.unload_adapter("a@1")
    await client.unload_adapter("a@1")

    assert vllm.names == {}


async def test_what_the_engine_refuses_is_told(client, tmp_path):
    with pytest.raises(EngineRefused, match="No adapter found") as caught:
        await client.load_adapter("a@1", tmp_path / "gone")
    assert caught.value.status == 404


async def test_an_engine_that_fails(client, vllm, tmp_path):
    vllm.broken = refusal(500, "boom")
    with pytest.raises(EngineRefused, match="boom"):  # vLLM's answer to every adapter that it cannot load
        await client.load_adapter("a@1", tmp_path)
    vllm.broken = web.Response(text="<html>")
    with pytest.raises(EngineUnavailable):
        await client.adapters()


async def test_an_engine_that_fails_in_json(client, vllm):
    vllm.broken = refusal(500, "boom")
    with pytest.raises(EngineUnavailable):
        await client.adapters()


async def test_no_engine(tmp_path):
    async with EngineClient("http://127.0.0.1:9") as client:
        with pytest.raises(EngineUnavailable):
            await client.adapters()
        with pytest.raises(EngineUnavailable):
            await client.load_adapter("a@1", tmp_path)


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_what_stands_before_an_engine_that_is_away_refuses_no_adapter(client, vllm, tmp_path, status):
    vllm.broken = refusal(status, "The engine could not be started.")
    with pytest.raises(EngineUnavailable):
        await client.load_adapter("a@1", tmp_path)
