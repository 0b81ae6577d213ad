"""An engine dumped when it is warm, and continued later; both in a PID namespace that ends with its first process.

The engine waits at its standard input when it is dumped. It gets another there when it is continued, with one line that says
where to listen and which key to ask for; its output goes where ours goes. So an image holds neither address nor key.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os  # noqa: TID251  pipes, signals, the namespace's processes
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from deploy import namespace
from deploy.criu import Criu, CriuFailed
from deploy.snapshot import IMAGES, Manifest

FIRST_PROCESS = 1000
"""Number of the engine's process: above those that criu itself takes when it restores."""
GRACE_SECONDS = 30
"""What a signal to end gives the engine, before it is killed."""
_HEALTHY_SECONDS = 60.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  how to reach who listens everywhere
_LINES = 30
_LAST_WORDS_SECONDS = 1.0


class RevivalFailed(RuntimeError):
    """The engine was not brought up, dumped or continued; the message says why."""


@dataclass(frozen=True)
class Program:
    """How the engine is started: `ready` is what it takes as its first argument, the descriptor to be told on."""

    words: list[str]
    arguments: list[str]
    environment: dict[str, str]
    folder: Path


@dataclass(frozen=True)
class Handover:
    """What an engine is told when it continues."""

    host: str
    port: int
    key: str | None

    def line(self) -> bytes:
        """As one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True)
class Dumped:
    """An engine in an image."""

    process: int
    descriptors: tuple[str, str, str]
    start_seconds: float


def dump(criu: Criu, program: Program, images: Path, *, limit: float) -> Dumped:
    """Start the engine, wait until it is warm, and dump it; it has `limit` seconds. Raises RevivalFailed."""

    def first(report: int) -> int:
        _end_at_once()
        try:
            dumped = _brought_up(criu, program, images, limit)
        except (CriuFailed, RevivalFailed, OSError) as error:
            return _say(report, {"failure": str(error)})
        return _say(report, asdict(dumped))

    child, said = _start(first)
    namespace.wait(child)
    if (reason := said.get("failure", None if said else "it was killed")) is not None:
        raise RevivalFailed(str(reason))
    return Dumped(said["process"], tuple(said["descriptors"]), said["start_seconds"])


def revive(criu: Criu, folder: Path, manifest: Manifest, told: Handover, *, output: int = 1) -> int:
    """Continue a snapshot, and return the process to wait for (`namespace.wait`) once it answers. Raises RevivalFailed.

    `output` is the descriptor that its standard output goes to. Until it answers, the caller's end is its end; afterwards also.
    A signal that the process gets goes to the engine.
    """

    def first(report: int) -> int:
        _end_at_once()
        with _piped_to(output) as out, _piped_to(2) as errors:
            try:
                _continued(criu, folder, manifest, told, (out, errors))
            except (CriuFailed, RevivalFailed, OSError) as error:
                return _say(report, {"failure": str(error)})
            _pass_signals_on(manifest.process)
            _say(report, {"up": True})
            os.close(report)
            return namespace.reap_until(manifest.process)

    child, said = _start(first)
    if said.get("up"):
        return child
    status = namespace.wait(child)
    raise RevivalFailed(str(said.get("failure", f"it ended with {status}")))


def _brought_up(criu: Criu, program: Program, images: Path, limit: float) -> Dumped:
    began = time.monotonic()
    ready, tell = os.pipe()
    namespace.number_from(FIRST_PROCESS)
    engine = subprocess.Popen(  # noqa: S603  no shell
        [*program.words, str(tell), *program.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=program.environment, cwd=program.folder, pass_fds=(tell,), start_new_session=True,
    )  # fmt: skip
    os.close(tell)
    said: list[str] = []
    for stream in (engine.stdout, engine.stderr):
        threading.Thread(target=_keep, args=(stream, said), daemon=True).start()
    readable, _, _ = select.select([ready], [], [], limit)
    if not readable:
        raise RevivalFailed(f"the engine was not warm after {limit:.0f} s; it said last:\n" + "".join(said[-_LINES:]))
    if not os.read(ready, 64):
        engine.wait()
        time.sleep(0.2)  # what it said last is still on its way
        raise RevivalFailed("the engine ended before it was warm; it said last:\n" + "".join(said[-_LINES:]))
    seconds = time.monotonic() - began
    descriptors = [str(Path(f"/proc/{engine.pid}/fd/{number}").readlink()) for number in range(3)]
    _forget_files()
    criu.dump(engine.pid, images)
    engine.wait()
    return Dumped(engine.pid, (descriptors[0], descriptors[1], descriptors[2]), seconds)


def _forget_files() -> None:
    """Remove the names of temporary files: what is open still goes into the image, and nothing must be there at a restore."""
    for path in Path(namespace.SCRATCH).rglob("*"):
        if path.is_file() and not path.is_socket():
            path.unlink()


def _continued(criu: Criu, folder: Path, manifest: Manifest, told: Handover, output: tuple[int, int]) -> None:
    listen, hand = os.pipe()
    given = dict(zip(manifest.descriptors, (listen, *map(os.dup, output)), strict=True))
    with tempfile.TemporaryDirectory(dir=namespace.SCRATCH) as work:
        criu.restore(folder / IMAGES, Path(work), given)
    for descriptor in given.values():
        os.close(descriptor)
    os.write(hand, told.line())
    os.close(hand)
    deadline = time.monotonic() + _HEALTHY_SECONDS
    while not _healthy(told):
        ended, status = os.waitpid(manifest.process, os.WNOHANG)
        if ended:
            raise RevivalFailed(f"the engine ended with {namespace.exit_status(status)} when it was continued")
        if time.monotonic() > deadline:
            raise RevivalFailed(f"the engine did not answer within {_HEALTHY_SECONDS:.0f} s of its restore")
        time.sleep(0.005)


@contextlib.contextmanager
def _piped_to(descriptor: int) -> Generator[int]:
    """Yield a pipe whose content goes to a descriptor, all of it by the end of the block.

    CRIU opens what it is given anew: it would write over a file from its beginning, and cannot open a socket, as a journal's is.
    """
    reading, writing = os.pipe()
    thread = threading.Thread(target=_copy, args=(reading, descriptor), daemon=True)
    thread.start()
    try:
        yield writing
    finally:
        os.close(writing)
        thread.join(_LAST_WORDS_SECONDS)


def _copy(reading: int, descriptor: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's, which waits
    while data := os.read(reading, 65536):
        with contextlib.suppress(OSError):  # nobody reads any more: the engine goes on
            while data:
                data = data[os.write(descriptor, data) :]


def _healthy(told: Handover) -> bool:
    connection = http.client.HTTPConnection(_EVERYWHERE.get(told.host, told.host), told.port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _start(first: Callable[[int], int]) -> tuple[int, dict[str, Any]]:
    """Start the first process of a namespace, and return it with what it reports, which is nothing when it is killed."""
    reading, report = os.pipe()

    def main() -> int:
        os.close(reading)
        return first(report)

    try:
        child = namespace.start(main)
    except OSError as error:
        os.close(reading)
        raise RevivalFailed(f"no namespace can be made here: {error.strerror or error}; root is needed") from error
    finally:
        os.close(report)
    with open(reading, "rb") as pipe:  # noqa: PTH123  a descriptor
        try:
            said = pipe.read()
        except BaseException:  # whoever is interrupted here leaves nothing running
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
    return child, json.loads(said) if said else {}


def _say(report: int, what: Mapping[str, object]) -> int:
    os.write(report, json.dumps(what).encode())
    return 0 if "failure" not in what else 1


def _end_at_once() -> None:
    """As process 1, which has no signal's default action: end at a signal, and everything here with it."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, end)


def _pass_signals_on(process: int) -> None:
    def pass_on(number: int, _: FrameType | None) -> None:
        signal.alarm(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    def too_late(_: int, __: FrameType | None) -> NoReturn:
        os._exit(128 + signal.SIGKILL)

    signal.signal(signal.SIGALRM, too_late)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, pass_on)


def _keep(stream: IO[bytes] | None, said: list[str]) -> None:
    for line in stream or ():
        said.append(line.decode(errors="replace"))
        del said[:-200]
