"""A box rendered for a target: small YAML files, dumped from structures, the same bytes for the same box and environment."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deploy import network, storage
from deploy.bentocloud import bentocloud
from deploy.box import Box
from deploy.compose import compose
from deploy.entry import entry
from deploy.environment import Environment
from deploy.fitting import Target, check
from deploy.keda import keda
from deploy.knative import knative
from deploy.kserve import kserve
from deploy.notes import example, notes
from deploy.plain import plain
from deploy.release import CANARY, Manifest, Release

MARK = "# Rendered by `ekiben deploy"
"""How files of ours begin; in JSON and templates it stands in a comment."""
_HEAD_BYTES = 200
_CLUSTERS = {"plain": plain, "keda": keda, "knative": knative, "kserve": kserve}
_SIDE_BY_SIDE = frozenset({"plain", "keda"})
"""Targets without revisions: a canary is a second release."""


class NotOurs(FileExistsError):
    """Files of others are where files are to be written; `strerror` names them."""


@dataclass(frozen=True)
class Rendering:
    """Files by their names, and what should be known before they are applied."""

    files: dict[str, str]
    advice: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What must be there for it, and what comes after."""


def render(box: Box, environment: Environment, target: Target) -> Rendering:
    """Render a box for a target; raises DoesNotFit."""
    advice = check(box, environment, target)
    release = Release(box, environment, canary=environment.canary is not None and target in _SIDE_BY_SIDE)
    head = f"{MARK} render --target {target}`: {box.tag}\n"
    if target == "compose":
        files = {name: head + dump(content) for name, content in compose(release).items()}
        files[".env.example"] = head + example(release)
    elif target == "bentocloud":
        files = {"bentocloud.yaml": head + dump(bentocloud(release))}
    else:
        files = {f"{name}.yaml": head + dump_all(made) for name, made in manifests(release, target).items()}
    return Rendering(files, advice, notes(release, target))


def manifests(release: Release, target: Target) -> dict[str, list[Manifest]]:
    """Return the objects of a cluster's target, by file."""
    files = _CLUSTERS[target](release)
    files["entry"] = entry(release)
    files["storage"] = [*storage.claims(release), *storage.download(release)]
    if storage.download(release):
        files["network"] = [*files["network"], network.download(release)]
    if not release.environment.network.enabled:
        files["network"] = []
    return {name: made for name, made in sorted(files.items()) if made}


def foreign(files: Mapping[str, str], folder: Path) -> list[str]:
    """Return the files that are in a folder under names that are to be written, and are not of our making."""
    return [name for name, text in files.items() if (folder / name).exists() and not _ours(folder / name, text.encode())]


def _ours(place: Path, wanted: bytes) -> bool:
    if not place.is_file():
        return False
    there = place.read_bytes()
    return there == wanted or MARK.encode() in there[:_HEAD_BYTES]


def write(files: Mapping[str, str], folder: Path, *, force: bool = False) -> list[str]:
    """Write files into a folder, and take away what an earlier rendering left there; all are made before the first is moved.

    Returns the commands that take from the cluster what the earlier rendering had and this one has not: `kubectl apply` leaves
    it there. Of a chart there are none, for Helm does that itself.

    Raises NotOurs, before anything is written, where that would be over files of others, unless it is forced.
    """
    if not force and (theirs := foreign(files, folder)):
        raise NotOurs(errno.EEXIST, f"it holds {', '.join(theirs)}, which `ekiben deploy` did not make: move that away")
    folder.mkdir(parents=True, exist_ok=True)
    earlier = {
        place: text
        for place in [*folder.glob("*.yaml"), *folder.glob("*.yml"), *folder.glob("templates/*.yaml")]
        if (text := place.read_text(encoding="utf-8", errors="replace")).startswith(MARK)
    }
    gone = _gone([text for place, text in earlier.items() if place.parent == folder], files)
    with tempfile.TemporaryDirectory(prefix=".render-", dir=folder) as made:
        for name, text in files.items():
            place = Path(made, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        for old in earlier:
            if old.relative_to(folder).as_posix() not in files:
                old.unlink()
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(made, name), folder / name)
    return gone


def _gone(earlier: list[str], files: Mapping[str, str]) -> list[str]:
    """Return the commands that take away objects of earlier files; what holds data is the last, and said to do so."""
    before = _objects(earlier)
    now = _objects([text for name, text in files.items() if "/" not in name and name.endswith(".yaml")])
    instances = {_instance(one) for one in now.values()}
    gone = sorted(
        (key[0] == "persistentvolumeclaim", *key)
        for key, one in before.items()
        # A canary is rendered while the stable release serves, and leaves it there.
        if key not in now and f"{_instance(one)}{CANARY}" not in instances
    )
    return [
        f"kubectl delete {resource}/{name} -n {namespace}" + ("  # with all that it holds" if holds else "")
        for holds, resource, name, namespace in gone
    ]


def _objects(texts: list[str]) -> dict[tuple[str, str, str], Manifest]:
    """Return the objects of rendered files by resource, as kubectl names it, name and namespace."""
    made: dict[tuple[str, str, str], Manifest] = {}
    for text in texts:
        try:
            read = [one for one in yaml.safe_load_all(text) if isinstance(one, dict) and "kind" in one]
        except yaml.YAMLError:  # changed by hand since
            continue
        for one in read:
            group = one["apiVersion"].rpartition("/")[0]
            resource = f"{one['kind']}{'.' * bool(group)}{group}".lower()
            made[resource, one["metadata"]["name"], one["metadata"]["namespace"]] = one
    return made


def _instance(one: Manifest) -> str:
    return one["metadata"]["labels"]["app.kubernetes.io/instance"]


class _Dumper(yaml.SafeDumper):
    """YAML without aliases, and texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  PyYAML's own signature
        """Write everything out."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Go's YAML takes 12e45 for a number and y for true, PyYAML does not: a version of hex digits can be either.
    style = "'" if re.match(r"[-+.]?[0-9]|[yYnN]$", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def dump(content: Any) -> str:
    """Return YAML: keys as they come, no line broken."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))  # pyright: ignore[reportArgumentType]


def dump_all(objects: list[Manifest]) -> str:
    """Return several objects as one file."""
    return "---\n".join(dump(one) for one in objects)
