"""What a process that was dumped must have anew: random state that differs each time, no listeners, memory let go of."""

import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from services.renewal import empty, has_amx, renew

ROOT = Path(__file__).resolve().parents[3]


def drawn():
    return random.random(), float(np.random.random()), float(torch.rand(1))  # noqa: NPY002  libraries draw so


def test_the_same_state_goes_on_differently():
    """As two restores of one image: every generator is in the same state before."""
    seen = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        renew()
        seen.append(drawn())

    assert all(first != second for first, second in zip(*seen, strict=True))


@pytest.mark.parametrize(("flags", "found"), [("fpu amx_bf16 amx_tile sse", True), ("fpu sse", False), ("fpu amx_tiles", False)])
def test_amx_is_read_off_the_flags(tmp_path, monkeypatch, flags, found):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: amx_tile\n")

    assert has_amx(tmp_path / "cpuinfo") is found


def test_other_architectures_have_no_amx(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text("Features\t: amx_tile\n")

    assert not has_amx(tmp_path / "cpuinfo")


def test_listeners_are_closed_and_other_sockets_are_not():
    code = (
        "import socket; from services.renewal import close_listeners\n"
        "listening = socket.create_server(('127.0.0.1', 0)); left, right = socket.socketpair()\n"
        "number, port = listening.fileno(), listening.getsockname()[1]\n"
        "close_listeners(); left.send(b'x'); assert right.recv(1) == b'x'\n"
        "import os; assert os.readlink(f'/proc/self/fd/{number}') == '/dev/null'\n"
        "print(port, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline())
        with socket.socket() as again:
            again.bind(("127.0.0.1", port))
        process.communicate("\n")

    assert process.returncode == 0


def test_memory_that_is_let_go_of_reads_as_zeros_and_is_written_again():
    cache = torch.full((1 << 20,), 7, dtype=torch.int64)

    empty([cache])

    # Its first and last page may be shared with others, and stay.
    assert int((cache != 0).sum()) * 8 <= 2 * 4096
    cache.fill_(3)
    assert int(cache.sum()) == 3 << 20
