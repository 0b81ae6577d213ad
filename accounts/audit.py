"""The audit trail: one line a request, appended by one process to a chain of its own, before the answer's last byte leaves.

A line is handed to the operating system when `append` returns: it survives the end of the process, kill -9 too. It is on the
disk within `sync_seconds`: that much may be missing after the machine lost its power. A line costs about 40 microseconds.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os  # noqa: TID251  files that are appended to, locked and synchronised
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from accounts.chain import START, Point, encode, encode_head, file_name, key_id, read_heads

MAX_FILE_BYTES = 64 * 1024 * 1024
MIN_FREE_BYTES = 4 * 1024 * 1024
MAX_WAITING = 10_000
RETRY_SECONDS = 1.0
_NONCE = 12
_EMPTY: tuple[Any, ...] = (None, "", (), [], {})
Outcome = Literal["ok", "refused", "error", "cancelled"]


class AuditFailed(RuntimeError):
    """The trail cannot be written now; the message says why. What was to be written is kept and written later."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is written of a request; none of it is the request's text."""

    id: str
    action: str
    """What was asked for: chat, completion, search, documents.add, ..."""
    tenant: str
    key: str = ""
    """The key's id; empty for who has none."""
    route: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    outcome: Outcome = "ok"
    """As in llm_requests_total."""
    verdicts: Sequence[Mapping[str, Any]] = ()
    """What guards found and did."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    micros: int = 0
    """Cost in millionths of the bundle's currency."""
    seconds: float = 0.0
    first_token_seconds: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that is JSON, such as the sources of an answer, or its text where that was masked before."""


@dataclass(frozen=True)
class TextKey:
    """Encrypts texts in the trail: AES-256-GCM, a fresh nonce for each, bound to the request's id."""

    key: bytes

    def encrypt(self, texts: Mapping[str, str], identity: str) -> str:
        """Return nonce and ciphertext in base64."""
        nonce = secrets.token_bytes(_NONCE)
        return base64.b64encode(nonce + AESGCM(self.key).encrypt(nonce, json.dumps(texts).encode(), identity.encode())).decode()

    def decrypt(self, sealed: str, identity: str) -> dict[str, str]:
        """Return the texts; raises ValueError for another key, another request, or what was changed."""
        from cryptography.exceptions import InvalidTag

        try:
            raw = base64.b64decode(sealed, validate=True)
            return json.loads(AESGCM(self.key).decrypt(raw[:_NONCE], raw[_NONCE:], identity.encode()))
        except (InvalidTag, ValueError) as error:
            raise ValueError("the text was encrypted with another key, or changed") from error


