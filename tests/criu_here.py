"""The criu that tests of snapshots use, and why there is none: such tests skip loudly."""

import os  # noqa: TID251  the caller's own setting
from pathlib import Path

from deploy.criu import Criu, CriuFailed, find_criu

_NAMED = os.environ.get("EKIBEN_CRIU")


def criu_here() -> tuple[Criu | None, str]:
    """Return a criu that this machine and user can use, or None and what to do."""
    if os.geteuid() != 0:
        return None, "snapshots are made by root: run these tests as root"
    try:
        criu = find_criu(Path(_NAMED) if _NAMED else None)
        criu.check()
        version = criu.version
    except CriuFailed as error:
        return None, str(error)
    if tuple(int(part) for part in version.split(".")[:2]) < (4, 2):
        return None, f"criu {version} cannot dump on current kernels: `make criu` installs a newer one beside it"
    return criu, ""
