"""Adapters at run time: which versions the engine holds, which of them answers a request, and how that changes without a restart.

The registry file says what is to be served; `Slots` brings the engine to it, at start, after every change (also of another
replica) and after the engine was lost; one that sleeps, when a request shows that it lacks a version. A version is loaded under
its own name, `name@version`: vLLM keys its prefix cache by the name and the folder, so no answer is made of another version's
cache.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import hashlib
import itertools
import math
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import structlog

from adapters.manifest import AdapterError, Manifest, read_manifest
from adapters.registry import LIVE, Loaded, Reference, Registry, RegistryFile
from services.errors import AdapterRefused, EkibenError, EngineRefused, EngineUnavailable, UnknownModel

log = structlog.get_logger("ekiben")

CHANGE_SECONDS = 120.0


class AdapterEngine(Protocol):
    """What is needed of the engine."""

    async def adapters(self) -> frozenset[str]: ...  # noqa: D102
    async def load_adapter(self, name: str, folder: Path) -> None: ...  # noqa: D102
    async def unload_adapter(self, name: str) -> None: ...  # noqa: D102
    async def complete(self, path: str, payload: dict[str, Any]) -> dict[str, Any]: ...  # noqa: D102


class AdapterMetrics(Protocol):
    """What is told of the slots."""

    def slots(self, capacity: int, loaded: Mapping[str, int], pinned: int) -> None: ...  # noqa: D102
    def adapter_change(self, adapter: str, outcome: str, seconds: float) -> None: ...  # noqa: D102
    def adapter_evicted(self, adapter: str) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Shelf:
    """Where adapter versions lie: `folder` of a name and version (None: not there), its `tag`, and the gate that `check`s one."""

    folder: Callable[[str, str], Path | None]
    tag: Callable[[str, str], str]
    check: Callable[[Path], Manifest]


@dataclass(frozen=True)
class Served:
    """The adapter version that answers one request."""

    label: str
    tag: str
    labels: tuple[str, ...]
    """The answers that it was trained to give, where they are few."""


class Slots:
    """The adapters of one engine; `wake_seconds` is how long one that sleeps takes to answer, None where it never does."""

    def __init__(
        self,
        registry: RegistryFile,
        engine: AdapterEngine,
        shelf: Shelf,
        metrics: AdapterMetrics,
        *,
        capacity: int,
        wake_seconds: float | None = None,
    ) -> None:
        self._sleeps, self._wake_seconds = wake_seconds is not None, wake_seconds or 0.0
        self._file, self._engine, self._shelf, self._metrics = registry, engine, shelf, metrics
        self._capacity = capacity
        self._state = Registry()
        self._present: frozenset[str] = frozenset()
        self._failed: dict[str, str] = {}
        self._packed: Mapping[str, str] = {}
        self._elsewhere: set[str] = set()
        """Versions that only boxes of another Bento have."""
        self._last_used: dict[str, float] = {}
        self._manifests: dict[str, Manifest] = {}
        self._changing = asyncio.Lock()
        self._changed: Callable[[], None] = lambda: None

    def watch(self, changed: Callable[[], None]) -> None:
        """Let `changed` be called whenever other versions answer than before."""
        self._changed = changed

    @asynccontextmanager
    async def running(self, packed: Mapping[str, str], seconds: float = 1.0) -> AsyncGenerator[None]:
        """Keep the engine at what the registry says; `packed` maps each adapter of the bundle to its version."""
        self._packed = packed
        self._take(await asyncio.to_thread(self._file.change, lambda state: state.packed(packed, capacity=self._capacity)))
        self._changed()
        keeping = asyncio.create_task(self._keep(seconds))
        try:
            yield
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping

    async def _keep(self, seconds: float) -> None:
        while True:
            try:
                async with self._changing:
                    await self.reconcile()
            except Exception as error:  # noqa: BLE001  whatever it is, the next time may be better
                log.warning("adapters", kind=type(error).__name__, problem=str(error))
            await asyncio.sleep(seconds)

    async def reconcile(self) -> None:
        """Read the registry, and load and unload until the engine holds what it says; one that sleeps is left alone."""
        self._take(await asyncio.to_thread(self._file.read))
        if self._sleeps:
            wanted = self._wanted()
            for label in wanted.keys() - self._failed.keys():
                await self._learn(wanted[label])
            self._present = frozenset(wanted.keys() - self._failed.keys())
            return
        try:
            present = await self._engine.adapters()
        except EngineUnavailable:
            self._present = frozenset()  # it may come back empty
            return
        await self._fill(present)

    async def bring(self, label: str) -> bool:
        """Load what an engine that was started anew has not; False where that is no version to be served.

        Raises EngineUnavailable where the engine is away again, or does not take this version.
        """
        if label not in self._wanted():
            return False
        async with self._changing:
            try:
                await self._fill(await self._engine.adapters())
                loaded = label in self._present
            finally:
                self._present = frozenset(self._wanted().keys() - self._failed.keys())
        if label in self._failed:
            raise EngineUnavailable(f"Adapter {label} could not be loaded.")
        if not loaded:
            raise EngineUnavailable(f"Adapter {label} is being loaded; try again.")
        return True

    def _wanted(self) -> dict[str, Loaded]:
        wanted = {one.label: one for one in self._state.loaded}
        self._failed = {label: problem for label, problem in self._failed.items() if label in wanted}
        return wanted

    async def _fill(self, present: frozenset[str]) -> None:
        """Load and unload until an engine that holds `present` holds what the registry says."""
        wanted = self._wanted()
        for label in (present & wanted.keys()) - self._failed.keys():
            await self._learn(wanted[label])
        self._present = (present & wanted.keys()) - self._failed.keys()
        for label in present - wanted.keys():
            await self._engine.unload_adapter(label)
        for label in wanted.keys() - present - self._failed.keys():
            try:
                await self._into_engine(wanted[label])
            except EngineUnavailable as error:  # busy or lost: the next time may be better
                log.warning("adapter not loaded", adapter=label, problem=str(error))
            except (AdapterError, EngineRefused, OSError) as error:
                self._failed[label] = str(error)  # once is enough: the same files give the same refusal
                log.warning("adapter refused", adapter=label, problem=str(error))
            else:
                self._present |= {label}

    async def _learn(self, one: Loaded) -> None:
        """Remember a version's manifest; one that cannot be read is not served."""
        folder = self._shelf.folder(one.name, one.version)
        if one.label in self._manifests or folder is None:
            return
        try:
            self._manifests[one.label] = await asyncio.to_thread(read_manifest, folder)
        except AdapterError as error:
            self._failed[one.label] = str(error)
            log.warning("adapter refused", adapter=one.label, problem=str(error))

    def _take(self, state: Registry) -> None:
        if state == self._state:
            return
        self._state = state
        self._changed()
        count: dict[str, int] = dict.fromkeys(state.adapters, 0)
        for one in state.loaded:
            count[one.name] = count.get(one.name, 0) + 1
        self._metrics.slots(self._capacity, count, sum(one.pinned for one in state.loaded))

    async def _into_engine(self, one: Loaded) -> None:
        """Check a version, load it, and let it say a few words; what fails is taken out again."""
        began, most = time.monotonic(), CHANGE_SECONDS + self._wake_seconds
        try:
            async with asyncio.timeout(most):
                folder = await self._checked(one)
                await self._engine.load_adapter(one.label, folder)
                try:
                    await smoke(self._engine, one.label)
                except BaseException:
                    await self._engine.unload_adapter(one.label)
                    raise
        except TimeoutError as error:
            self._metrics.adapter_change(one.name, "error", time.monotonic() - began)
            raise EngineUnavailable(f"{one.label} was not loaded in {most:.0f} s; the engine is busy, try again") from error
        except (AdapterError, EkibenError):
            self._metrics.adapter_change(one.name, "refused", time.monotonic() - began)
            raise
        self._metrics.adapter_change(one.name, "ok", time.monotonic() - began)

    async def _checked(self, one: Loaded) -> Path:
        """Return the folder of a version that passed the gate."""
        folder = self._shelf.folder(one.name, one.version)
        if folder is None:
            self._elsewhere.add(one.label)
            raise AdapterError(f"{one.label} is not in the model store; `ekiben adapter add` puts it there")
        self._elsewhere.discard(one.label)
        self._manifests[one.label] = await asyncio.to_thread(self._shelf.check, folder)
        return folder

    def choose(self, shares: Mapping[str, float], key: str | None) -> Served:
        """Return the version that answers: by the shares, and for one `key` always the same.

        Raises UnknownModel where none is loaded, and EngineUnavailable where the one that was drawn is still being loaded.
        A reference whose alias is not set, or whose version is not loaded, leaves its share to the others.
        """
        held: list[tuple[str, str, float]] = []
        for text, share in shares.items():
            name, version = self._version(text)
            if version is not None and self._state.holds(name, version) and share > 0:
                held.append((name, version, share))
        if not held:
            raise UnknownModel(f"No adapter of this model is loaded ({', '.join(shares)}).", param="model")
        place = (random.random() if key is None else _place(key)) * sum(share for _, _, share in held)  # noqa: S311  no secret
        bounds = list(itertools.accumulate(share for _, _, share in held))
        name, version, _ = held[min(bisect.bisect_right(bounds, place), len(held) - 1)]
        label = f"{name}@{version}"
        if label in self._failed:  # why stands in the log and in the admin API: it may name paths
            raise EngineUnavailable(f"Adapter {label} could not be loaded.")
        if label not in self._present and not self._sleeps:
            raise EngineUnavailable(f"Adapter {label} is being loaded; try again.")
        self._last_used[label] = time.time()
        manifest = self._manifests.get(label)
        return Served(label, self._shelf.tag(name, version), tuple(manifest.labels) if manifest else ())

    def _version(self, text: str) -> tuple[str, str | None]:
        reference = Reference.parse(text)
        version = self._state.resolve(reference)
        if reference.pointer == LIVE and f"{reference.name}@{version}" in self._elsewhere:
            # During a rollout the boxes of the other Bento have made theirs the live one; each answers with its own.
            return reference.name, self._packed.get(reference.name, version)
        return reference.name, version

    def ready(self) -> bool:
        """Whether the engine holds what it should, but for what was refused; of one that sleeps this is not asked."""
        return self._sleeps or frozenset(one.label for one in self._state.loaded) - self._failed.keys() <= self._present

    def describe(self, shares: Mapping[str, float]) -> list[dict[str, Any]]:
        """Return what a route's shares stand for now."""
        described: list[dict[str, Any]] = []
        for text, share in shares.items():
            name, version = self._version(text)
            label = f"{name}@{version}"
            loaded = next((one for one in self._state.loaded if one.label == label), None)
            described.append({
                "reference": text, "share": share, "version": version, "tag": self._shelf.tag(name, version) if version else None,
                "loaded": label in self._present, "pinned": bool(loaded and loaded.pinned),
            })  # fmt: skip
        return described

    def tags(self, shares: Mapping[str, float]) -> list[str]:
        """Return the tags of the versions that may answer."""
        return [one["tag"] for one in self.describe(shares) if one["tag"] is not None]

    def overview(self) -> dict[str, Any]:
        """Return every slot, and what each alias stands for."""
        by_use = sorted(self._state.loaded, key=lambda one: self._last_used.get(one.label, 0.0), reverse=True)
        slots = [
            {
                "adapter": one.label, "aliases": self._state.aliases_of(one.name, one.version), "pinned": one.pinned,
                "ready": one.label in self._present, "problem": self._failed.get(one.label),
                "last_used": self._last_used.get(one.label),
            }
            for one in by_use
        ]  # fmt: skip
        names = {name: {"aliases": n.aliases, "history": n.history} for name, n in self._state.adapters.items()}
        return {"capacity": self._capacity, "slots": slots, "adapters": names}

    async def load(self, text: str, *, pin: bool) -> str:
        """Load a version beside what runs, or pin it anew; return `name@version`. Raises AdapterRefused and its kin."""
        async with self._change():
            return (await self._load(*self._known(text), pin=pin)).label

    async def unload(self, text: str) -> str:
        """Let a version go; return `name@version`. Raises AdapterRefused where an alias stands for it."""
        async with self._change():
            name, version = self._known(text)
            self._take(await asyncio.to_thread(self._file.change, lambda state: state.unloaded(name, version)))
            if self._sleeps:
                self._present -= {f"{name}@{version}"}  # the engine forgets it when it next sleeps
                return f"{name}@{version}"
            with contextlib.suppress(EngineUnavailable):  # an engine that is away forgets by itself
                await self._out_of_engine(f"{name}@{version}")
            return f"{name}@{version}"

    async def promote(self, text: str, alias: str) -> str:
        """Load a version unless it is there, then let an alias stand for it; return `name@version`."""
        async with self._change():
            name, version = self._known(text)
            pinned = any(one.pinned for one in self._state.loaded if one.label == f"{name}@{version}")
            await self._load(name, version, pin=pinned)
            self._take(await asyncio.to_thread(self._file.change, lambda state: state.pointed(name, version, alias)))
            return f"{name}@{version}"

    async def roll_back(self, name: str, alias: str) -> str:
        """Let an alias stand for what it stood for before; return `name@version`."""
        async with self._change():
            version = self._state.previous(name, alias)
            pinned = any(one.pinned for one in self._state.loaded if one.label == f"{name}@{version}")
            await self._load(name, version, pin=pinned)
            self._take(await asyncio.to_thread(self._file.change, lambda state: state.rolled_back(name, alias)))
            return f"{name}@{version}"

    @asynccontextmanager
    async def _change(self) -> AsyncGenerator[None]:
        async with self._changing:
            try:
                self._take(await asyncio.to_thread(self._file.read))
                yield
            except (AdapterError, EngineRefused) as error:
                raise AdapterRefused(str(error)) from error

    def _known(self, text: str) -> tuple[str, str]:
        name, version = self._version(text)
        if version is None:
            raise AdapterError(f"{text} stands for no version; write NAME@VERSION")
        if name not in self._state.adapters:
            names = ", ".join(sorted(self._state.adapters)) or "none"
            raise AdapterError(f"the bundle has no adapter named {name!r}, so no route could use it; there is: {names}")
        return name, version

    async def _load(self, name: str, version: str, *, pin: bool) -> Loaded:
        one = Loaded(name=name, version=version, pinned=pin)
        # Whether there is a slot is known before the engine is troubled.
        _, evicted = self._state.with_loaded(one, capacity=self._capacity, last_used=self._last_used)
        if one.label not in self._present:
            await self._checked(one)  # before another one has to go for it
            for gone in evicted:  # first: vLLM would evict whichever it likes
                await self._out_of_engine(gone.label)
                self._metrics.adapter_evicted(gone.name)
            await self._into_engine(one)
            self._failed.pop(one.label, None)

        def with_loaded(state: Registry) -> Registry:
            return state.with_loaded(one, capacity=self._capacity, last_used=self._last_used)[0]

        self._take(await asyncio.to_thread(self._file.change, with_loaded))
        self._present |= {one.label}
        return one

    async def _out_of_engine(self, label: str) -> None:
        self._present -= {label}
        await self._engine.unload_adapter(label)


