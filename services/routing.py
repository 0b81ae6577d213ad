"""From a public model name to a Route: everything, with its version, that an answer will be made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from adapters.registry import Reference
from services.caller import ANYBODY, Caller
from services.errors import Forbidden, UnknownModel
from services.terms import Limits, Price

if TYPE_CHECKING:
    from pydantic import BaseModel

    from guards.policy import Policy
    from prompts.template import PromptVersion
    from services.bundle import LoadedBundle, NothingFound, PolicyRule, Search
    from services.lock import Lock
    from services.parameters import SamplingParameters
    from services.slots import Served
    from services.terms import AnswerCache, Targets


_NO_ANSWER = {"description", "limits", "price", "cache"}
"""What changes no answer."""


class Adapters(Protocol):
    """What is needed of the adapters at run time."""

    def choose(self, shares: Mapping[str, float], key: str | None) -> Served: ...  # noqa: D102


class Policies(Protocol):
    """What is needed of the guard policies at run time."""

    def get(self, name: str) -> Policy: ...  # noqa: D102


@dataclass(frozen=True)
class Route:
    """A public model name and what answers under it; the tags are those of the model store."""

    name: str
    description: str
    model: str
    adapters: Mapping[str, float]
    """Shares of the adapter versions or aliases that may answer; which one does is chosen for each request."""
    adapter: str | None
    index: str | None
    engine_model: str
    judge_model: str
    """The base model under the engine's name for it: what is asked for verdicts."""
    prompt: PromptVersion
    policy: Policy
    rules: tuple[PolicyRule, ...]
    """Other policies for some callers."""
    collection: str | None
    search: Search
    nothing_found: NothingFound
    parameters: SamplingParameters
    only_labels: bool = False
    labels: tuple[str, ...] = field(default=())
    """The only answers there are, where the route answers with its adapter's labels."""
    max_tokens: int | None = None
    """The longest answer that may be asked for."""
    stop_on_repetition: bool = False
    targets: Targets | None = None
    """What answers; None is the box's own engine."""
    limits: Limits = field(default_factory=Limits)
    price: Price = field(default_factory=Price)
    cache: AnswerCache | None = None
    settings: str = ""
    """A digest of what bundle.yaml says of how this route answers: an answer of before is not given again once that changed."""
    caller: Caller = ANYBODY
    """Who asked: what may be found for the answer."""

    def open_to(self, caller: Caller) -> bool:
        """Whether the caller's key is for this route and for every adapter that may answer under it."""
        return caller.may_use(self.name, {Reference.parse(text).name for text in self.adapters})

    def versions(self) -> dict[str, str | None]:
        """Return the name and version of each thing that makes an answer of this route."""
        return {
            "route": self.name,
            "model": self.model,
            "adapter": self.adapter,
            "prompt": self.prompt.label,
            "index": self.index,
            "policy": self.policy.label,
        }


def _digest(*sections: BaseModel | None) -> str:
    told = [section and section.model_dump_json(exclude=_NO_ANSWER) for section in sections]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def check_open(route: Route, caller: Caller) -> None:
    """Raise Forbidden unless the caller may use a route."""
    if not route.open_to(caller):
        raise Forbidden(f"This API key may not use the model {route.name!r}.", param="model")


class Routes:
    """All routes of a bundle."""

    def __init__(self, loaded: LoadedBundle, lock: Lock, adapters: Adapters, policies: Policies) -> None:
        self._adapters, self._policies = adapters, policies
        self._routes = {
            name: Route(
                name=name,
                description=route.description,
                model=lock.model,
                adapters=route.shares(),
                adapter=None,
                index=lock.indexes.get(route.collection) if route.collection else None,
                engine_model=loaded.bundle.model.name,
                judge_model=loaded.bundle.model.name,
                prompt=loaded.prompts[route.prompt],
                policy=loaded.policies[route.policy],
                rules=route.policies,
                collection=route.collection,
                search=route.search,
                nothing_found=route.nothing_found,
                parameters=route.parameters,
                only_labels=route.only_labels,
                max_tokens=route.max_tokens,
                stop_on_repetition=route.stop_on_repetition,
                targets=route.targets,
                limits=route.limits,
                price=route.price,
                cache=route.cache,
                settings=_digest(route, loaded.bundle.collections.get(route.collection or "")),
            )
            for name, route in loaded.bundle.routes.items()
        }

    @property
    def all(self) -> dict[str, Route]:
        """Every route by name, with its policy as it is now."""
        return {name: replace(route, policy=self._policies.get(route.policy.name)) for name, route in self._routes.items()}

    def find(self, name: str, user: str | None = None, caller: Caller = ANYBODY) -> Route:
        """Return the route with the policy for this caller and the adapter that answers; one user keeps to one version.

        Raises UnknownModel, also when no adapter of the route is loaded: the base model never answers in its place. Raises
        Forbidden where the caller's key is not for it.
        """
        route = self._routes.get(name)
        if route is None:
            names = ", ".join(sorted(name for name, one in self._routes.items() if one.open_to(caller)))
            raise UnknownModel(f"The model {name[:100]!r} does not exist; there is: {names}", param="model")
        check_open(route, caller)
        rule = next((rule for rule in route.rules if caller.fits(rule.tenant, rule.role)), None)
        route = replace(route, policy=self._policies.get(rule.policy if rule else route.policy.name), caller=caller)
        if not route.adapters:
            return route
        served = self._adapters.choose(route.adapters, None if user is None else f"{name}:{user}")
        labels = served.labels if route.only_labels else ()
        return replace(route, adapter=served.tag, engine_model=served.label, labels=labels)
