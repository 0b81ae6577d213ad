"""Guard policies: at which stage which detector looks, and what is done about what it finds. YAML, versioned by content.

A stage is a list of checks, worked through in order; the same detector may stand in it several times, each under
an `id` of its own. What a file says nothing of is not looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from guards import names
from guards.moderation import DEFAULT_LISTS, WordlistError, read_wordlist
from guards.pii import DEFAULT_ENTITIES, ENTITIES

SECRETS = tuple(entity for entity in ENTITIES if entity.startswith("SECRET_"))
PERSONAL = tuple(entity for entity in ENTITIES if entity not in SECRETS)
STAGES = ("input", "tools", "passages", "output")


class PolicyError(ValueError):
    """A policy file that cannot be used; the message names the file and the remedy."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Check(_Strict):
    """One look of one detector."""

    id: str = Field(default="", max_length=40, pattern=r"^[a-z0-9-]*$", description="name in logs and metrics; the detector's")
    shadow: bool = Field(default=False, description="note what would be done, and do nothing")
    deadline_ms: int = Field(default=5000, ge=1, description="milliseconds after which the check counts as failed")
    on_failure: Literal["closed", "open"] = Field(
        default="closed", description="closed: a failed check refuses the request; open: it is noted and the request goes on"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("id"):
            return {**data, "id": data.get("detector", "")}
        return data


class _ValueCheck(_Check):
    """Values to be hidden. `placeholder` is put back in the answer; `hash` is the same for the same value, everywhere."""

    action: Literal["flag", "mask", "hash", "placeholder", "drop", "block"]
    entities: tuple[str, ...]
    threshold: float = Field(default=0.4, ge=0, le=1, description="score from which a value counts")


class PiiCheck(_ValueCheck):
    """Personal data by pattern, with check digits and context."""

    detector: Literal["pii"]
    entities: tuple[str, ...] = Field(
        default=tuple(e for e in DEFAULT_ENTITIES if e not in SECRETS), description="what to look for"
    )

    @field_validator("entities")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known_entities(value, PERSONAL)


class SecretsCheck(_ValueCheck):
    """Keys, tokens, passwords and private keys."""

    detector: Literal["secrets"]
    entities: tuple[str, ...] = Field(default=SECRETS, description="what to look for")

    @field_validator("entities")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known_entities(value, SECRETS)


class NamesCheck(_ValueCheck):
    """Names of persons and places, by the bundle's model for names."""

    detector: Literal["names"]
    entities: tuple[str, ...] = Field(default=names.DEFAULT_ENTITIES, description="what to look for")

    @field_validator("entities")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known_entities(value, names.ENTITIES)


class InjectionCheck(_Check):
    """Prompt injection and jailbreak, by rules and a classifier.

    A passage is dropped on a rule's word alone; where only the classifier speaks it is quoted as data.
    """

    detector: Literal["injection"]
    action: Literal["flag", "block", "drop", "quote"]
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="score from which the action is taken; what was measured for the source, if unset"
    )


class LeakCheck(_Check):
    """The route's system prompt in an answer."""

    detector: Literal["leak"]
    action: Literal["flag", "block"]
    canary: bool = Field(default=False, description="put an unguessable mark into the system prompt, and look for it too")


class ModerationCheck(_Check):
    """Phrases of word lists."""

    detector: Literal["moderation"]
    action: Literal["flag", "mask", "block"]
    lists: tuple[Path, ...] = Field(
        default=(), description="word lists, relative to this file; with none, the small ones that come with Ekiben"
    )


class GroundednessCheck(_Check):
    """Numbers, dates, names, quotations and negations of an answer that its passages do not carry."""

    detector: Literal["groundedness"]
    action: Literal["annotate", "regenerate", "block"]
    threshold: float = Field(default=0.5, ge=0, le=1, description="score below which an answer is not grounded")


class JudgeCheck(_Check):
    """A model's verdict: slow, and no better than the model. At the output the answer waits for it."""

    detector: Literal["judge"]
    question: Literal["injection", "moderation", "groundedness"]
    action: Literal["flag", "block"]
    threshold: float = Field(default=0.5, ge=0, le=1, description="verdict from which the action is taken")


