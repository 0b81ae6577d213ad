"""Metrics and logs of the request path. Labels come from the bundle, so their number is bounded; no text is recorded."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import structlog

from services.errors import EkibenError
from services.meter import Call, prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from guards.guard import Finding, Guard
    from services.routing import Route
    from services.terms import Price

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
log = structlog.get_logger("ekiben")


def configure_logs() -> None:
    """One JSON object a line, on standard output."""
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.add_log_level,
            structlog.processors.JSONRenderer(),
        ]
    )


@dataclass
class Record:
    """What is known of one request so far; telemetry writes it down when the request ends, however it ends."""

    route: str
    id: str = ""
    action: str = ""
    """What was asked for: chat, completion, search."""
    status: Literal["ok", "refused", "error", "cancelled"] = "error"
    target: str | None = None
    """Which of the route's targets answered."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that go with the answer."""
    fresh: bool = False
    """Whether the caller wants no answer from the cache."""
    cached: str | None = None
    """How the answer was found in the cache: exact or semantic."""
    calls: list[Call] = field(default_factory=list)
    """Of engines; what they took is what the request took."""
    texts: dict[str, str] = field(default_factory=dict)
    """Question and answer, where the audit trail keeps them."""
    seconds: float = 0.0
    micros: int = 0
    """What it cost, in millionths of the bundle's currency."""
    first_token_seconds: float | None = None
    findings: list[Finding] = field(default_factory=list)
    guard: Guard | None = None
    started: float = field(default_factory=time.monotonic)

    def first_token(self) -> None:
        """Note that the first piece of the answer has arrived."""
        if self.first_token_seconds is None:
            self.first_token_seconds = time.monotonic() - self.started

    def begin(self, payload: Mapping[str, Any], price: Price | None = None) -> Call:
        """Note that an engine is called now, at a price of its own or the route's."""
        self.calls.append(Call(prompt_tokens(payload), price))
        return self.calls[-1]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(call.tokens.prompt for call in self.calls)

    @property
    def cached_tokens(self) -> int:
        """Those that an engine had in its cache."""
        return sum(call.tokens.cached for call in self.calls)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(call.tokens.completion for call in self.calls)


