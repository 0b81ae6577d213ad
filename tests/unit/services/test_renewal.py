"""What a process that was dumped must have anew: random state that differs each time, no listeners, memory let go of."""

import ctypes
import mmap
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from services.renewal import empty, forget_zeros, has_amx, renew

PAGE = mmap.PAGESIZE
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


def resident(tensor):
    """Bytes of a tensor's memory that are there, as the kernel counts them; it lies in a mapping of its own size or larger."""
    counts = (ctypes.c_ubyte * (tensor.nbytes // PAGE + 1))()
    begin = tensor.data_ptr() // PAGE * PAGE
    ctypes.CDLL(None).mincore(ctypes.c_void_p(begin), ctypes.c_size_t(tensor.nbytes // PAGE * PAGE), counts)
    return sum(count & 1 for count in counts) * PAGE


def test_pages_of_zeros_are_let_go_of_and_nothing_else():
    slots = torch.zeros((4, 1 << 20), dtype=torch.int64).fill_(0)
    slots[1] = torch.arange(1 << 20)
    before = slots.clone()

    forget_zeros([slots[0], slots[3]])  # views of one memory

    assert resident(slots) < 0.3 * slots.nbytes
    assert torch.equal(slots, before)


@pytest.mark.parametrize("content", [0, 7])
def test_a_tensor_without_a_page_of_its_own_stays(content):
    small = torch.full((3,), content, dtype=torch.int64)

    forget_zeros([small])

    assert small.tolist() == [content] * 3
