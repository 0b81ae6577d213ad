"""The engine that a snapshot is made of: vLLM's own API server, warmed, which listens only once it is told where.

`python -m services.dumped_engine READY_FD VLLM_ARGUMENT...` brings the engine up, asks it a few things without a network, says
so on the descriptor, and waits at its standard input. There it is dumped: no port is bound, nobody is connected, no key was read.
One line of JSON then says where it listens and which key it asks for; random state is renewed before it does.
"""

from __future__ import annotations

import asyncio
import json
import os  # noqa: TID251  descriptors
import sys
from typing import Any, TypedDict

from services.renewal import renew, trim

_SCHEMA = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 8}}, "required": ["answer"]}
_KEEP_ALIVE_SECONDS = 5


class Told(TypedDict):
    """What it is told when it continues."""

    host: str
    port: int
    key: str | None


async def serve(arguments: Any, ready: int) -> None:
    """Bring the engine up, wait to be told, then serve until a signal."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.launcher import create_server_socket, serve_http, validate_api_server_args
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    validate_api_server_args(arguments)
    async with build_async_engine_client(arguments) as engine:
        tasks = await engine.get_supported_tasks()
        app = build_app(arguments, tasks, engine.model_config)
        await init_app_state(engine, app.state, arguments, tasks)
        await warm(app)
        await engine.reset_prefix_cache()
        await engine.collective_rpc("before_dump")
        trim()
        told = _told(ready)
        renew()
        await engine.collective_rpc("after_restore")
        if told["key"]:
            app.middleware_stack = None  # it was built for the warming; the next request builds it anew
            app.add_middleware(AuthenticationMiddleware, tokens=[told["key"]])
        listening = create_server_socket((told["host"], told["port"]), reuse_port=False)
        ended = await serve_http(
            app, sock=listening, enable_ssl_refresh=False, host=told["host"], port=told["port"], log_level="warning",
            access_log=False, timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=arguments.h11_max_incomplete_event_size,
            h11_max_header_count=arguments.h11_max_header_count,
        )  # fmt: skip
    await ended
    listening.close()


async def warm(app: Any) -> None:
    """Ask each model for a few tokens, and the base model in the ways that import or build something at their first use."""
    import httpx

    question = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    shapes: list[dict[str, Any]] = [
        {"stream": True, "temperature": 0.7}, {"logprobs": True, "top_logprobs": 1},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "warm", "schema": _SCHEMA}}},
    ]  # fmt: skip
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://engine", timeout=600) as client:
        models = [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
        asked = [{"model": model, **question} for model in models] + [{"model": models[0], **question, **more} for more in shapes]
        for body in asked:
            answer = await client.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
        await client.get("/metrics")


def _told(ready: int) -> Told:
    """Say that the engine is warm, and wait; no task of the loop runs meanwhile."""
    os.write(ready, b"warm\n")
    os.close(ready)
    line = sys.stdin.buffer.readline()
    if not line:
        raise SystemExit("nobody said where to listen")
    return json.loads(line)


def main() -> None:
    """Parse vLLM's arguments and serve.

    On asyncio's own loop: that of uvloop keeps a ring of io_uring, which cannot be dumped.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    ready = int(sys.argv[1])
    os.set_inheritable(ready, False)  # noqa: FBT003  it takes no keyword
    cli_env_setup()
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[2:])
    assert arguments is not None  # noqa: S101  vLLM's annotation
    configure_logging_from_args(arguments)
    validate_parsed_serve_args(arguments)
    asyncio.run(serve(arguments, ready))


if __name__ == "__main__":
    main()
