"""Alerts on the box's own metrics, for Prometheus wherever it runs."""

from __future__ import annotations

from typing import Any

from deploy.box import Box

_FIRST_TOKEN = "histogram_quantile(0.95, sum by (le, model) (rate(llm_time_to_first_token_seconds_bucket[10m])))"  # noqa: S105  of a model
_FAILED = 'sum(rate(llm_requests_total{status="error"}[5m])) / sum(rate(llm_requests_total[5m]))'


def rules(box: Box, *, first_token_seconds: float) -> list[dict[str, Any]]:
    """Return the groups of rules, as a rule file and a PrometheusRule have them."""
    late = f"{first_token_seconds:g}"
    alerts = [
        _alert("LlmErrors", f"{_FAILED} > 0.02", "5m", "More than 2% of the requests fail.", severity="critical"),
        _alert(
            "LlmFirstTokenLate",
            f"{_FIRST_TOKEN} > {late}",
            "10m",
            f"{{{{ $labels.model }}}}: 5% of first tokens take over {late} s.",
        ),
        _alert("LlmQueueSheds", "sum(rate(llm_queue_shed_total[5m])) > 0", "5m", "The queue to the engine is full, or too slow."),
        _alert(
            "LlmDegraded", "max by (store) (llm_degraded) == 1", "2m", "{{ $labels.store }} is away; each gateway helps itself."
        ),
        _alert(
            "LlmTargetOpen",
            "max by (target) (llm_target_circuit_open) == 1",
            "5m",
            "{{ $labels.target }} fails, and is left alone.",
        ),
        _alert(
            "LlmBudgetSpent",
            'sum by (kind) (increase(llm_budget_alerts_total{level="hard"}[1h])) > 0',
            "0m",
            "A budget of a {{ $labels.kind }} is spent.",
        ),
    ]
    recorded = [
        {"record": "llm:requests:rate5m", "expr": "sum by (model, status) (rate(llm_requests_total[5m]))"},
        {"record": "llm:tokens_generated:rate5m", "expr": "sum by (model) (rate(llm_tokens_generated_total[5m]))"},
        {"record": "llm:active_requests:sum", "expr": "sum(llm_active_requests)"},
    ]
    return [{"name": f"{box.name}.records", "rules": recorded}, {"name": f"{box.name}.alerts", "rules": alerts}]


def _alert(name: str, expression: str, lasting: str, summary: str, *, severity: str = "warning") -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }
