"""Guard policies: what to look for at which stage, and what to do about it. YAML files, versioned by content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from guards.pii import ENTITIES


class PolicyError(ValueError):
    """A policy file that cannot be used; the message names the file and the remedy."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Pii(_Strict):
    entities: tuple[str, ...] = Field(default=ENTITIES, description="entities to look for; all when left out")
    threshold: float = Field(default=0.4, ge=0, le=1, description="score from which a span counts")

    @field_validator("entities")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - set(ENTITIES)):
            msg = f"unknown entities {', '.join(unknown)}; known are {', '.join(ENTITIES)}"
            raise ValueError(msg)
        return tuple(sorted(set(value)))


class InputPii(_Pii):
    """Personal data in what the caller sends."""

    action: Literal["allow", "flag", "mask", "block"] = "mask"


class OutputPii(_Pii):
    """Personal data in what the model answers; masked in streams too, through a hold-back window."""

    action: Literal["allow", "mask"] = "mask"


class Injection(_Strict):
    """Prompt injection in user and tool messages."""

    action: Literal["allow", "flag", "block"] = "block"
    threshold: float = Field(default=0.7, ge=0, le=1, description="score from which the action is taken")


class PassageInjection(_Strict):
    """Prompt injection in retrieved passages: a passage is left out, the request goes on."""

    action: Literal["allow", "flag", "drop"] = "drop"
    threshold: float = Field(default=0.7, ge=0, le=1)


class InputStage(_Strict):
    """Checks of the caller's messages, before anything else sees them."""

    pii: InputPii = InputPii()
    injection: Injection = Injection()


class PassageStage(_Strict):
    """Checks of retrieved passages, before they reach the prompt."""

    injection: PassageInjection = PassageInjection()


class OutputStage(_Strict):
    """Checks of the answer, before the caller sees it."""

    pii: OutputPii = OutputPii()


class PolicyContent(_Strict):
    """A policy file; what is left out has the safe default."""

    description: str = ""
    input: InputStage = InputStage()
    passages: PassageStage = PassageStage()
    output: OutputStage = OutputStage()


@dataclass(frozen=True)
class Policy:
    """One immutable version of a policy; `version` is the first 12 hex digits of its content's sha256."""

    name: str
    version: str
    content: PolicyContent

    @property
    def label(self) -> str:
        """`name@version`, as answers name it."""
        return f"{self.name}@{self.version}"


def load_policy(name: str, path: Path) -> Policy:
    """Read a policy file; raises PolicyError."""
    try:
        content = PolicyContent.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except FileNotFoundError as error:
        msg = f"{path} does not exist; make it or correct the path"
        raise PolicyError(msg) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        msg = f"{path} is not a guard policy: {error}"
        raise PolicyError(msg) from error
    canonical = json.dumps(content.model_dump(exclude={"description"}), sort_keys=True)
    return Policy(name, hashlib.sha256(canonical.encode()).hexdigest()[:12], content)
