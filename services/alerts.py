"""Alerts of budgets: a log line, a metric, and a POST to a webhook."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp

from accounts.prices import shown
from services.telemetry import log

if TYPE_CHECKING:
    from accounts.budgets import Alert
    from services.telemetry import Telemetry

TRIES = 3
TIMEOUT_SECONDS = 5.0


class BudgetAlerts:
    """Tells alerts; called on the event loop, it returns at once."""

    def __init__(self, telemetry: Telemetry, webhook: str | None = None, *, pause_seconds: float = 1.0) -> None:
        """`webhook` is a URL, which may hold a secret and is never logged."""
        self._telemetry, self._webhook, self._pause = telemetry, webhook, pause_seconds
        self._posting: set[asyncio.Task[None]] = set()

    def __call__(self, alert: Alert) -> None:
        """Tell one."""
        message = body(alert)
        self._telemetry.budget_alert(alert.subject.kind, alert.level)
        log.warning("budget", **message)
        if self._webhook:
            task = asyncio.create_task(self._post(message))
            self._posting.add(task)
            task.add_done_callback(self._posting.discard)

    async def aclose(self) -> None:
        """Wait for what is being posted."""
        await asyncio.gather(*self._posting)

    async def _post(self, message: dict[str, Any]) -> None:
        timeout, problem = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS), ""
        for number in range(TRIES):
            try:
                async with (
                    aiohttp.ClientSession(timeout=timeout) as session,
                    session.post(str(self._webhook), json=message, allow_redirects=False) as response,
                ):
                    if HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                        return
                    problem = str(response.status)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                problem = type(error).__name__
            await asyncio.sleep(self._pause * 2**number)
        log.error("budget alert not posted", problem=problem, tries=TRIES)


def body(alert: Alert) -> dict[str, Any]:
    """Return what is posted; `text` is what chats such as Slack show."""
    kind, name = alert.subject
    share = "is spent" if alert.level == "hard" else f"is at {alert.spent / alert.limit:.0%}" if alert.limit else "is spent"
    return {
        "text": f"The budget of the {kind} {name} for {alert.period} {share}: {shown(alert.spent)} of {shown(alert.limit)}.",
        "kind": kind, "name": name, "period": alert.period, "level": alert.level,
        "limit_micros": alert.limit, "spent_micros": alert.spent,
    }  # fmt: skip
