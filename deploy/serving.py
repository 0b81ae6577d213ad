"""The activator as a server, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from deploy.activator import Activator

log = structlog.get_logger("ekiben")
Address = tuple[str, int]
_LINE_BYTES = 65_536


@asynccontextmanager
async def listening(
    activator: Activator, address: Address, metrics: Address | None, *, drain_seconds: float
) -> AsyncGenerator[None]:
    """Serve an open activator while the block runs; then take no connections and let requests end for `drain_seconds`.

    Raises OSError where an address cannot be had.
    """
    async with contextlib.AsyncExitStack() as stack:
        for app, place in ((activator.app, address), (activator.metrics_app, metrics)):
            if place is None:
                continue
            runner = web.AppRunner(
                app,
                access_log=None,
                auto_decompress=False,
                handle_signals=False,
                handler_cancellation=True,  # a caller who leaves ends his request
                max_field_size=_LINE_BYTES,
                max_line_size=_LINE_BYTES,
                # aiohttp waits that long twice before it ends a handler, and for ever where it is 0.
                shutdown_timeout=max(drain_seconds / 2, 0.01),
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, *place).start()
        yield


async def serve(activator: Activator, address: Address, metrics: Address | None = None, *, drain_seconds: float = 30.0) -> None:
    """Serve until SIGTERM or SIGINT; raises OSError where an address cannot be had."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with activator, listening(activator, address, metrics, drain_seconds=drain_seconds):
        log.info(
            "activator listens", address=f"{address[0]}:{address[1]}", upstream=activator.upstream, state=activator.life.state
        )
        ends = [asyncio.create_task(told.wait()), asyncio.create_task(activator.life.driven())]
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        for task in done:
            task.result()
        log.info("activator ends", state=activator.life.state, drain_seconds=drain_seconds)
