"""What a unit of systemd with a user and a /tmp of its own can see of this machine's files."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

_HIDDEN = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  hidden by PrivateTmp


def unseen(paths: Iterable[Path], hidden: tuple[Path, ...] = _HIDDEN) -> list[str]:
    """Return why a user without rights of his own cannot read these, a line for each that he cannot; links are followed."""
    found: list[str] = []
    for path in paths:
        places = [path.absolute(), path.resolve()]
        if any(place.is_relative_to(folder) for place in places for folder in hidden):
            found.append(f"{path} is in a folder for temporary files, and the unit has one of its own: install it elsewhere")
        elif barred := next((one for place in places for one in _way(place) if not _open(one)), None):
            found.append(
                f"{path} cannot be read by the unit's user, to whom {barred} is closed: install it elsewhere, as in /opt"
            )
    return found


def _way(place: Path) -> list[Path]:
    return [*reversed(place.parents), place]


def _open(place: Path) -> bool:
    try:
        mode = place.stat().st_mode
    except OSError:
        return False
    wanted = stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
    return bool(mode & wanted)
