"""The lines of the audit trail: each is sealed with its predecessor's seal, so that a change shows where it was made.

A chain is what one process writes: `CHAIN.000001.jsonl`, `CHAIN.000002.jsonl` and so on, and `CHAIN.head`, which says how far it
goes. A line is JSON with sorted keys, without spaces, in ASCII; `n` counts from 1 over the files of a chain, `prev` is the seal
of line n - 1, and `hash`, last, seals all bytes before it: HMAC-SHA-256 where there is a key, SHA-256 where there is none.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

GENESIS = "0" * 64
PRUNED = "pruned.jsonl"
_READINGS = 3
_FILE = re.compile(r"^(?P<chain>\d{8}T\d{6}Z-\d+-[0-9a-f]{8})\.(?P<number>\d{6})\.jsonl$")
_SEAL = re.compile(rb'^(?P<body>\{.*),"hash":"(?P<hash>[0-9a-f]{64})"\}$', re.DOTALL)


def derived(secret: str, purpose: str) -> bytes:
    """Return 32 bytes for one purpose from a secret (HKDF, RFC 5869): the same secret may serve several."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"ekiben audit {purpose}".encode()).derive(secret.encode())


def key_id(key: bytes | None) -> str:
    """Return 8 characters by which a key is known and that do not give it away; empty without one."""
    return hmac.digest(key, b"ekiben audit key id", "sha256").hex()[:8] if key else ""


def seal(body: bytes, key: bytes | None, context: str) -> str:
    """Return the seal of some bytes, 64 characters; `context`, the chain's name for a line, is under it too."""
    sealed = context.encode() + b"\n" + body
    return hmac.digest(key, sealed, "sha256").hex() if key else hashlib.sha256(sealed).hexdigest()


def encode(fields: Mapping[str, Any], key: bytes | None, context: str) -> tuple[bytes, str]:
    """Return a line with its end, and its seal; raises ValueError and TypeError for what is no JSON."""
    body = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()[:-1]
    sealed = seal(body, key, context)
    return body + b',"hash":"' + sealed.encode() + b'"}\n', sealed


def decode(line: bytes, key: bytes | None, context: str) -> dict[str, Any] | None:
    """Return the fields of a line whose seal holds, `hash` among them; None for any other."""
    match = _SEAL.match(line.removesuffix(b"\n"))
    if match is None or not hmac.compare_digest(match["hash"].decode(), seal(match["body"], key, context)):
        return None
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


class Point(NamedTuple):
    """A line of a chain: its number and its seal."""

    n: int
    hash: str


START = Point(0, GENESIS)


class ChainFile(NamedTuple):
    """One file of a chain."""

    chain: str
    number: int
    path: Path


def file_name(chain: str, number: int) -> str:
    """Return the name of a chain's file."""
    return f"{chain}.{number:06d}.jsonl"


def chain_files(folder: Path) -> list[ChainFile]:
    """Return the files of all chains, by chain and number."""
    found = [(match, path) for path in folder.glob("*.jsonl") if (match := _FILE.match(path.name))]
    return sorted(ChainFile(match["chain"], int(match["number"]), path) for match, path in found)


def encode_head(point: Point, key: bytes | None, chain: str) -> bytes:
    """Return what stands in a chain's head: always of the same length, so that it is written over in one go."""
    return encode({"last": point.hash, "n": f"{point.n:015d}"}, key, f"{chain} head")[0]


def read_heads(folder: Path, key: bytes | None) -> dict[str, Point | None]:
    """Return how far each chain goes, by its head; None for a head whose seal does not hold."""
    return {path.stem: _read_head(path, key) for path in sorted(folder.glob("*.head"))}


def _read_head(path: Path, key: bytes | None) -> Point | None:
    for _ in range(_READINGS):  # it may be written over just now
        told = decode(path.read_bytes(), key, f"{path.stem} head")
        if told is not None:
            return Point(int(told["n"]), told["last"])
    return None


@dataclass(frozen=True)
class Tombstone:
    """What was removed of a chain when its time was over: its lines up to this one."""

    chain: str
    upto: Point
    gone: bool
    """Nothing is left of the chain."""
    at: str


def encode_tombstone(stone: Tombstone, key: bytes | None) -> bytes:
    """Return its line."""
    fields = {"at": stone.at, "chain": stone.chain, "gone": stone.gone, "last": stone.upto.hash, "n": stone.upto.n}
    return encode(fields, key, PRUNED)[0]


def read_tombstones(folder: Path, key: bytes | None) -> tuple[dict[str, Tombstone], list[int]]:
    """Return the tombstones by chain, and the numbers of lines whose seal does not hold."""
    stones: dict[str, Tombstone] = {}
    broken: list[int] = []
    path = folder / PRUNED
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        told = decode(line, key, PRUNED)
        if told is None:
            broken.append(number)
        else:
            stones[told["chain"]] = Tombstone(told["chain"], Point(told["n"], told["last"]), told["gone"], told["at"])
    return stones, broken
