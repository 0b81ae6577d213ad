"""The engine of a bundle, ready to be started: what `bentoml serve` runs beside the gateway, and `ekiben engine serve` alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from services.bundle import load_bundle
from services.engine import UnusableEngine, find_device, free_memory_bytes, missing_libraries, vllm_arguments, vllm_environment
from services.layout import this_machine
from services.store import stored_path
from services.tuning import layout_here

if TYPE_CHECKING:
    from services.layout import Layout, Machine
    from services.lock import Lock
    from services.settings import Settings


@dataclass(frozen=True)
class Launch:
    """vLLM's arguments, and the variables of its environment; no secret is among them."""

    arguments: list[str]
    environment: dict[str, str]


def engine_launch(
    settings: Settings,
    lock: Lock,
    *,
    host: str = "127.0.0.1",
    fit: Callable[[Layout, Machine], Layout] | None = None,
    drain_seconds: int = 0,
) -> Launch:
    """Return how the engine of the settings' bundle is started on this machine, with the adapters that were packed.

    `fit` may change a CPU engine's layout. `drain_seconds` is what answers under way get at a SIGTERM.

    Raises:
        BundleError: the bundle cannot be used.
        LockError: what bundle.lock names is not in the store.
        UnusableEngine: this machine lacks what vLLM needs, or the bundle asks for what vLLM cannot do here.
    """
    device = find_device(settings)
    if message := missing_libraries(device):
        raise UnusableEngine(message)
    if find_spec("vllm") is None:
        raise UnusableEngine("vLLM is not installed here: install requirements/cpu.txt, or requirements/gpu.txt on a GPU")
    bundle, machine = load_bundle(settings.bundle, packed=True).bundle, this_machine()
    adapters = {f"{name}@{tag.rpartition(':')[2]}": stored_path(tag) for name, tag in lock.adapters.items()}
    layout = layout_here(bundle, lock.model, machine, settings.cache_dir, lora=bool(adapters))
    layout = fit(layout, machine) if fit else layout
    arguments = vllm_arguments(
        bundle, model=stored_path(lock.model), adapters=adapters, device=device, host=host,
        port=settings.engine_port, free_bytes=free_memory_bytes(), layout=layout,
        draft=stored_path(lock.draft) if lock.draft else None,
    )  # fmt: skip
    if drain_seconds:
        arguments += ["--shutdown-timeout", str(drain_seconds)]
    return Launch(arguments, vllm_environment(device, machine.cores, layout))
