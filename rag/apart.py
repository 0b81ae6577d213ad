"""Read a document of a caller's in a process of its own, which may take a time and a memory and no more.

The readers' libraries read what anybody made: one that never comes back, or takes all memory, must not take the box with it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

from rag.decoding import Unreadable
from rag.loading import read_document
from rag.section import Reading, read_written, written

SECONDS = 60
MEMORY_BYTES = 2 * 2**30


def read_apart(data: bytes, kind: str) -> Reading:
    """Return the structure of a document of a kind (a suffix in READERS); blocks. Raises Unreadable with what to do."""
    command = [sys.executable, "-m", "rag.apart", kind]
    root = Path(__file__).resolve().parents[1]
    try:
        # No environment: what strangers made is read without our tokens.
        done = subprocess.run(  # noqa: S603  no shell
            command, input=data, capture_output=True, cwd=root, env={}, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unreadable(f"it takes over {SECONDS} seconds to read; split it") from error
    if done.returncode == 1 and done.stdout:
        raise Unreadable(json.loads(done.stdout)["refused"])
    if done.returncode != 0:
        raise Unreadable("its reader ended while it read it, maybe out of memory; save it anew, or split it")
    return read_written(done.stdout)


def _main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        told, code = written(read_document(sys.stdin.buffer.read(), sys.argv[1])), 0
    except Exception as error:  # noqa: BLE001  the readers' libraries raise what they like
        why = str(error) if isinstance(error, Unreadable) else f"it is broken ({type(error).__name__})"
        told, code = json.dumps({"refused": why}), 1
    sys.stdout.buffer.write(told.encode("utf-8", "replace"))
    return code


if __name__ == "__main__":
    sys.exit(_main())
