"""Which adapter versions are served, and which of them a name stands for: the state that all replicas of a box share.

A version is `name@digest`; `live` and every other alias is a name for one of them. The state is one JSON file, replaced whole
under a lock, so a reader never sees half a change. Replicas read it and bring their engines to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.manifest import AdapterError

LIVE = "live"
REFERENCE = r"^[a-z0-9][a-z0-9._-]{0,62}(@[a-z0-9][a-z0-9._-]{0,62})?$"
_DIGEST = re.compile(r"^[0-9a-f]{16}$")
_Digest = Annotated[str, Field(pattern=_DIGEST.pattern)]


class Reference(NamedTuple):
    """An adapter's name with a version or an alias, as in `support@canary`; a name alone means its live version."""

    name: str
    pointer: str = LIVE

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference; raises AdapterError."""
        if not re.fullmatch(REFERENCE, text):
            msg = f"{text!r} is no adapter: write NAME, NAME@VERSION or NAME@ALIAS in small letters, digits, '.', '_' and '-'"
            raise AdapterError(msg)
        name, _, pointer = text.partition("@")
        return cls(name, pointer or LIVE)


class Loaded(BaseModel):
    """One version that engines hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: _Digest
    pinned: bool = Field(default=False, description="never evicted to make room for another")

    @property
    def label(self) -> str:
        """`name@version`: its name in the engine."""
        return f"{self.name}@{self.version}"


