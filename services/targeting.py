"""Which targets of a route are asked, in which order: its strategy, and what this process knows of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from services.meter import CHARACTERS_PER_TOKEN, prompt_text
from targets.affinity import PrefixAffinity, prefix_blocks
from targets.choice import Candidate, by_complexity, cheapest, fixed, least_busy, weighted
from targets.load import Load

if TYPE_CHECKING:
    from services.routing import Route
    from services.terms import Target

OWN = "engine"
"""The name of the box's own engine among targets."""
ANSWER_TOKENS = 256
"""Of an answer whose longest length nobody names; an estimate."""


class Knowledge:
    """Load, health and prefixes of all targets; `hardness` estimates from 0 to 1 how hard a question is."""

    def __init__(self, hardness: Callable[[str], float] | None = None) -> None:
        self._hardness = hardness
        self._loads: dict[str, Load] = defaultdict(Load)
        self._ill: set[str] = set()
        self._prefixes: dict[str, PrefixAffinity] = defaultdict(PrefixAffinity)

    def load(self, name: str) -> Load:
        """Return what a target has under way."""
        return self._loads[name]

    def checked(self, upstream: str, *, healthy: bool) -> None:
        """Note whether an upstream is well."""
        if not healthy:
            self._ill.add(upstream)
        elif upstream in self._ill:
            self._ill.discard(upstream)
            for name in [name for name in self._loads if name.partition("/")[0] == upstream]:
                for prefixes in self._prefixes.values():
                    prefixes.forget(name)  # it may have begun anew, with an empty cache

    def sent(self, route: Route, name: str, payload: Mapping[str, Any]) -> None:
        """Note which prompt a target has read."""
        if route.targets is not None and route.targets.strategy == "affinity":
            self._prefixes[route.name].sent(name, prefix_blocks(prompt_text(payload), route.adapter))

    def order(
        self, route: Route, payload: Mapping[str, Any], *, question: str = "", user: str | None = None
    ) -> list[tuple[str, Target]]:
        """Return the route's targets by name, the one to be asked first before the others."""
        told = route.targets
        assert told is not None  # noqa: S101  asked only where there are targets
        named = {named_of(target, route): target for target in told.of}
        candidates = [self._candidate(name, target, route) for name, target in named.items()]
        match told.strategy:
            case "fixed":
                order = fixed(candidates)
            case "weighted":
                order = weighted(candidates, f"{route.name}:{user}" if user else None)
            case "least-busy":
                order = least_busy(candidates)
            case "cheapest":
                tokens_out = payload.get("max_tokens") or payload.get("max_completion_tokens") or ANSWER_TOKENS
                tokens_in = len(prompt_text(payload)) / CHARACTERS_PER_TOKEN
                order = cheapest(candidates, tokens_in=tokens_in, tokens_out=tokens_out, budget=told.latency_seconds)
            case "complexity":
                order = by_complexity(candidates, self._hardness(question) if self._hardness else 0.0, told.thresholds)
            case "affinity":
                order = self._prefixes[route.name].order(candidates, prefix_blocks(prompt_text(payload), route.adapter))
        return [(candidate.name, named[candidate.name]) for candidate in order]

    def _candidate(self, name: str, target: Target, route: Route) -> Candidate:
        load, price = self._loads[name], target.price or route.price
        return Candidate(
            name, weight=target.weight, price_in=float(price.prompt) / 1000, price_out=float(price.completion) / 1000,
            in_flight=load.in_flight, ttft=load.ttft, latency=load.latency, healthy=target.upstream not in self._ill,
        )  # fmt: skip


def named_of(target: Target, route: Route) -> str:
    """Return the name under which a target is known, in metrics too."""
    return OWN if target.upstream is None else f"{target.upstream}/{target.model or route.engine_model}"
