"""What BentoML writes into a Bento, brought to what follows from its inputs: no time of day, no address of an index, one mode.

BentoML writes when it built, and when each model came into this store; itself once more, without hashes, after the lock that has
it with them; and with `lock_packages` the indexes of this machine.
Modes follow the umask, and times of files the clock: a layer of an image is made of both.
"""

from __future__ import annotations

import os  # noqa: TID251  only to set the times of files
import re
from pathlib import Path
from typing import Any

import yaml

EPOCH = 315532800
"""1980-01-01T00:00:00Z, the earliest time that every archive can hold; seconds."""
CREATED = "1980-01-01T00:00:00+00:00"
_INDEX = re.compile(r"^\s*(?:-i|-f|--(?:index-url|extra-index-url|find-links|trusted-host))[ =](?P<where>\S+)\s*$")
_HASHED = re.compile(r"^(?P<pin>bentoml==\S+) \\$", re.MULTILINE)


def normalise(folder: Path) -> None:
    """Rewrite a Bento's files, but for `src/`, to what follows from its inputs. Twice is as once."""
    asked = _asked(folder / "src")
    path = folder / "bento.yaml"
    info = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    _untimed(info)
    if requirements := (info.get("image") or {}).get("python_requirements"):
        info["image"]["python_requirements"] = cleaned(requirements, asked)
    path.write_text(yaml.dump(info, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for file in sorted((folder / "env" / "python").glob("requirements*")):
        file.write_text(cleaned(file.read_text(encoding="utf-8"), asked), encoding="utf-8")


def cleaned(requirements: str, asked: str) -> str:
    """Return requirements without BentoML's second mention of itself, and without the indexes of this machine.

    An index stays that `asked`, the text of the inputs, names.
    """
    hashed = {one["pin"] for one in _HASHED.finditer(requirements)}

    def stays(line: str) -> bool:
        told = _INDEX.match(line)
        return (told is None or told["where"] in asked) and line.strip() not in hashed

    return "".join(line for line in requirements.splitlines(keepends=True) if stays(line))


def settle(folder: Path) -> None:
    """Give every file below a folder, and itself, one time and the mode that git would give it: 0644, or 0755.

    A copy of a Bento, such as the context of an image, needs it again: copies get times of their own. Links stay as they are.
    """
    for path in [*folder.rglob("*"), folder]:
        if path.is_symlink():
            continue
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
        os.utime(path, (EPOCH, EPOCH))


def _asked(source: Path) -> str:
    """Return the texts in which a bundle's author may name an index on purpose."""
    build = source / "bentofile.yaml"
    if not build.is_file():
        return ""
    text = build.read_text(encoding="utf-8")
    named = (yaml.safe_load(text).get("python") or {}).get("requirements_txt")
    return text + ((source / named).read_text(encoding="utf-8") if named and (source / named).is_file() else "")


def _untimed(node: Any) -> None:
    if isinstance(node, dict):
        if "creation_time" in node:
            node["creation_time"] = CREATED
        for value in node.values():
            _untimed(value)
    elif isinstance(node, list):
        for value in node:
            _untimed(value)