class Names(BaseModel):
    """What an adapter's aliases stand for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    packed: _Digest = Field(description="the version that the bundle brought last")
    aliases: dict[str, _Digest] = Field(default_factory=dict)
    history: dict[str, list[_Digest]] = Field(default_factory=dict, description="what each alias stood for before, oldest first")


class Registry(BaseModel):
    """The state; every change returns a new one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int = 0
    adapters: dict[str, Names] = Field(default_factory=dict)
    loaded: tuple[Loaded, ...] = Field(default=(), description="in the order of loading")

    def resolve(self, reference: Reference) -> str | None:
        """Return the version that a reference stands for, whether it is loaded or not; None when the alias is not set."""
        if _DIGEST.fullmatch(reference.pointer):
            return reference.pointer
        names = self.adapters.get(reference.name)
        return names.aliases.get(reference.pointer) if names else None

    def holds(self, name: str, version: str) -> bool:
        """Whether engines are to hold that version."""
        return any((one.name, one.version) == (name, version) for one in self.loaded)

    def aliases_of(self, name: str, version: str) -> list[str]:
        """Return the aliases that stand for a version."""
        names = self.adapters.get(name)
        return sorted(alias for alias, target in names.aliases.items() if target == version) if names else []

    def packed(self, versions: Mapping[str, str], *, capacity: int = sys.maxsize) -> Registry:
        """Take over what a bundle was packed with: a version that is new since the last time becomes the live one.

        What it brings no more is let go of. Raises AdapterError when the slots do not suffice.
        """
        state = self
        if gone := self.adapters.keys() - versions.keys():
            state = state.changed(
                adapters={name: names for name, names in self.adapters.items() if name not in gone},
                loaded=tuple(one for one in self.loaded if one.name not in gone),
            )
        for name, version in versions.items():
            known = state.adapters.get(name)
            if known is not None and known.packed == version:
                continue
            names = known.model_copy(update={"packed": version}) if known else Names(packed=version)
            state = state.changed(adapters={**state.adapters, name: names}).pointed(name, version, LIVE)
            if not state.holds(name, version):
                state, _ = state.with_loaded(Loaded(name=name, version=version), capacity=capacity, last_used={})
        return state

    def pointed(self, name: str, version: str, alias: str) -> Registry:
        """Let an alias stand for a version; what it stood for is remembered."""
        names = self.adapters.get(name) or Names(packed=version)
        before = names.aliases.get(alias)
        history = names.history
        if before is not None and before != version:
            history = {**history, alias: [*history.get(alias, []), before][-10:]}
        changed = names.model_copy(update={"aliases": {**names.aliases, alias: version}, "history": history})
        return self.changed(adapters={**self.adapters, name: changed})

    def previous(self, name: str, alias: str) -> str:
        """Return what an alias stood for before; raises AdapterError when it stood for nothing else."""
        names = self.adapters.get(name)
        past = names.history.get(alias, []) if names else []
        if not past:
            raise AdapterError(f"{name}@{alias} stood for no other version before; promote one instead of rolling back")
        return past[-1]

    def rolled_back(self, name: str, alias: str) -> Registry:
        """Let an alias stand for what it stood for before; raises AdapterError."""
        version, names = self.previous(name, alias), self.adapters[name]
        changed = names.model_copy(
            update={
                "aliases": {**names.aliases, alias: version},
                "history": {**names.history, alias: names.history[alias][:-1]},
            }
        )
        return self.changed(adapters={**self.adapters, name: changed})

    def with_loaded(self, new: Loaded, *, capacity: int, last_used: Mapping[str, float]) -> tuple[Registry, list[Loaded]]:
        """Load a version; return the state and what had to go for it: the least recently used that nothing holds.

        Raises AdapterError when every slot is pinned or stands behind an alias.
        """
        others = [one for one in self.loaded if one.label != new.label]
        free = sorted((one for one in others if not self._held(one)), key=lambda one: last_used.get(one.label, 0.0))
        excess = len(others) + 1 - capacity
        if excess > len(free):
            msg = (
                f"all {capacity} slots hold adapters that are pinned or stand behind an alias; unload one, or raise "
                "engine.max_cpu_loras in the bundle"
            )
            raise AdapterError(msg)
        evicted = free[: max(excess, 0)]
        return self.changed(loaded=(*(one for one in others if one not in evicted), new)), evicted

    def unloaded(self, name: str, version: str) -> Registry:
        """Unload a version; raises AdapterError when it is not loaded or an alias stands for it."""
        if not self.holds(name, version):
            raise AdapterError(f"{name}@{version} is not loaded")
        if aliases := self.aliases_of(name, version):
            msg = f"{name}@{version} is {', '.join(aliases)}: promote another version first"
            raise AdapterError(msg)
        return self.changed(loaded=tuple(one for one in self.loaded if (one.name, one.version) != (name, version)))

    def without_alias(self, name: str, alias: str) -> Registry:
        """Take an alias away; raises AdapterError when it is `live` or not there."""
        names = self.adapters.get(name)
        if names is None or alias not in names.aliases:
            raise AdapterError(f"{name}@{alias} is not set")
        if alias == LIVE:
            raise AdapterError(f"{name}@{LIVE} cannot be taken away: promote another version instead")
        rest = {key: version for key, version in names.aliases.items() if key != alias}
        return self.changed(adapters={**self.adapters, name: names.model_copy(update={"aliases": rest})})

    def _held(self, one: Loaded) -> bool:
        return one.pinned or bool(self.aliases_of(one.name, one.version))

    def changed(self, **changes: object) -> Registry:
        """Return a copy with these fields, one generation on."""
        return self.model_copy(update={**changes, "generation": self.generation + 1})


class RegistryFile:
    """The state on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Registry:
        """Return the state; an empty one before the first change. Raises AdapterError when the file is not of this version."""
        try:
            return Registry.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return Registry()
        except ValidationError as error:
            msg = f"{self.path} cannot be read; move it away to begin anew with the packed adapters: {error.errors()[0]['msg']}"
            raise AdapterError(msg) from error

    def change(self, how: Callable[[Registry], Registry]) -> Registry:
        """Replace the state by what `how` makes of it; one at a time over all processes. Raises what `how` raises."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".flock"), timeout=10):
            before = self.read()
            after = how(before)
            if after != before:
                fresh = self.path.with_suffix(".new")
                fresh.write_text(after.model_dump_json(indent=2) + "\n", encoding="utf-8")
                fresh.replace(self.path)
            return after
