"""`ekiben activate`: what starts a box, or its engine, when it is asked, and stops it when it is idle."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import shutil
import socket
import sys
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from services.cli.console import fail

if TYPE_CHECKING:
    from deploy.lifecycle import Starter

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_HIGHEST_PORT = 65_535
SETTLE_SECONDS = 60.0
"""Of two activators that take turns, between the start of one and the SIGTERM of the other."""


def activate(  # noqa: PLR0913  each has a default that holds
    listen: Annotated[str, typer.Option(help="Where it listens.", metavar="HOST:PORT")] = "127.0.0.1:8420",
    upstream: Annotated[
        str, typer.Option(help="Where the box or the engine listens once it runs.", metavar="URL")
    ] = "http://127.0.0.1:8421",
    command: Annotated[
        str | None, typer.Option(help="Starts it as a child, which ends with SIGTERM; without a shell.", metavar="COMMAND")
    ] = None,
    deployment: Annotated[
        str | None, typer.Option(help="Scales this Deployment of the cluster it runs in.", metavar="NAMESPACE/NAME")
    ] = None,
    start_command: Annotated[
        str | None, typer.Option(help="Asks another to start it, such as 'systemctl start llm'.", metavar="COMMAND")
    ] = None,
    stop_command: Annotated[
        str | None, typer.Option(help="Asks another to stop it, such as 'systemctl stop llm'.", metavar="COMMAND")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="What a Deployment is scaled to from zero.")] = 1,
    ready_path: Annotated[
        str, typer.Option(help="Answers 200 once it is ready: /health of an engine, /readyz of a box.")
    ] = "/health",
    health_path: Annotated[
        list[str] | None, typer.Option(help="Answered with 200 here, asleep or awake (default: /health). May be repeated.")
    ] = None,
    quiet_path: Annotated[
        list[str] | None,
        typer.Option(help="Passed on, but wakes nobody and keeps nobody awake (default: /metrics). May be repeated."),
    ] = None,
    idle_seconds: Annotated[float, typer.Option(min=0, help="Stopped after so long without a request; 0: never.")] = 300,
    start_seconds: Annotated[float, typer.Option(min=0.1, help="A start that takes longer has failed.")] = 300,
    hold_seconds: Annotated[float, typer.Option(min=0.1, help="A request waits no longer than this for a start.")] = 300,
    stop_seconds: Annotated[
        float, typer.Option(min=0.1, help="A child that takes longer to end is killed; --stop-command is too, and has failed.")
    ] = 30,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait for a start; the next gets a 503.")] = 256,
    keepalive_seconds: Annotated[
        float, typer.Option(min=0.1, help="How often a caller who asked for a stream is sent a comment while he waits.")
    ] = 10,
    drain_seconds: Annotated[float, typer.Option(min=0, help="On SIGTERM, requests under way have so long.")] = 30,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Longest request body; it is held in memory.")] = 34 * 2**20,
    metrics_listen: Annotated[
        str | None,
        typer.Option(help="Where its metrics are served (default: /activator/metrics of --listen).", metavar="HOST:PORT"),
    ] = None,
    api_host: Annotated[str, typer.Option(envvar="KUBERNETES_SERVICE_HOST", hidden=True)] = "kubernetes.default.svc",
    api_port: Annotated[int, typer.Option(envvar="KUBERNETES_SERVICE_PORT", hidden=True)] = 443,
    api: Annotated[
        str | None, typer.Option("--kubernetes-api", help="The API server (default: the cluster it runs in).", metavar="URL")
    ] = None,
) -> None:
    """Stand before a box or its engine, start it on the first request, and stop it when it is idle.

    Requests that come while it starts are held and then answered, each sent once; beyond --queue and --hold-seconds they get a
    503 with Retry-After. Idle means that no request is under way. One of these says how it is started:

    --command 'python -m services.cli engine serve'

    --start-command 'systemctl start llm' --stop-command 'systemctl stop llm'

    --deployment NAMESPACE/NAME, with a service account that may get and patch its scale

    GET /activator/health says what it does now, /activator/metrics how often and how long. Run one activator for one
    upstream: each judges by its own requests alone.
    """
    from deploy.activator import Activator, Front
    from deploy.lifecycle import Limits
    from deploy.serving import serve
    from services.telemetry import configure_logs

    address = _address("--listen", listen)
    metrics = None if metrics_listen is None else _address("--metrics-listen", metrics_listen)
    if metrics == address:
        fail("--metrics-listen is where --listen is: leave it out, or take another port")
    front = Front(
        _url("--upstream", upstream),
        ready_path=_path("--ready-path", ready_path),
        health_paths=frozenset(_path("--health-path", path) for path in health_path or ["/health"]),
        quiet_paths=frozenset(_path("--quiet-path", path) for path in quiet_path or ["/metrics"]),
        keepalive_seconds=keepalive_seconds,
        max_body_bytes=max_body_bytes,
    )
    if address == _address("--upstream", _place(front.upstream)):
        fail("--upstream is where --listen is: the activator would ask itself")
    limits = Limits(
        idle=idle_seconds or None, start=start_seconds, hold=hold_seconds, stop=stop_seconds, queue=queue,
        settle=drain_seconds + SETTLE_SECONDS,
    )  # fmt: skip
    if command is not None and deployment is None and start_command is None and stop_command is None:
        starter = _child(command, front.upstream, stop_seconds)
    elif deployment is not None and command is None and start_command is None and stop_command is None:
        host = f"[{api_host}]" if ":" in api_host else api_host
        api_url = _url("--kubernetes-api", api or f"https://{host}:{api_port}")
        starter = _scaled(deployment, api_url, replicas, stop_seconds)
    elif start_command is not None and stop_command is not None and command is None and deployment is None:
        starter = _commands(start_command, stop_command, stop_seconds)
    else:
        fail("say in one way how it is started: --command, or --deployment, or --start-command with --stop-command")
    configure_logs()
    activator = Activator(front, starter, limits, metrics_apart=metrics is not None)
    try:
        asyncio.run(serve(activator, address, metrics, drain_seconds=drain_seconds))
    except OSError as error:
        fail(f"cannot listen: {error.strerror or error}")


def _child(command: str, upstream: str, stop_seconds: float) -> Starter:
    from deploy.starters import ChildStarter

    host, port = _address("--upstream", _place(upstream))
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2):
        fail(f"something answers at {upstream} already: end it, or leave --command out and say how it is started")
    # services.child makes it lead a process group, and end when this process does.
    return ChildStarter([sys.executable, "-m", "services.child", *_words("--command", command)], grace=stop_seconds)


def _commands(start: str, stop: str, stop_seconds: float) -> Starter:
    from deploy.starters import CommandStarter

    words = _words("--start-command", start), _words("--stop-command", stop)
    return CommandStarter(*words, stop_seconds=stop_seconds)


def _scaled(deployment: str, api: str, replicas: int, stop_seconds: float) -> Starter:
    from deploy.scaling import ScaleStarter, Workload

    namespace, _, name = deployment.partition("/")
    if not _NAME.fullmatch(namespace) or not _NAME.fullmatch(name):
        fail(f"--deployment: {deployment!r} is no NAMESPACE/NAME")
    return ScaleStarter(Workload(namespace, name), api, replicas=replicas, stop_seconds=stop_seconds)


def _words(option: str, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        fail(f"{option}: {error}")
    if not words:
        fail(f"{option} is empty")
    if shutil.which(words[0]) is None:
        fail(f"{option}: there is no program {words[0]!r} here")
    return words


def _address(option: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) <= _HIGHEST_PORT:
        fail(f"{option}: {text!r} is no HOST:PORT, such as 127.0.0.1:8420")
    return host, int(port)


def _url(option: str, text: str) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and not parts.username
    except ValueError:
        good, parts = False, urlsplit("")
    if not good or parts.path not in {"", "/"} or parts.query or parts.fragment:
        fail(f"{option}: {text!r} is no URL of a server, such as http://127.0.0.1:8421")
    return f"{parts.scheme}://{parts.netloc}"


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _path(option: str, text: str) -> str:
    if not text.startswith("/") or any(character in text for character in "?#{} "):
        fail(f"{option}: {text!r} is no path, such as /health")
    return text
