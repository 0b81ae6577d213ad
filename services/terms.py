"""The terms on which routes answer, as bundle.yaml states them: limits, prices, budgets, the cache, targets, the audit trail."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Amount = Annotated[Decimal, Field(ge=0, max_digits=18, decimal_places=9)]


class Strict(BaseModel):
    """A section of bundle.yaml: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(Strict):
    """How much may be asked; what is left out is not limited."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1, description="of prompts and answers together")
    concurrency: int | None = Field(default=None, ge=1, description="requests at once")

    @field_validator("*", mode="before")
    @classmethod
    def _some(cls, value: object) -> object:
        if value == 0:
            raise ValueError("0 would let nobody in; leave it out where there is no limit")
        return value


class Price(Strict):
    """What a million tokens cost, in the bundle's currency."""

    prompt: Amount = Decimal(0)
    cached: Amount | None = Field(default=None, description="of prompts that the engine had in its cache; left out: as prompt")
    completion: Amount = Decimal(0)


class Budget(Strict):
    """What may be spent, in the bundle's currency; days and months are UTC's."""

    day: Amount | None = None
    month: Amount | None = None


class Tenant(Strict):
    """What all callers of one tenant together may ask and spend."""

    limits: Limits = Limits()
    budget: Budget = Budget()
    weight: int = Field(default=1, ge=1, le=100, description="turns in a row when requests wait for the engine")


class Alerts(Strict):
    """When somebody is told that a budget runs out: by the log, a metric, and EKIBEN_ALERT_WEBHOOK."""

    share: float = Field(default=0.8, gt=0, le=1, description="of a budget; told once a day or month, and again when it is spent")


class Queue(Strict):
    """Requests that wait for the engine: as many as it takes at once are there, tenants take turns, the rest is shed with 503."""

    capacity: int | None = Field(default=None, ge=1, description="requests at the engine; left out: engine.max_num_seqs")
    length: int = Field(default=256, ge=0, description="requests that may wait")
    deadline_seconds: float = Field(default=30, gt=0, le=3600, description="longest wait")


class AnswerCache(Strict):
    """Answers given again for the same question of the same tenant, as long as nothing that made them has changed."""

    semantic: bool = Field(default=False, description="also for a question of the same meaning")
    max_wrong: float = Field(
        default=0.01, ge=0.005, lt=1,
        description="semantic: the bound to the share of look-ups that are answered wrongly; of 0.005, 0.01, 0.02, 0.025, 0.03 "
        "and 0.05 the nearest below counts",
    )  # fmt: skip
    ttl_seconds: int = Field(default=3600, ge=1)
    stale_seconds: int = Field(default=0, ge=0, description="so long after that, an answer is given when every target has failed")
    max_temperature: float = Field(
        default=0, ge=0, le=2, description="requests above are not answered from the cache; neither are calls of tools"
    )


class CacheStore(Strict):
    """What the cache may hold in this process; with EKIBEN_REDIS_URL answers are there, for all replicas."""

    max_bytes: int = Field(default=64 * 2**20, ge=2**16)
    max_entries: int = Field(default=10_000, ge=1)


class Upstream(Strict):
    """A server that speaks OpenAI's API: another Ekiben, or anybody's."""

    url: str = Field(pattern=r"^https?://", description="up to and without /v1")
    key: str | None = Field(
        default=None,
        pattern=r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$",
        description="its API key: ${VARIABLE} of the environment",
    )
    health: str | None = Field(
        default=None, pattern=r"^/", description="path that answers 2xx while it is well; /readyz of an Ekiben"
    )

    @model_validator(mode="after")
    def _plain(self) -> Self:
        parts = urlsplit(self.url)
        if not parts.hostname or parts.username is not None or parts.query:
            raise ValueError("a URL with a host, and without a name, a password or a query; the key has a field of its own")
        if parts.path.rstrip("/").endswith("/v1"):
            raise ValueError("leave /v1 out: it is added")
        return self


class Target(Strict):
    """Something that can answer a route."""

    upstream: str | None = Field(default=None, description="one of upstreams; left out: the box's own engine")
    model: str | None = Field(default=None, description="the model's name there; the box's own engine needs none")
    weight: float = Field(default=1, ge=0, le=1000, description="share of the requests; 0: asked only when others fail")
    price: Price | None = Field(default=None, description="left out: the route's")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.upstream is None) != (self.model is None):
            raise ValueError("upstream and model go together: name both, or neither for the box's own engine")
        return self


class Targets(Strict):
    """What may answer a route, and in which order it is asked; what fails before its first token is followed by the next."""

    of: tuple[Target, ...] = Field(min_length=1)
    strategy: Literal["fixed", "weighted", "least-busy", "cheapest", "complexity", "affinity"] = Field(
        default="fixed",
        description="fixed: as listed; weighted: by weight, a `user` keeps to one; least-busy; cheapest: of those whose first "
        "token comes within latency_seconds; complexity: from weak to strong, by how hard the question is; affinity: prompts "
        "that begin alike go to the same one, whose prefix cache holds them",
    )
    thresholds: tuple[float, ...] = Field(
        default=(), description="complexity: from which estimate (0 to 1) on the next target is asked, one fewer than targets"
    )
    latency_seconds: float | None = Field(default=None, gt=0, description="cheapest: time to the first token that is still good")
    deadline_seconds: float = Field(
        default=120, gt=0, le=3600, description="over all attempts: to the first token of a stream, to the end of a whole answer"
    )
    patience_seconds: float | None = Field(
        default=None,
        gt=0,
        description="to the first token of one target, before the next is asked; left out: its share of the deadline",
    )
    retries: int = Field(default=1, ge=0, le=5, description="of each target, before its first token only")
    apology: str | None = Field(
        default=None, description="the answer when every target has failed; left out: 503. A cached answer goes before it"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        wanted = len(self.of) - 1
        if self.strategy != "complexity" and self.thresholds:
            raise ValueError("thresholds are for strategy complexity; leave them out")
        if self.strategy == "complexity" and len(self.thresholds) != wanted:
            told = f"thresholds: {len(self.of)} targets need {wanted}, and there {'is' if len(self.thresholds) == 1 else 'are'}"
            raise ValueError(f"{told} {len(self.thresholds)}; `ekiben route eval` measures which divide your questions well")
        if list(self.thresholds) != sorted(self.thresholds) or any(not 0 <= one <= 1 for one in self.thresholds):
            raise ValueError("thresholds lie between 0 and 1, and ascend")
        if self.latency_seconds is not None and self.strategy != "cheapest":
            raise ValueError("latency_seconds is for strategy cheapest; leave it out")
        return self


class Audit(Strict):
    """The trail of who asked what of which version, and what became of it."""

    enabled: bool = False
    texts: Literal["none", "masked", "encrypted"] = Field(
        default="none",
        description="of questions and answers: none; masked, as the guards let them through; encrypted too, with "
        "EKIBEN_AUDIT_TEXT_KEY",
    )
    retention_days: int | None = Field(
        default=None,
        ge=1,
        description="what is older goes when `ekiben audit prune` is run without --days; left out: nothing does",
    )

    @model_validator(mode="after")
    def _on(self) -> Self:
        if self.texts != "none" and not self.enabled:
            raise ValueError("texts are kept in the trail; write enabled: true beside them, or leave them out")
        return self
