"""Images by `ekiben containerize`, and what the engine for containers of this machine knows of them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from services.journal import ReleaseError
from services.shipping import Image, Options

_COMMAND = [sys.executable, "-m", "services.cli", "containerize"]
_SECONDS_TO_END = 30


class Engine:
    """The engine for containers that the options name."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._docker = options.backend == "docker"

    def missing(self) -> str | None:
        """Return that the engine is not installed; None where it is."""
        told = f"{self._options.backend} is not installed; name another by --backend, or `make container-tools` on Debian"
        return None if shutil.which(self._options.backend) else told

    def make(self, tag: str, tell: Callable[[str], None]) -> Image:
        """Make the image of a Bento; raises ReleaseError, and then there is none."""
        name = tag if self._docker else f"localhost/{tag}"
        told = json.loads(_run([*_COMMAND, tag, "--image-tag", name, *self._how(), "--json"], tell))
        return Image(told["names"][0], told["weights"])

    def dockerfile(self, tag: str) -> str:
        """Return the Dockerfile of a Bento; raises ReleaseError."""
        return _run([*_COMMAND, tag, *self._how(), "--print-dockerfile"])

    def identity(self, name: str) -> str | None:
        """Return an image's ID; None where there is none of that name, or no such engine."""
        asked = ["images", "--quiet", "--no-trunc", name]
        try:
            done = subprocess.run([self._options.backend, *asked], capture_output=True, text=True, check=False)  # noqa: S603
        except OSError:
            return None
        lines = done.stdout.split()
        return lines[0] if done.returncode == 0 and lines else None

    def source(self, name: str) -> str:
        """Return skopeo's name of an image."""
        return f"{'docker-daemon' if self._docker else 'containers-storage'}:{name}"

    def _how(self) -> list[str]:
        options = self._options
        told = {"--base-image": options.base, "--build-image": options.builder, "--wheels": options.wheels}
        given = [word for option, value in told.items() if value for word in (option, value)]
        given += [word for line in options.opt.splitlines() for word in ("--opt", line)]
        return ["--backend", options.backend, "--weights", options.weights, "--target", options.device, *given]


def _run(command: list[str], tell: Callable[[str], None] = lambda _line: None) -> str:
    """Run a command of ours, its progress told; ended with us, it ends what it began. Raises ReleaseError with its last word."""
    process = subprocess.Popen(  # noqa: S603  no shell
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[1]
    )
    said: list[str] = []

    def read() -> None:
        for line in process.stderr or ():
            if text := line.strip():
                said.append(text)
                tell(text)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        told = process.stdout.read() if process.stdout else ""
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_SECONDS_TO_END)
        finally:
            process.kill()
        raise
    reader.join()
    if code != 0:
        raise ReleaseError((said[-1] if said else f"containerize ended with {code}").removeprefix("error: "))
    return told
