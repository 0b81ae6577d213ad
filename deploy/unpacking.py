"""Archives of others, unpacked so that nothing of them lands outside their folder.

tarfile's own filter does it where Python has it; 3.11.2, Debian 12's, has not, and there each member is judged by hand.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_RIGHTS = 0o755


def unpack(archive: tarfile.TarFile, into: Path) -> None:
    """Unpack files and folders into a folder that is empty or missing; raises tarfile.TarError for a member that may not be."""
    if hasattr(tarfile, "data_filter"):
        archive.extractall(into, filter="data")
        return
    into.mkdir(parents=True, exist_ok=True)
    archive.extractall(into, members=list(_judged(archive, into)))  # noqa: S202  judged


def _judged(archive: tarfile.TarFile, into: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members as the filter would leave them, but for symbolic links: a chain of them cannot be judged by its names."""
    status = into.stat()
    for member in archive:
        if not _within(member.name):
            raise tarfile.ExtractError(f"{member.name!r} would lie outside of its folder")
        if member.issym():
            raise tarfile.ExtractError(
                f"{member.name!r} is a link: pack what it points to (tar -h), or take Python 3.11.4 or later"
            )
        if member.islnk() and not _within(member.linkname):
            raise tarfile.ExtractError(f"{member.name!r} links to {member.linkname!r}, outside of its folder")
        if not (member.isreg() or member.isdir() or member.islnk()):
            raise tarfile.ExtractError(f"{member.name!r} is neither a file nor a folder")
        member.mode = _RIGHTS if member.isdir() else (member.mode & _RIGHTS) | 0o600
        member.uid, member.gid, member.uname, member.gname = status.st_uid, status.st_gid, "", ""
        yield member


def _within(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