class Telemetry:
    """The only owner of the llm_* metrics of the gateway."""

    def __init__(self, registry: Any = None) -> None:
        # Metrics made before BentoML has named its folder for several processes would not be seen by it.
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        registry = registry or REGISTRY
        self.written: Callable[[Route, Record], None] = lambda _route, _record: None
        self._announced: set[tuple[str, ...]] = set()
        self._requests = Counter("llm_requests_total", "Requests, by outcome", ["model", "status"], registry=registry)
        self._duration = Histogram(
            "llm_request_duration_seconds", "Time to the end of the answer", ["model"], buckets=SECONDS, registry=registry
        )
        self._first_token = Histogram(
            "llm_time_to_first_token_seconds", "Time to the first token", ["model"], buckets=SECONDS, registry=registry
        )
        self._generated = Counter("llm_tokens_generated_total", "Tokens of answers", ["model"], registry=registry)
        self._prompt = Counter("llm_tokens_prompt_total", "Tokens of prompts", ["model"], registry=registry)
        self._active = Gauge(
            "llm_active_requests", "Requests under way", ["model"], multiprocess_mode="livesum", registry=registry
        )
        self._info = Gauge(
            "llm_model_info", "1 for each route, with what it is made of",
            ["model", "base", "adapter", "prompt", "index", "policy"], multiprocess_mode="mostrecent", registry=registry,
        )  # fmt: skip
        self._guard = Counter(
            "llm_guard_events_total", "What guards found", ["model", "stage", "detector", "action"], registry=registry
        )
        self._guarding = Histogram(
            "llm_guard_duration_seconds", "Time that guards took of a request", ["model"], buckets=FAST, registry=registry
        )

        self._slots = Gauge(
            "llm_adapter_slots", "Adapter versions that the engine may keep", multiprocess_mode="mostrecent", registry=registry
        )
        self._loaded = Gauge(
            "llm_adapter_versions_loaded", "Versions of an adapter that the engine keeps", ["adapter"],
            multiprocess_mode="mostrecent", registry=registry,
        )  # fmt: skip
        self._pinned = Gauge(
            "llm_adapter_slots_pinned", "Slots whose version is never evicted", multiprocess_mode="mostrecent", registry=registry
        )
        self._evicted = Counter(
            "llm_adapter_evictions_total", "Versions that made room for another", ["adapter"], registry=registry
        )
        self._changes = Histogram(
            "llm_adapter_load_duration_seconds", "Time to check, load and try a version", ["adapter", "outcome"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip

        self._cost = Counter("llm_cost_currency_total", "Cost of answers, in the bundle's currency", ["model"], registry=registry)
        self._cache = Counter(
            "llm_cache_requests_total", "Look-ups of answers: exact, semantic, miss", ["model", "result"], registry=registry
        )
        self._limited = Counter("llm_rate_limited_total", "Requests over a limit", ["subject", "limit"], registry=registry)
        self._overspent = Counter("llm_budget_refusals_total", "Requests over a budget", ["subject"], registry=registry)
        self._alerts = Counter(
            "llm_budget_alerts_total", "Budgets at their soft share, and spent", ["kind", "level"], registry=registry
        )
        self._attempts = Counter(
            "llm_target_attempts_total",
            "Attempts on what answers a route, by what became of them",
            ["target", "reason"],
            registry=registry,
        )
        self._circuit = Gauge(
            "llm_target_circuit_open",
            "1 while a target is left alone",
            ["target"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._early = Counter("llm_stream_early_stops_total", "Answers ended before their end", ["reason"], registry=registry)
        self._shed = Counter("llm_queue_shed_total", "Requests that found no place at the engine", ["reason"], registry=registry)
        self._queued = Histogram(
            "llm_queue_wait_seconds", "Time that requests waited for the engine", buckets=SECONDS, registry=registry
        )
        self._degraded = Gauge(
            "llm_degraded", "1 while a store cannot be reached: limits, cache, ledger, keys, audit", ["store"],
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip

    def attempt(self, target: str, reason: str) -> None:
        """Note what became of one attempt on a target."""
        self._attempts.labels(target, reason).inc()

    def circuit(self, target: str, adapter: str | None, state: str) -> None:
        """Note a breaker's change: `state` is closed, open or half_open."""
        self._circuit.labels(target).set(state == "open")
        log.warning("circuit", target=target, adapter=adapter, state=state)

    def stopped_early(self, reason: str) -> None:
        """Note an answer that was ended before its end: repetition."""
        self._early.labels(reason).inc()

    def waited(self, seconds: float) -> None:
        """Note how long a request waited for the engine."""
        self._queued.observe(seconds)

    def shed(self, reason: str) -> None:
        """Note a request that found no place: `reason` is full or deadline."""
        self._shed.labels(reason).inc()

    def limited(self, subject: str, limit: str) -> None:
        """Note a request over a limit of a key, tenant or route."""
        self._limited.labels(subject, limit).inc()

    def overspent(self, subject: str) -> None:
        """Note a request over a budget of a key or tenant."""
        self._overspent.labels(subject).inc()

    def budget_alert(self, kind: str, level: str) -> None:
        """Note an alert about a budget of a key or a tenant: `level` is soft or hard."""
        self._alerts.labels(kind, level).inc()

    def looked_up(self, model: str, result: str) -> None:
        """Note a look-up in the cache of answers: exact, semantic or miss."""
        self._cache.labels(model, result).inc()

    def degraded(self, store: str, *, away: bool) -> None:
        """Note that a store is away, or back."""
        self._degraded.labels(store).set(away)

    def routes(self, routes: list[Route], tags: Callable[[Mapping[str, float]], list[str]]) -> None:
        """Announce the routes; `tags` names the adapter versions of each, none for the base model's."""
        now = {
            (route.name, route.model, tag, route.prompt.label, route.index or "", route.policy.label)
            for route in routes
            for tag in tags(route.adapters) or [""]
        }
        for labels in self._announced - now:
            self._info.labels(*labels).set(0)
        for labels in now:
            self._info.labels(*labels).set(1)
        self._announced = now

    def slots(self, capacity: int, loaded: Mapping[str, int], pinned: int) -> None:
        """Note what the slots hold: versions by adapter."""
        self._slots.set(capacity)
        self._pinned.set(pinned)
        for adapter, count in loaded.items():
            self._loaded.labels(adapter).set(count)

    def adapter_change(self, adapter: str, outcome: str, seconds: float) -> None:
        """Note a load: `outcome` is ok, refused or error."""
        self._changes.labels(adapter, outcome).observe(seconds)

    def adapter_evicted(self, adapter: str) -> None:
        """Note that a version made room."""
        self._evicted.labels(adapter).inc()

    @contextmanager
    def request(self, route: Route, action: str = "", blank: Record | None = None) -> Generator[Record]:
        """Record one request, always: also when it fails or its caller leaves; `written` is told of it at its end."""
        record = blank or Record(route.name)
        record.action = action
        self._active.labels(route.name).inc()
        try:
            yield record
        except (asyncio.CancelledError, GeneratorExit):
            record.status = "cancelled"
            raise
        except EkibenError as error:
            record.status = "error" if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "refused"
            raise
        finally:
            record.seconds = seconds = time.monotonic() - record.started
            self._active.labels(route.name).dec()
            self._requests.labels(route.name, record.status).inc()
            self._duration.labels(route.name).observe(seconds)
            if record.first_token_seconds is not None:
                self._first_token.labels(route.name).observe(record.first_token_seconds)
            self._generated.labels(route.name).inc(record.completion_tokens)
            self._prompt.labels(route.name).inc(record.prompt_tokens)
            self._cost.labels(route.name).inc(record.micros / 1_000_000)
            if record.guard is not None:
                self._guarding.labels(route.name).observe(record.guard.seconds)
            for finding in record.findings:
                action = f"shadow-{finding.action}" if finding.shadow else finding.action
                self._guard.labels(route.name, finding.stage, finding.detector, action).inc(finding.count)
            log.info(
                "request",
                **{k: v for k, v in route.versions().items() if v is not None},
                **({"key": route.caller.key.prefix} if route.caller.key else {}),
                status=record.status,
                seconds=round(seconds, 4),
                first_token_seconds=record.first_token_seconds and round(record.first_token_seconds, 4),
                prompt_tokens=record.prompt_tokens,
                completion_tokens=record.completion_tokens,
                findings=[finding.as_dict() for finding in record.findings],
            )
            self.written(route, record)


def merge_metrics(ours: str, theirs: str) -> str:
    """Join two expositions; of families that both have, ours are kept: a family may stand only once."""
    have = {line.split()[2] for line in ours.splitlines() if line.startswith("# TYPE ")}
    kept: list[str] = []
    skipping = False
    for line in theirs.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            skipping = line.split()[2] in have
        if not skipping:
            kept.append(line)
    return "\n".join([ours.rstrip("\n"), *kept, ""])
