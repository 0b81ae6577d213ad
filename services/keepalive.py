"""Signs of life on a stream whose answer has not begun: proxies and clients close what is silent for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

COMMENT = b": waiting\n\n"
"""A comment of SSE, which clients leave out."""


@asynccontextmanager
async def kept_alive(say: Callable[[], Awaitable[None]], every_seconds: float) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """Call `say` every so many seconds, until the block is left or what is yielded is called: that lets `say` finish first."""
    saying = asyncio.Lock()

    async def tick() -> None:
        while True:
            await asyncio.sleep(every_seconds)
            async with saying:
                await say()

    task = asyncio.create_task(tick(), name="keepalive")

    async def end() -> None:
        async with saying:
            task.cancel()

    try:
        yield end
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, OSError):  # the caller has gone: who listens for that hears of it
            await task
