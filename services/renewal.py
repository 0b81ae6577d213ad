"""What a process that was dumped must have anew when it runs again: random state, and the permission for AMX.

Every restore of one image begins with the same memory, and so with the same state of every generator in it; ids and keys that are
made by `os.urandom` (uuid4, secrets) come from the kernel and need nothing. CRIU does not restore the permission that a process
has to use AMX tiles, and oneDNN dies of SIGILL without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os  # noqa: TID251  the kernel's randomness
import platform
import random
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ARCH_PRCTL = 158  # x86-64's number of the system call
_ARCH_REQ_XCOMP_PERM = 0x1023
_XTILEDATA = 18
_MADV_DONTNEED = 4
_PAGE = os.sysconf("SC_PAGESIZE")


def renew() -> None:
    """Renew this process's generators from the kernel's randomness, and ask for AMX where the processor has it."""
    random.seed(os.urandom(64))
    tempfile._name_sequence = None  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]  there is no public way
    ssl.RAND_add(os.urandom(64), 64.0)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(list(os.urandom(64)))  # noqa: NPY002  libraries draw from the old interface
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))
    if has_amx():
        ask_for_amx()


def close_listeners() -> None:
    """Put /dev/null in the place of every TCP socket that listens.

    torch.distributed listens on a dozen ports of the loopback interface, also where there is one worker and nobody will ever
    connect. In an image they would have to be free wherever it is restored.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
            if one.family in {socket.AF_INET, socket.AF_INET6} and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


def trim() -> None:
    """Give memory that was freed back to the kernel: what is not there is not dumped."""
    gc.collect()
    gc.freeze()  # the server collects all of this again when it starts, which takes half a second
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def empty(tensors: Iterable[Any]) -> None:
    """Let the kernel have the memory of tensors whose content nobody needs any more: it reads as zeros, and is not dumped."""
    for tensor in tensors:
        _let_go(*_pages(tensor))


def forget_zeros(tensors: Iterable[Any]) -> None:
    """Let the kernel have those pages of tensors that hold nothing but zeros: they read as before, and are not dumped."""
    import numpy as np

    for begin, length in {_pages(tensor) for tensor in tensors}:
        memory = (ctypes.c_uint64 * (length // 8)).from_address(begin)
        zeros = np.flatnonzero(~np.ctypeslib.as_array(memory).reshape(-1, _PAGE // 8).any(axis=1))
        for run in np.split(zeros, np.flatnonzero(np.diff(zeros) != 1) + 1):
            if len(run):
                _let_go(begin + int(run[0]) * _PAGE, len(run) * _PAGE)


def _pages(tensor: Any) -> tuple[int, int]:
    """Return the address and the bytes of the pages that a tensor's memory has for itself; none are zero bytes."""
    memory = tensor.untyped_storage()
    begin = -(-memory.data_ptr() // _PAGE) * _PAGE
    return begin, max((memory.data_ptr() + memory.nbytes()) // _PAGE * _PAGE - begin, 0)


def _let_go(begin: int, length: int) -> None:
    if length:
        ctypes.CDLL(None, use_errno=True).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), _MADV_DONTNEED)


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has AMX tiles."""
    return platform.machine() == "x86_64" and "amx_tile" in cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0].split()


def ask_for_amx() -> None:
    """Ask the kernel for the right to use AMX tiles, for all threads of this process; raises OSError when it refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"arch_prctl: {os.strerror(number)}")
