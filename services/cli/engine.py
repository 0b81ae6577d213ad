"""`ekiben engine`: the engine alone."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from services.bundle import BundleError
from services.cli.console import fail, reported
from services.settings import ROOT, load_settings

app = typer.Typer(help="The engine alone, for a gateway that runs elsewhere.", no_args_is_help=True)


@app.command("serve")
def serve(
    *, show: Annotated[bool, typer.Option("--show", help="Print what would be started, as JSON, and start nothing.")] = False
) -> None:
    """Serve the packed model and adapters by vLLM alone, without gateway, guards or documents.

    It becomes vLLM: signals and exit status are vLLM's. It listens on EKIBEN_ENGINE_HOST (127.0.0.1) and EKIBEN_ENGINE_PORT
    (8421), and asks for EKIBEN_ENGINE_KEY as bearer token where that is set; on any other host than loopback it must be. GET
    /health answers 200 once it can be asked. At a SIGTERM it ends answers under way for EKIBEN_ENGINE_DRAIN_SECONDS (0) first.

    A gateway uses it with EKIBEN_ENGINE_URL=http://HOST:PORT and the same EKIBEN_ENGINE_KEY. Behind what starts and stops it by
    demand, the gateway also needs EKIBEN_ENGINE_SLEEPS=true.
    """
    from services.child import become
    from services.engine import UnusableEngine, server
    from services.launch import engine_launch
    from services.lock import read_lock

    settings = load_settings()
    try:
        with reported():
            launch = engine_launch(
                settings, read_lock(settings.lock), host=settings.engine_host, drain_seconds=settings.engine_drain_seconds
            )
    except (BundleError, UnusableEngine) as error:
        fail(str(error))
    command = server(launch.arguments)
    if show:
        sys.stdout.write(json.dumps({"command": command, "environment": launch.environment}, indent=2) + "\n")
        return
    # The key travels by the environment: everybody may read a command line.
    key = {"VLLM_API_KEY": settings.engine_token} if settings.engine_token else {}
    become(command, ROOT, {"PROMETHEUS_MULTIPROC_DIR": None, **launch.environment, **key})
