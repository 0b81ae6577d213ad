"""Alerts of budgets reach the log, the metric and the webhook."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from accounts.budgets import Alert, Subject
from services.alerts import BudgetAlerts
from services.telemetry import Telemetry

SOFT = Alert(Subject("tenant", "acme"), "2026-03", "soft", 10_000_000, 8_100_000)


@pytest.fixture
async def hook():
    """A server that fails as often as it is told, and what it was sent."""
    received, failures = [], []

    async def receive(request):
        received.append(await request.json())
        return web.Response(status=failures.pop() if failures else 200)

    app = web.Application()
    app.router.add_post("/hook", receive)
    async with TestServer(app) as server:
        yield str(server.make_url("/hook")), received, failures


async def test_an_alert_is_logged_counted_and_posted(hook):
    url, received, failures = hook
    failures += [503, 302]
    registry = CollectorRegistry()
    alerts = BudgetAlerts(Telemetry(registry), url, pause_seconds=0)
    with capture_logs() as logs:
        alerts(SOFT)
        await alerts.aclose()

    assert len(received) == 3
    assert received[-1] == {
        "text": "The budget of the tenant acme for 2026-03 is at 81%: 8.100000 of 10.000000.", "kind": "tenant", "name": "acme",
        "period": "2026-03", "level": "soft", "limit_micros": 10_000_000, "spent_micros": 8_100_000,
    }  # fmt: skip
    assert [entry["event"] for entry in logs] == ["budget"]
    assert registry.get_sample_value("llm_budget_alerts_total", {"kind": "tenant", "level": "soft"}) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/secret", "no url"])
async def test_a_webhook_that_is_away_is_logged_without_its_url(url):
    alerts = BudgetAlerts(Telemetry(CollectorRegistry()), url, pause_seconds=0)
    with capture_logs() as logs:
        alerts(SOFT._replace(level="hard"))
        await alerts.aclose()

    assert logs[0]["text"].startswith("The budget of the tenant acme for 2026-03 is spent")
    assert logs[-1]["event"] == "budget alert not posted"
    assert url not in str(logs)
