"""What must be the same for an answer to be given again: everything that made it, hashed.

A scope is all of it but the last question; inside a scope questions may be compared by meaning. Two tenants, two sets of
roles, two versions of anything, or other sampling parameters are two scopes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FORM = 1  # of what is hashed and stored: raised when either changes, so that a new box reads nothing that an old one wrote


@dataclass(frozen=True, eq=False)
class Scope:
    """Where an answer may be given again.

    `versions` names every thing that makes an answer, with its version (route, model, adapter, prompt, index, policy, ...);
    `documents` is the version of documents that change while the index keeps its own; `parameters` is what else the engine is
    given (sampling, format, tools); `context` are the messages before the question. All of it must be JSON.
    """

    tenant: str
    labels: Collection[str]
    versions: Mapping[str, str | None]
    parameters: Mapping[str, Any]
    context: Sequence[Mapping[str, Any]] = ()
    documents: str | None = None

    @functools.cached_property
    def digest(self) -> str:
        """The scope as 64 hexadecimal digits; raises TypeError or ValueError where a part of it is not JSON."""
        return _digest(
            {
                "form": _FORM,
                "tenant": self.tenant,
                "labels": sorted(set(self.labels)),
                "versions": dict(self.versions),
                "documents": self.documents,
                "parameters": dict(self.parameters),
                "context": list(self.context),
            }
        )

    def key(self, question: str) -> str:
        """Return the key of a question asked in this scope: 64 hexadecimal digits."""
        return _digest({"scope": self.digest, "question": question})


def divide(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return a conversation's context and its question: the text of the last message, where that is the user's and only text.

    Otherwise the question is empty and all is context. What else the last message holds (a name) belongs to the context.
    """
    *before, last = (dict(message) for message in messages)
    content = last.get("content")
    if isinstance(content, list) and content and all(part.get("type") == "text" for part in content):
        content = "\n".join(part["text"] for part in content)
    if last.get("role") != "user" or not isinstance(content, str) or not content.strip():
        return [*before, last], ""
    return [*before, {name: value for name, value in last.items() if name != "content"}], content


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
