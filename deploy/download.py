"""Weights brought to a volume, once: an archive fetched, its digest compared, its folders put in place together.

`python -m deploy.download URL --sha256 DIGEST --into FOLDER` runs in the box's own image, before any engine does.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from deploy.unpacking import unpack

_PIECE = 1 << 20
_SILENCE_SECONDS = 60


class DownloadError(RuntimeError):
    """What was asked for did not come; nothing of it is in the folder."""


def download(url: str, sha256: str, into: Path) -> bool:
    """Bring an archive's folders to a folder; False where the same archive is there already. Raises DownloadError."""
    mark = into / f".{sha256}"
    if mark.exists():
        return False
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=into) as folder:
        archive, unpacked = Path(folder, "archive"), Path(folder, "unpacked")
        _fetch(url, sha256, archive)
        try:
            with tarfile.open(archive) as packed:
                unpack(packed, unpacked)
        except (tarfile.TarError, EOFError) as error:
            raise DownloadError(
                f"{url} is no archive of folders (.tar, .tar.gz) that may be unpacked: {_first_line(error)}"
            ) from error
        for entry in sorted(unpacked.iterdir()):
            place = into / entry.name
            if place.is_dir():
                shutil.rmtree(place)
            entry.replace(place)
        mark.touch()
    return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")


def _fetch(url: str, sha256: str, archive: Path) -> None:
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=_SILENCE_SECONDS) as answer, archive.open("wb") as file:  # noqa: S310  the schema asks for http(s)
            while piece := answer.read(_PIECE):
                digest.update(piece)
                file.write(piece)
    except (urllib.error.URLError, OSError) as error:
        raise DownloadError(f"{url} cannot be fetched: {getattr(error, 'reason', error)}") from error
    if digest.hexdigest() != sha256:
        raise DownloadError(f"{url} has the digest {digest.hexdigest()}, and {sha256} is wanted; nothing was unpacked")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 where nothing came."""
    parser = argparse.ArgumentParser(prog="python -m deploy.download", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--sha256", required=True, help="of the archive")
    parser.add_argument("--into", required=True, type=Path, help="folder that gets its folders")
    told = parser.parse_args(arguments)
    try:
        came = download(told.url, told.sha256, told.into)
    except (DownloadError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{told.into} {'was filled' if came else 'has it already'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
