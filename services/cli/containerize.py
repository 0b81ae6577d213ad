"""`ekiben containerize`: an image of the box."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deploy.container import Backend, Target, Weights
from services.cli.console import Bar, JsonOption, err, fail, load, out, reported


def image(  # noqa: PLR0913  an image has many settings
    tag: Annotated[str | None, typer.Argument(help="The Bento (default: what this folder makes).")] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--image-tag", "-t", metavar="NAME", help="A name for the image (default: the Bento's tag)."),
    ] = None,
    backend: Annotated[Backend, typer.Option("--backend", help="What builds the image.")] = "docker",
    weights: Annotated[
        Weights,
        typer.Option("--weights", help="In the image, each model a layer; or apart, in an image of their own to be mounted."),
    ] = "image",
    target: Annotated[Target, typer.Option("--target", "--device", help="What the engine will run on.")] = "cpu",
    base: Annotated[
        str | None, typer.Option("--base-image", metavar="IMAGE", help="A Debian with Python 3.11 (default: the Bento's).")
    ] = None,
    builder: Annotated[
        str | None,
        typer.Option("--build-image", metavar="IMAGE", help="Where the Python environment is made (default: the base image)."),
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option("--wheels", metavar="FOLDER", help="Build without any network, from a folder of the lock's wheels."),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--opt", metavar="KEY[=VALUE]", help="An option for the backend, such as network=host.")
    ] = None,
    print_dockerfile: Annotated[  # noqa: FBT002  typer's way
        bool, typer.Option("--print-dockerfile", help="Print the Dockerfile and build nothing.")
    ] = False,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Build an image of the Bento: system, Python environment, models, adapters and indexes, and code, each in its own layer.

    A change of code makes megabytes of new layers; the same Bento gives the same layers again. The box inside runs as uid 1034 on
    a root that may be read only, with /tmp and /home/bentoml/state writable. Where the weights are apart, their image is mounted
    at /home/bentoml/bento/models.
    """
    from services.containers import ContainerError, Request, containerize, dockerfile, revision_here

    with reported():
        wanted = tag or _here()
        revision = None if print_dockerfile else revision_here(wanted)
        request = Request(
            wanted, names or [], backend, weights, target, base, builder, wheels, options or [],
            {"org.opencontainers.image.revision": revision} if revision else {},
        )  # fmt: skip
        try:
            if print_dockerfile:
                sys.stdout.write(dockerfile(request))
                return
            with Bar() as bar:
                built = containerize(request, bar.step)
        except ContainerError as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("interrupted; no image was made")
    if as_json:
        sys.stdout.write(json.dumps(asdict(built)) + "\n")
        return
    out.print(f"built {', '.join(built.names)} in {built.seconds:.0f} s", markup=False)
    if built.weights:
        err.print(f"its weights are in {built.weights}; mount it at /home/bentoml/bento/models", markup=False)


def _here() -> str:
    from services.bento import version_here

    return f"{load(None).bundle.name}:{version_here()}"