async def smoke(engine: AdapterEngine, model: str) -> None:
    """Let a model say a few words.

    Raises AdapterError when it cannot, or its probabilities are no numbers; EngineUnavailable where the engine was lost or
    started anew meanwhile, which is not the adapter's fault.
    """
    payload = {"model": model, "prompt": "The", "max_tokens": 4, "temperature": 0, "logprobs": 1, "ignore_eos": True}
    try:
        body = await engine.complete("/v1/completions", payload)
        logprobs = body["choices"][0]["logprobs"]["token_logprobs"]
    except EngineUnavailable:
        if model not in await engine.adapters():
            raise EngineUnavailable(f"{model}: the engine was lost while it was tried; try again") from None
        raise AdapterError(f"{model}: was loaded, but the engine fails on it; the adapter does not fit the engine") from None
    except (EkibenError, KeyError, IndexError, TypeError) as error:
        if isinstance(error, EngineRefused) and error.status == HTTPStatus.NOT_FOUND:
            raise EngineUnavailable(f"{model}: the engine was started anew while it was tried; try again") from error
        raise AdapterError(f"{model}: was loaded, but cannot generate ({error}); the adapter does not fit the engine") from error
    if not logprobs or not all(isinstance(value, int | float) and math.isfinite(value) for value in logprobs):
        raise AdapterError(f"{model}: was loaded, but what it generates has no finite probabilities; train it again")


def _place(key: str) -> float:
    """Return a number in [0, 1) that is the same for the same key, on every replica."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
