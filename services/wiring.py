"""The parts of a box that cost, limit, remember and write down, as its bundle and settings want them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from re import Match
from typing import TYPE_CHECKING

from accounts.admission import Admission
from accounts.audit import AuditLog
from accounts.chain import derived
from accounts.database import Database
from accounts.ledger import Ledger
from accounts.rates import open_rates
from cache.answers import WAIT_SECONDS, Answers
from cache.calibration import load_calibration
from cache.redis_store import RedisStore
from cache.semantic import Matcher
from cache.store import MemoryStore, Store
from services.accounting import Accounting
from services.advice import VARIABLE
from services.alerts import BudgetAlerts
from services.backends import Backends, Server
from services.caching import FACTS
from services.engine_client import EngineClient
from services.settings import Settings, environment
from services.telemetry import Telemetry, log
from services.terms import Price
from services.waking import Adapters, SleepingEngine

if TYPE_CHECKING:
    from services.bundle import Bundle
    from services.terms import AnswerCache

SILENCE_SECONDS = 600
"""An upstream that says nothing for so long in mid-stream is lost: nobody else would notice."""


class MissingVariable(ValueError):
    """The bundle needs a variable of the environment that is not set."""


def filled(text: str) -> str:
    """Return a text of the bundle with its ${VARIABLE}s from the environment; raises MissingVariable."""

    def value(found: Match[str]) -> str:
        told = environment(found[1])
        if told is None:
            raise MissingVariable(f"bundle.yaml asks for the variable {found[1]}, which is not set; set it and start again")
        return told

    return VARIABLE.sub(value, text)


@asynccontextmanager
async def open_accounting(
    bundle: Bundle, settings: Settings, telemetry: Telemetry, database: Database
) -> AsyncGenerator[Accounting]:
    """Yield the limits, budgets and the trail of a box; raises AuditFailed, MissingVariable and ValueError."""
    if bundle.audit.enabled and bundle.audit.texts == "encrypted" and settings.audit_text_key is None:
        raise MissingVariable(
            "bundle.yaml keeps encrypted texts in the audit trail: set EKIBEN_AUDIT_TEXT_KEY, or audit.texts to none"
        )
    redis = settings.redis_url.get_secret_value() if settings.redis_url else None
    async with AsyncExitStack() as stack:
        rates = await stack.enter_async_context(
            open_rates(redis, on_change=lambda shared: telemetry.degraded("limits", away=not shared))
        )
        telemetry.degraded("limits", away=False)
        accounting = Accounting(telemetry, rates, tenants=bundle.tenants, soft=bundle.alerts.share, texts=bundle.audit.texts)
        if has_costs(bundle):
            webhook = settings.alert_webhook.get_secret_value() if settings.alert_webhook else None
            alerts = await stack.enter_async_context(aclosing(BudgetAlerts(telemetry, webhook)))

            def troubled(message: str) -> None:
                telemetry.degraded("ledger", away=ledger.away)
                if message:
                    log.error("spend", message=message)

            ledger = Ledger(database.engine, alerts, troubled)
            accounting.ledger = await stack.enter_async_context(ledger.running())
        if bundle.audit.enabled:
            key, text_key = (
                secret.get_secret_value() if secret else None for secret in (settings.audit_key, settings.audit_text_key)
            )
            accounting.audit = stack.enter_context(
                AuditLog(
                    settings.audit(bundle.name),
                    derived(key, "chain") if key else None,
                    derived(text_key, "texts") if text_key else None,
                )
            )
        telemetry.written = accounting.write
        yield accounting


def has_costs(bundle: Bundle) -> bool:
    """Whether anything of a bundle costs, or may have a budget: then spend is written to the database."""
    priced = any(
        price is not None and price != Price()
        for route in bundle.routes.values()
        for price in (route.price, *(target.price for target in (route.targets.of if route.targets else ())))
    )
    return priced or bool(bundle.tenants) or bundle.callers.anonymous is not True


def engine_client(settings: Settings) -> EngineClient:
    """Return the client of the box's own engine."""
    wake = settings.engine_wake_seconds if settings.engine_sleeps else None
    return EngineClient(settings.engine, key=settings.engine_token, wake=wake)


def own_engine(client: EngineClient, adapters: Adapters, settings: Settings) -> Server:
    """Return the box's own engine as requests ask it."""
    return SleepingEngine(client, adapters, settings.engine_wake_seconds) if settings.engine_sleeps else client


@asynccontextmanager
async def open_backends(bundle: Bundle, engine: Server, telemetry: Telemetry) -> AsyncGenerator[Backends]:
    """Yield what answers the routes; raises MissingVariable."""
    queue = bundle.queue
    admission = Admission(
        queue.capacity or bundle.engine.max_num_seqs, queue.length, queue.deadline_seconds,
        {name: tenant.weight for name, tenant in bundle.tenants.items()},
    )  # fmt: skip
    if isinstance(engine, SleepingEngine):
        engine.told = admission.prolong
        admission.prolong(engine.waking_seconds)
    hardness = None
    if any(route.targets and route.targets.strategy == "complexity" for route in bundle.routes.values()):
        from targets.complexity import load_complexity

        hardness = load_complexity().score
    async with AsyncExitStack() as stack:
        upstreams: dict[str, EngineClient] = {}
        for name, told in bundle.upstreams.items():
            client = EngineClient(
                told.url, key=filled(told.key) if told.key else None, health=told.health, silence=SILENCE_SECONDS
            )
            upstreams[name] = await stack.enter_async_context(client)
        backends = Backends(engine, telemetry, upstreams, admission, hardness)
        await stack.enter_async_context(backends.watched())
        yield backends


@asynccontextmanager
async def open_caches(
    bundle: Bundle, settings: Settings, telemetry: Telemetry, embed: Callable[[str], Awaitable[Sequence[float]]]
) -> AsyncGenerator[dict[str, Answers]]:
    """Yield the cache of each route that has one; `embed` returns a question's vector."""

    async def vector(text: str) -> Sequence[float] | None:
        try:
            return await embed(text)
        except Exception:  # noqa: BLE001  without its vector a question is found by its words
            return None

    def store(told: AnswerCache) -> Store:
        kept = told.ttl_seconds + told.stale_seconds
        if settings.redis_url is None:
            return MemoryStore(kept, bundle.cache.max_entries, bundle.cache.max_bytes)
        telemetry.degraded("cache", away=False)
        return RedisStore(
            settings.redis_url.get_secret_value(), ttl=kept, failed=partial(_lost, telemetry),
            restored=partial(telemetry.degraded, "cache", away=False),
        )  # fmt: skip

    def opened(name: str, told: AnswerCache, store: Store) -> Answers:
        matcher = Matcher(load_calibration(embedder=bundle.embedder.name), FACTS, told.max_wrong) if told.semantic else None
        heard = partial(telemetry.looked_up, name)
        return Answers(store, matcher, vector if matcher else None, wait=wait, good=told.ttl_seconds, heard=heard)

    wait = WAIT_SECONDS + (settings.engine_wake_seconds if settings.engine_sleeps else 0)

    async with AsyncExitStack() as stack:
        caches: dict[str, Answers] = {}
        for name, route in bundle.routes.items():
            if route.cache is not None:
                kept = store(route.cache)
                stack.push_async_callback(kept.close)
                caches[name] = opened(name, route.cache, kept)
        yield caches


def _lost(telemetry: Telemetry, operation: str, error: Exception) -> None:
    if not isinstance(error, ValueError):  # one that cannot be read is a miss, and no loss of the server
        telemetry.degraded("cache", away=True)
    log.warning("cache", operation=operation, kind=type(error).__name__)
