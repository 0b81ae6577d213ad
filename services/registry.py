"""Images where they are kept: a registry, or a folder of the OCI image layout. skopeo carries them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.journal import ReleaseError

_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+")
_MESSAGE = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')
_RETRIES = 2  # of what a broken network left undone; blobs are named by their content, so a second time changes nothing


@dataclass(frozen=True)
class Place:
    """Where images of a box are kept: REGISTRY/NAME, or `oci:FOLDER`."""

    repository: str
    folder: Path | None = None
    plain_http: bool = False
    """The registry is asked without TLS: one on this machine, for a trial."""

    @classmethod
    def read(cls, text: str, *, plain_http: bool = False) -> Place:
        """Read one as it is typed; raises ReleaseError."""
        if text.startswith("oci:"):
            folder = text.removeprefix("oci:")
            if not folder or ":" in folder:
                raise ReleaseError("an OCI folder is oci:FOLDER, without a tag and without ':' in its name")
            return cls(text, Path(folder))
        name = text.removeprefix("docker://")
        if not _REPOSITORY.fullmatch(name):
            raise ReleaseError(
                f"{text!r} is no place for images: write REGISTRY/NAME, in small letters and without a tag, or oci:FOLDER"
            )
        return cls(name, plain_http=plain_http)

    def reference(self, version: str) -> str:
        """Return skopeo's name of a version."""
        return f"{self.repository}:{version}" if self.folder else f"docker://{self.repository}:{version}"

    def beside(self, name: str) -> Place:
        """Return the place of another image in the same registry; a folder holds them all."""
        if self.folder:
            return self
        return Place(f"{self.repository.rpartition('/')[0]}/{name}", plain_http=self.plain_http)

    def digest(self, version: str) -> str | None:
        """Return the digest of a version's manifest; None where it is not there. Raises ReleaseError where nothing answers."""
        if self.folder and not (self.folder / "index.json").is_file():
            return None
        told = [] if self.folder else [f"--tls-verify={str(not self.plain_http).lower()}"]
        done = _skopeo("inspect", "--raw", *told, self.reference(version))
        if done.returncode == 0:
            return f"sha256:{hashlib.sha256(done.stdout).hexdigest()}"
        reason = _reason(done.stderr)
        if self.folder or re.search(r"manifest unknown|name unknown|not found|StatusCode: 404", reason, re.IGNORECASE):
            return None
        raise ReleaseError(f"{self.repository} does not answer: {reason}")

    def push(self, source: str, version: str) -> str:
        """Copy an image, by skopeo's name of it, under a version, and return its digest; raises ReleaseError.

        The version is named last, when all of the image is there. What a failed push brought into a folder is removed.
        """
        told = [] if self.folder else [f"--dest-tls-verify={str(not self.plain_http).lower()}", f"--retry-times={_RETRIES}"]
        with tempfile.TemporaryDirectory(prefix="ekiben-push-") as scratch, _whole(self.folder):
            file = Path(scratch, "digest")
            done = _skopeo("copy", "--quiet", *told, f"--digestfile={file}", source, self.reference(version))
            if done.returncode != 0:
                where = self.repository if self.folder else f"the registry {self.repository.partition('/')[0]}"
                raise ReleaseError(f"{where} does not take {source.partition(':')[2]}: {_reason(done.stderr)}")
            return file.read_text(encoding="ascii").strip()


@contextmanager
def _whole(folder: Path | None) -> Generator[None]:
    """Leave a folder as it was when something fails."""
    if folder is None:
        yield
        return
    new, before = not folder.exists(), set(folder.rglob("*"))
    index = folder / "index.json"
    told = index.read_bytes() if index.is_file() else None
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            for path in sorted(set(folder.rglob("*")) - before, reverse=True):
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            if told is not None:
                index.write_bytes(told)
        raise


def missing() -> str | None:
    """Return that skopeo is not installed; None where it is."""
    told = "skopeo is not installed; it carries images (Debian, Fedora and Homebrew have it under that name)"
    return None if shutil.which("skopeo") else told


def _skopeo(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("skopeo")
    if program is None:
        raise ReleaseError(missing() or "skopeo went away")
    return subprocess.run([program, *arguments], capture_output=True, check=False)  # noqa: S603  no shell


def _reason(stderr: bytes) -> str:
    """Return skopeo's reason as one line."""
    text = stderr.decode("utf-8", "replace")
    found = _MESSAGE.findall(text)
    reason = json.loads(f'"{found[-1]}"') if found else text.strip() or "skopeo says nothing"
    return " ".join(reason.split())
