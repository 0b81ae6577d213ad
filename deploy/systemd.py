"""A box on one machine without containers: units for systemd, by which it starts when it is asked and stops when idle.

`units(box, by="activator")`: the activator is the service, the box its child. `by="socket"`: no code of ours stands before the
box; systemd listens, systemd-socket-proxyd passes connections on, and the box is stopped when no proxy needs it any more. Then
idle means that no connection is open, requests wait without bound, and who connects seems to be on this machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_HARDENED = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
UMask=0077
"""
_NO_DEVICES = "PrivateDevices=yes\n"
_ALSO_SECONDS = 10
"""Of a stop, for the processes themselves."""
_WAIT = (
    "import sys,time,urllib.request as r\n"
    "while True:\n"
    "  try: r.urlopen(sys.argv[1],timeout=2); break\n"
    "  except OSError: time.sleep(.1)"
)


class BadUnit(ValueError):
    """What cannot be written into a unit; the message says what to change."""


@dataclass(frozen=True)
class SystemdBox:
    """A box as systemd runs it; addresses are HOST:PORT, times in seconds."""

    command: tuple[str, ...]
    """Serves the box at `address`, with absolute paths."""
    python: str
    """The Python that has the project, with its absolute path."""
    folder: str
    """Where it runs: of the project, or `src` of a Bento."""
    name: str = "ekiben"
    listen: str = "127.0.0.1:3000"
    address: str = "127.0.0.1:3001"
    ready_path: str = "/readyz"
    idle_seconds: int = 300
    start_seconds: int = 600
    stop_seconds: int = 90
    """After that what still runs of the box is killed."""
    drain_seconds: int = 30
    """Before its stop, requests under way have so long to end."""
    gpu: bool = False
    """Whether it runs on a GPU, whose device files it must then see."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    environment_file: str | None = None
    """Where secrets are, readable by root alone; systemd reads it."""
    proxy: str = "/lib/systemd/systemd-socket-proxyd"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadUnit(f"{self.name!r} is no name for a unit: small letters, digits, - and _")
        if not self.command or not self.command[0].startswith("/"):
            raise BadUnit("the command begins with an absolute path: systemd looks nowhere else")
        for told in (self.python, self.folder, *([self.environment_file] if self.environment_file else [])):
            if not told.startswith("/"):
                raise BadUnit(f"{told!r} is no absolute path")
        if self.listen == self.address:
            raise BadUnit(f"the box cannot have the address {self.listen} too, on which systemd listens")
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name) or "\n" in value:
                raise BadUnit(f"{name!r} cannot be an environment variable of a unit, or its value has several lines")
        values = (*self.command, self.listen, self.address, self.ready_path, self.folder)
        if any(character in value for value in values for character in "\n\0"):
            raise BadUnit("no value of a unit has several lines")


def units(box: SystemdBox, *, by: Literal["activator", "socket"] = "activator") -> dict[str, str]:
    """Return the text of each unit file by its name. Enable the .socket, where there is one, else the .service."""
    if by == "activator":
        arguments = [
            box.python, "-m", "services.cli", "activate", "--listen", box.listen, "--upstream", f"http://{box.address}",
            "--ready-path", box.ready_path, "--health-path", "/livez", "--health-path", "/readyz",
            "--idle-seconds", str(box.idle_seconds), "--start-seconds", str(box.start_seconds),
            "--stop-seconds", str(box.stop_seconds), "--drain-seconds", str(box.drain_seconds),
            "--command", shlex.join(box.command),
        ]  # fmt: skip
        return {
            f"{box.name}.service": _service(
                box, f"{box.name}, asleep while idle", arguments, "[Install]\nWantedBy=multi-user.target\n"
            )
        }
    backend = f"{box.name}-box.service"
    waits = [box.python, "-c", _WAIT, f"http://{box.address}{box.ready_path}"]
    return {
        f"{box.name}.socket": (
            f"[Unit]\nDescription={box.name}: waits for who asks\n\n"
            f"[Socket]\nListenStream={box.listen}\nBacklog=1024\n\n[Install]\nWantedBy=sockets.target\n"
        ),
        f"{box.name}.service": (
            f"[Unit]\nDescription={box.name}: passes connections on\n"
            f"Requires={backend} {box.name}.socket\nAfter={backend} {box.name}.socket\n\n"
            f"[Service]\nExecStart={box.proxy} --exit-idle-time={box.idle_seconds}s --connections-max=1024 {box.address}\n"
            f"DynamicUser=yes\n{_HARDENED}{_NO_DEVICES}"
        ),
        backend: _service(box, f"{box.name}: the box", [*box.command], "", unit="StopWhenUnneeded=yes\n", waits=waits),
    }


def _service(
    box: SystemdBox, description: str, command: list[str], install: str, *, unit: str = "", waits: list[str] | None = None
) -> str:
    lines = [f"ExecStart={_line(command)}"]
    if waits:
        lines.append(f"ExecStartPost={_line(waits)}")
    lines += [f"WorkingDirectory={_escaped(box.folder)}", f"Environment={_quoted('PYTHONPATH=' + box.folder)}"]
    state = f"/var/lib/{box.name}"
    own = {"HOME": state, "EKIBEN_STATE_DIR": f"{state}/state", "EKIBEN_CACHE_DIR": f"/var/cache/{box.name}"}
    lines += [f"Environment={_quoted(f'{name}={value}')}" for name, value in {**own, **box.environment}.items()]
    if box.environment_file:
        lines.append(f"EnvironmentFile={_escaped(box.environment_file)}")
    lines += [
        "Type=exec", "DynamicUser=yes", f"StateDirectory={box.name}", f"CacheDirectory={box.name}", "StateDirectoryMode=0700",
        f"TimeoutStartSec={box.start_seconds}",
        f"TimeoutStopSec={box.drain_seconds + box.stop_seconds + _ALSO_SECONDS}", "KillMode=mixed",
    ]  # fmt: skip
    if install:
        lines += ["Restart=on-failure", "RestartSec=2"]
    body, hardened = "\n".join(lines), _HARDENED if box.gpu else _HARDENED + _NO_DEVICES
    text = f"[Unit]\nDescription={description}\nAfter=network.target\n{unit}\n[Service]\n{body}\n{hardened}"
    return f"{text}\n{install}" if install else text


def _line(words: list[str]) -> str:
    """Return a command line of a unit (systemd.service(5), COMMAND LINES): no word is expanded."""
    first, *others = (_quoted(word.replace("$", "$$")) for word in words)
    return " ".join([first, *others])


def _quoted(text: str) -> str:
    escaped = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
