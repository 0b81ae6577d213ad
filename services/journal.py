"""The record of releases: a line of JSON for each step that was done and each release, in a file that is only appended to.

It lies in the state directory, so who shares that shares the record. A line that a crash cut off is no line.
"""

from __future__ import annotations

import fcntl
import json
import os  # noqa: TID251  only to bring a line to the disk
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ReleaseError(RuntimeError):
    """A release that cannot go on; the message says why and what to do."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    at: str = Field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"), description="when it was done, of UTC"
    )
    bento: str


class Done(_Line):
    """A step that was done."""

    kind: Literal["step"] = "step"
    step: str
    inputs: str = Field(description="digest of what its result follows from")
    result: dict[str, str]
    seconds: float


class Released(_Line):
    """A version that was released, or returned to."""

    kind: Literal["release", "rollback"] = "release"
    schema_: str = Field(alias="schema", description="the newest revision of the database's schema that this version knows")
    options: dict[str, str] = Field(description="what was told: where to, and how it is rendered")
    results: dict[str, str] = Field(default_factory=dict, description="of all steps: image, digest, files")

    @property
    def version(self) -> str:
        """The Bento's version."""
        return self.bento.rpartition(":")[2]


class Journal:
    """The record in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def held(self) -> Generator[None]:
        """Keep other releases out; raises ReleaseError while there is one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ReleaseError("another release is under way; wait for it") from error
            yield

    def append(self, line: Done | Released) -> None:
        """Add a line, and bring it to the disk."""
        text = line.model_dump_json(by_alias=True) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                text = "\n" + text  # what a crash cut off stands alone
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def found(self, bento: str, step: str, inputs: str) -> Done | None:
        """Return the last time that a step was done with these inputs."""
        lines = (Done.model_validate(told) for told in self._read() if told["kind"] == "step")
        same = [line for line in lines if (line.bento, line.step, line.inputs) == (bento, step, inputs)]
        return same[-1] if same else None

    def releases(self) -> list[Released]:
        """Return the releases and rollbacks, the oldest first."""
        return [Released.model_validate(told) for told in self._read() if told["kind"] != "step"]

    def _read(self) -> list[dict[str, Any]]:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            try:
                told = json.loads(line)
                (Done if told["kind"] == "step" else Released).model_validate(told)
            except json.JSONDecodeError:
                continue  # a crash cut it off
            except (TypeError, KeyError, ValidationError) as error:
                raise ReleaseError(f"{self._path}:{number}: not a line of this record; mend or remove it") from error
            found.append(told)
        return found
