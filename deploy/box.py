"""The facts of a box that its deployment depends on: taken from a bundle by whoever knows one, and pure data here."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, JsonValue

GIB = 2**30
# Of the demo's box, 3.4 GB in use: the gateway with its embedder 0.67, weights and adapters 0.2, a KV cache of 0.5; the rest is
# Python, torch and vLLM.
_ENGINE_BYTES = 2 * GIB
_GATEWAY_BYTES = 700 * 2**20
_LEAST_CACHE_BYTES = GIB // 2
# Past this share of what saturates an engine, waiting grows faster than throughput.
_KEPT_SHARE = 0.7


class Box(BaseModel):
    """What is in a box, as far as its surroundings must know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="of the bundle")
    version: str = Field(description="of the Bento")
    gateway_service: str = Field(default="", description="the Bento's entry service; left out: the bundle's name")
    services: tuple[str, ...] = Field(default=("engine", "embedder"), description="the services beside it")
    model: str = Field(description="tag of the base model")
    recipe: str = Field(description="how its weights were made smaller")
    cpus: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="architectures that can run it, as Kubernetes names them, and the CPU flags it needs there",
    )
    gpus: int = Field(default=1, ge=1, description="GPUs of one replica of the engine, where it runs on any")
    weights_bytes: int = Field(ge=0, description="of everything in the model store")
    cache_bytes: int | None = Field(default=None, description="the KV cache that the bundle asks for; else the least there is")
    saturation: int = Field(ge=1, description="requests that one engine answers at once: max_num_seqs, or what was measured")
    engine: dict[str, JsonValue] = Field(
        default_factory=dict, description="what the engine's speed follows from: models, adapters, its arguments in the bundle"
    )
    routes: tuple[str, ...]
    variables: tuple[str, ...] = Field(default=(), description="${VARIABLE}s that the bundle reads from the environment")
    ports: tuple[int, ...] = Field(default=(), description="of the servers that the bundle names: stores and upstreams")
    open_to_all: bool = Field(default=False, description="callers need no key")
    keeps_state: tuple[str, ...] = Field(default=(), description="what is kept in the state folder: audit, uploads")
    sealed_texts: bool = Field(default=False, description="the audit trail keeps encrypted texts, and needs their key")

    @property
    def tag(self) -> str:
        """The Bento's tag."""
        return f"{self.name}:{self.version}"

    @property
    def engine_bytes(self) -> int:
        """The least memory, in bytes, with which an engine starts on a CPU."""
        return _ENGINE_BYTES + self.weights_bytes + (self.cache_bytes or _LEAST_CACHE_BYTES)

    @property
    def gateway_bytes(self) -> int:
        """The least memory, in bytes, of a gateway."""
        return _GATEWAY_BYTES

    def concurrency(self, saturation: int | None = None) -> int:
        """Return how many requests an engine should have before another is started."""
        return concurrency(saturation or self.saturation)


def concurrency(saturation: int) -> int:
    """Return how many requests an engine that so many saturate should have before another is started."""
    return max(math.floor(saturation * _KEPT_SHARE), 1)
