"""From a public model name to a Route: everything, with its version, that an answer will be made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.errors import UnknownModel

if TYPE_CHECKING:
    from guards.policy import Policy
    from prompts.template import PromptVersion
    from services.bundle import LoadedBundle
    from services.lock import Lock
    from services.parameters import SamplingParameters


@dataclass(frozen=True)
class Route:
    """A public model name and what answers under it; the tags are those of the model store."""

    name: str
    description: str
    model: str
    adapter: str | None
    index: str | None
    engine_model: str
    prompt: PromptVersion
    policy: Policy
    collection: str | None
    parameters: SamplingParameters

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


class Routes:
    """All routes of a bundle."""

    def __init__(self, loaded: LoadedBundle, lock: Lock) -> None:
        self.all = {
            name: Route(
                name=name,
                description=route.description,
                model=lock.model,
                adapter=lock.adapters[route.adapter] if route.adapter else None,
                index=lock.indexes[route.collection] if route.collection else None,
                engine_model=route.adapter or loaded.bundle.model.name,
                prompt=loaded.prompts[route.prompt],
                policy=loaded.policies[route.policy],
                collection=route.collection,
                parameters=route.parameters,
            )
            for name, route in loaded.bundle.routes.items()
        }

    def find(self, name: str) -> Route:
        """Return the route; raises UnknownModel."""
        route = self.all.get(name)
        if route is None:
            names = ", ".join(sorted(self.all))
            raise UnknownModel(f"The model {name[:100]!r} does not exist; there is: {names}", param="model")
        return route