ValueCheck = PiiCheck | SecretsCheck | NamesCheck
Check = Annotated[
    PiiCheck | SecretsCheck | NamesCheck | InjectionCheck | LeakCheck | ModerationCheck | GroundednessCheck | JudgeCheck,
    Field(discriminator="detector"),
]
_HIDE = frozenset({"flag", "mask", "hash", "placeholder", "block"})
# The actions that make sense, by stage and detector; what is not here cannot be asked for.
_ACTIONS: dict[str, dict[str, frozenset[str]]] = {
    "input": {
        **dict.fromkeys(("pii", "secrets", "names"), _HIDE), "injection": frozenset({"flag", "block"}),
        "moderation": frozenset({"flag", "mask", "block"}), "judge": frozenset({"flag", "block"}),
    },
    "tools": {**dict.fromkeys(("pii", "secrets", "names"), _HIDE), "injection": frozenset({"flag", "block"})},
    "passages": {
        **dict.fromkeys(("pii", "secrets", "names"), (_HIDE - {"block"}) | {"drop"}),
        "injection": frozenset({"flag", "drop", "quote"}),
    },
    "output": {
        **dict.fromkeys(("pii", "secrets", "names"), _HIDE - {"placeholder"}), "leak": frozenset({"flag", "block"}),
        "moderation": frozenset({"flag", "mask", "block"}), "groundedness": frozenset({"annotate", "regenerate", "block"}),
        "judge": frozenset({"flag", "block"}),
    },
}  # fmt: skip


class PolicyContent(_Strict):
    """A policy file."""

    description: str = ""
    input: tuple[Check, ...] = Field(default=(), description="what the caller says")
    tools: tuple[Check, ...] | None = Field(
        default=None, description="what tools gave back; the checks of `input` that fit, where this is left out"
    )
    passages: tuple[Check, ...] = Field(default=(), description="what was retrieved from documents")
    output: tuple[Check, ...] = Field(default=(), description="what the model answers")
    restore: tuple[Literal["text", "urls", "tool_arguments"], ...] = Field(
        default=("text",), description="where placeholders are put back in answers"
    )

    @model_validator(mode="after")
    def _fits(self) -> PolicyContent:
        for stage in STAGES:
            checks: tuple[Check, ...] = getattr(self, stage) or ()
            for check in checks:
                allowed = _ACTIONS[stage].get(check.detector, frozenset())
                if check.action not in allowed:
                    does = f"only {', '.join(sorted(allowed))}" if allowed else "nothing"
                    msg = f"{stage}: {check.detector} can do {does} there, not {check.action!r}"
                    raise ValueError(msg)
            ids = [check.id for check in checks]
            if twice := sorted({name for name in ids if ids.count(name) > 1}):
                msg = f"{stage}: several checks are named {', '.join(twice)}; give each an `id` of its own"
                raise ValueError(msg)
        return self

    @property
    def tool_checks(self) -> tuple[Check, ...]:
        """The checks of tools' results."""
        if self.tools is not None:
            return self.tools
        return tuple(check for check in self.input if check.action in _ACTIONS["tools"].get(check.detector, ()))

    def checks(self) -> Iterator[Check]:
        """Yield the checks of all stages."""
        for stage in STAGES:
            yield from getattr(self, stage) or ()


@dataclass(frozen=True)
class Policy:
    """One immutable version of a policy; `version` is the first 12 hex digits of its content's sha256."""

    name: str
    version: str
    content: PolicyContent
    folder: Path = Path()
    """What the paths of word lists are relative to."""

    @property
    def label(self) -> str:
        """`name@version`, as answers name it."""
        return f"{self.name}@{self.version}"


def load_policy(name: str, path: Path) -> Policy:
    """Read a policy file; raises PolicyError."""
    try:
        content = PolicyContent.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        moderating = [check for check in content.checks() if isinstance(check, ModerationCheck)]
        lists = [one for check in moderating for one in [path.parent / own for own in check.lists] or DEFAULT_LISTS]
        phrases = [read_wordlist(one) for one in lists]
    except FileNotFoundError as error:
        msg = f"{error.filename} does not exist; make it or correct the path"
        raise PolicyError(msg) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, WordlistError) as error:
        msg = f"{path} is not a guard policy: {error}"
        raise PolicyError(msg) from error
    canonical = [
        content.model_dump(mode="json", exclude={"description"}),
        [[(phrase.category, phrase.text) for phrase in one] for one in phrases],
    ]
    version = hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]
    return Policy(name, version, content, path.parent)


def _known_entities(value: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := sorted(set(value) - set(known)):
        msg = f"unknown entities {', '.join(unknown)}; known are {', '.join(known)}"
        raise ValueError(msg)
    return tuple(sorted(set(value)))
