"""The engine that `ekiben adapter eval` asks: the packed base model, with one adapter from its folder."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from services.bundle import LoadedBundle
from services.engine import GIB, find_device, free_memory_bytes, usable_cores, vllm_arguments, vllm_environment
from services.engine_client import EngineClient
from services.engine_process import engine_process, free_port
from services.lock import read_lock
from services.settings import load_settings
from services.store import stored_path


@asynccontextmanager
async def open_engine(
    loaded: LoadedBundle, adapter: str, folder: Path, url: str | None, lock: Path
) -> AsyncGenerator[EngineClient]:
    """Give a client of the engine under `url`, or else of a new one, which ends with the block.

    The adapter in `folder` bears its own name there and the base the model's. Raises LockError and EngineFailed.
    """
    if url is not None:
        async with EngineClient(url.rstrip("/").removesuffix("/v1")) as client:
            yield client
        return
    bundle, port, device = loaded.bundle, free_port(), find_device(load_settings())
    # A small cache is enough for short rows, and leaves the memory to whoever else works on this machine.
    engine = bundle.engine.model_copy(update={"kv_cache_memory_bytes": GIB, "enable_prefix_caching": True})
    arguments = vllm_arguments(
        bundle.model_copy(update={"engine": engine}), model=stored_path(read_lock(lock).model),
        adapters={adapter: folder}, device=device, port=port,
        free_bytes=free_memory_bytes(),
    )  # fmt: skip
    async with engine_process(arguments, vllm_environment(device, usable_cores()), port=port) as running:
        yield running.client
