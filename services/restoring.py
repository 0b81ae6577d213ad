"""`python -m services.restoring [NAME] [--or-fail]`: `ekiben snapshot restore` without the half second of its imports."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from deploy import namespace
from deploy.criu import CriuFailed, find_criu
from deploy.revival import RevivalFailed
from deploy.snapshot import SnapshotError
from services import snapshots
from services.child import become
from services.lock import LockError
from services.settings import ROOT, Settings, SettingsError, load_settings

REASONS = (CriuFailed, RevivalFailed, SnapshotError, LockError)
"""Why a snapshot is not restored."""


def serve(settings: Settings, name: str | None = None, *, or_start: bool = True) -> int:
    """Serve the engine from its snapshot in the foreground, and return its exit status.

    Where that is not possible this process becomes `ekiben engine serve`, and logs why; without `or_start` one of REASONS is
    raised.
    """
    try:
        criu = find_criu(settings.criu)
        folder, manifest = snapshots.find(settings, criu, name)
        engine = snapshots.restore(settings, criu, folder, manifest)
    except REASONS as error:
        if not or_start:
            raise
        _start_cold(str(error))
    return namespace.wait(engine)


def main() -> None:
    """Parse the command line and serve."""
    options = argparse.ArgumentParser(prog="python -m services.restoring", description=__doc__)
    options.add_argument("name", nargs="?", metavar="NAME", help="which one (default: that of this box on this machine)")
    options.add_argument("--or-fail", action="store_true", help="exit with 1 where it cannot be restored")
    told = options.parse_args()
    try:
        status = serve(load_settings(), told.name, or_start=not told.or_fail)
    except (*REASONS, SettingsError) as error:
        sys.exit(f"error: {error}")
    sys.exit(status)


def _start_cold(reason: str) -> NoReturn:
    from services.telemetry import configure_logs, log

    configure_logs()
    log.warning("the engine starts cold", reason=reason)
    sys.stdout.flush()
    become([sys.executable, "-m", "services.cli", "engine", "serve"], ROOT, {})


if __name__ == "__main__":
    main()