class AuditLog:
    """The trail of this process. It may be used from several threads; after a fork it must be opened anew."""

    def __init__(
        self,
        folder: Path,
        key: bytes | None = None,
        text_key: bytes | None = None,
        *,
        max_bytes: int = MAX_FILE_BYTES,
        sync_seconds: float | None = 1.0,
    ) -> None:
        """Begin a chain; raises AuditFailed.

        Keys are 32 bytes each, as `accounts.chain.derived` makes them. Without `key` lines are hashed only: who can write the
        folder can then forge them all. Without `text_key` no texts are taken. With sync_seconds=None the disk is left to the
        operating system.
        """
        self._folder, self._key, self._max_bytes = folder, key, max_bytes
        self._texts = TextKey(text_key) if text_key else None
        self._lock = threading.Lock()
        self._last, self._number, self._size, self._day = START, 0, 0, ""
        self._file: int | None = None
        self._head: int | None = None
        self._retired: list[int] = []
        self._waiting: deque[dict[str, Any]] = deque()
        self._lost = 0
        self._synchronises = sync_seconds is not None
        self._failure: str | None = None
        self._tried = 0.0
        self._closed = threading.Event()
        self.chain = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._seen = {name: point.n for name, point in read_heads(folder, key).items() if point}
            self._open_file()
        except OSError as error:
            self._close_files()
            raise AuditFailed(f"the audit trail cannot be written to {folder}: {error.strerror}") from error
        self._syncer = None
        if sync_seconds is not None:
            self._syncer = threading.Thread(target=self._sync_for_ever, args=(sync_seconds,), name="audit-sync", daemon=True)
            self._syncer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, entry: Entry, texts: Mapping[str, str] | None = None) -> None:
        """Write a line; raises AuditFailed, and then keeps the line and writes it before the next one that can be written.

        `texts` is encrypted; raises ValueError where there is no key for it. What is no JSON raises TypeError or ValueError.
        """
        fields = {name: value for name, value in vars(entry).items() if value not in _EMPTY}
        if texts is not None:
            if self._texts is None:
                raise ValueError("texts are kept encrypted only: set the key for them")
            fields["sealed"] = self._texts.encrypt(texts, entry.id)
        with self._lock:
            if self._closed.is_set():
                raise AuditFailed("the audit trail is closed")
            if len(self._waiting) >= MAX_WAITING:
                self._lost += 1
            else:
                self._waiting.append({**fields, "at": _now(), "kind": "request"})
            self._write_waiting()

    def check(self) -> None:
        """Raise AuditFailed unless a line can be written now: asked before a request is taken on.

        Where writing failed it is tried again, at most once a second.
        """
        with self._lock:
            if self._failure is None:
                self._failure = self._trouble()
            if self._failure is None:
                return
            if time.monotonic() - self._tried >= RETRY_SECONDS:
                self._tried = time.monotonic()
                self._failure = self._trouble()
                if self._failure is None:
                    self._write_waiting()
                    return
            raise AuditFailed(self._failure)

    def sync(self) -> None:
        """Wait until all lines are on the disk; raises AuditFailed."""
        opened: list[int] = []
        try:
            with self._lock:
                opened.extend(os.dup(one) for one in (self._file, self._head) if one is not None)
                opened, self._retired = [*self._retired, *opened], []
            for one in opened:
                os.fsync(one)
        except OSError as error:
            with self._lock:
                self._failure = f"the audit trail does not reach the disk: {error.strerror}"
            raise AuditFailed(self._failure) from error
        finally:
            for one in opened:
                os.close(one)

    def close(self) -> None:
        """Write what waits, bring all to the disk, and end; raises AuditFailed where lines are lost by that."""
        self._closed.set()
        if self._syncer is not None:
            self._syncer.join()
        try:
            with self._lock:
                self._write_waiting()
            self.sync()
        finally:
            self._close_files()

    def _write_waiting(self) -> None:
        try:
            if self._day != _now()[:10] or self._size >= self._max_bytes or self._file is None or _unlinked(self._file):
                self._open_file()
            if self._lost:
                self._write({"at": _now(), "kind": "lost", "lines": self._lost})
                self._lost = 0
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
            self._failure = None
        except OSError as error:
            self._tried = time.monotonic()
            self._failure = f"the audit trail cannot be written to {self._folder}: {error.strerror}"
            raise AuditFailed(self._failure) from error
        except (TypeError, ValueError):
            self._waiting.popleft()  # it is no JSON, and will never be
            raise

    def _write(self, fields: Mapping[str, Any]) -> None:
        if self._file is None or self._head is None:
            raise OSError(errno.EBADF, "no file is open")
        n = self._last.n + 1
        line, sealed = encode({**fields, "n": n, "prev": self._last.hash}, self._key, self.chain)
        try:
            _write_whole(self._file, line)
        except OSError:
            # Half a line must not stand before the next one.
            try:
                os.ftruncate(self._file, self._size)
            except OSError:
                self._close_file()
            raise
        self._size += len(line)
        self._last = Point(n, sealed)
        with suppress(OSError):  # a head that lags is made good by the next line
            os.pwrite(self._head, encode_head(self._last, self._key, self.chain), 0)

    def _open_file(self) -> None:
        if self._head is None or _unlinked(self._head):
            self._head = os.open(self._folder / f"{self.chain}.head", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Held as long as this process lives: what is alive is not pruned.
            fcntl.flock(self._head, fcntl.LOCK_EX | fcntl.LOCK_NB)
        number, before = self._number + 1, (self._file, self._size)
        path = self._folder / file_name(self.chain, number)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = 0
        first = {"seen": self._seen} if number == 1 else {}
        try:
            self._write({"at": _now(), "kind": "open", "file": number, "key": key_id(self._key), **first})
        except OSError:
            # Tried again every second, a full disk would be filled with empty files.
            path.unlink(missing_ok=True)
            self._close_file()
            self._file, self._size = before
            raise
        if before[0] is not None:
            self._retired.append(before[0])
            if not self._synchronises:
                os.close(self._retired.pop())
        self._number, self._day = number, _now()[:10]
        _sync_folder(self._folder)

    def _close_file(self) -> None:
        if self._file is not None:
            self._retired.append(self._file)
            self._file = None

    def _close_files(self) -> None:
        for one in (*self._retired, self._file, self._head):
            if one is not None:
                os.close(one)
        self._retired, self._file, self._head = [], None, None

    def _trouble(self) -> str | None:
        try:
            if self._file is None or _unlinked(self._file) or self._head is None or _unlinked(self._head):
                self._open_file()
            free = os.statvfs(self._folder)
        except OSError as error:
            return f"the audit trail cannot be written to {self._folder}: {error.strerror}"
        if free.f_bavail * free.f_frsize < MIN_FREE_BYTES:
            return f"the disk of the audit trail {self._folder} is full: make room, or prune with `ekiben audit prune`"
        return None

    def _sync_for_ever(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            with suppress(AuditFailed):  # `check` tells it
                self.sync()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write_whole(opened: int, line: bytes) -> None:
    if os.write(opened, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _unlinked(opened: int) -> bool:
    return os.fstat(opened).st_nlink == 0


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
