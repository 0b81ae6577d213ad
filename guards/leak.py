"""Does an answer give the system prompt away? A canary, and runs of characters that answer and prompt have in common.

Both texts are reduced to letters and digits, lower case, without invisible characters; a suffix automaton of the prompt
then knows after each character of the answer how long a piece of the prompt it ends on. So spacing, case, punctuation,
width and the way a stream is cut make no difference.

Not seen: a prompt that is paraphrased, translated, summarised or encoded (only the canary is also known in base64, hex and
ROT13), and prompts of fewer than eight words or fourteen characters, which say nothing worth keeping.
"""

# ruff: noqa: E501  patterns and word lists are read whole

from __future__ import annotations

import base64
import codecs
import functools
import hashlib
import hmac
import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from guards.normalize import normalize

RUN_LATIN = 40  # letters of eight words
RUN_CHINESE = 14
CANARY_RUN = 12  # of a canary's 24 characters
SHARE = 0.5  # of the prompt, in runs of at least half the length that is a leak by itself

_PLACEHOLDER = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_COMMONPLACE = re.compile(
    r"you are (?:an? |the )?(?:very )?(?:helpful|friendly|knowledgeable|useful|harmless|honest|polite|professional)?(?:,? (?:and )?(?:helpful|harmless|honest|friendly))*"
    r" ?(?:ai )?(?:language model|assistant|chatbot)|answer the (?:user's )?questions?(?: below)?|(?:based|using) (?:only )?(?:on )?the (?:following |given |provided )?(?:context|documents|passages|information)"
    r"|if you (?:do not|don't) know the answer,?(?: just)? say (?:so|that you don't know)|let's think step by step"
    r"|你是(?:一个|一名|一位)?[^,，。]{0,6}?(?:智能|人工智能|AI)?(?:助手|助理)|请?(?:根据|基于)(?:以下|上述|给定的?)(?:内容|资料|文档|信息|上下文)回答(?:用户的?)?问题",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Leak:
    """A leak from `start` to `end` (exclusive) of the answer: the canary, one long run, or many short ones of the prompt."""

    start: int
    end: int
    kind: Literal["canary", "run", "share"]


def canary(secret: bytes, name: str) -> str:
    """Return the marker of a prompt version: 24 hex digits, stable, and not to be guessed without the secret.

    It belongs into the system prompt, with the request never to show it. Raises ValueError for a secret under 16 bytes.
    """
    if len(secret) < 16:  # noqa: PLR2004  bytes: what can be guessed is no secret
        raise ValueError("the secret of canaries must have 16 bytes or more")
    return hmac.new(secret, b"canary:" + name.encode(), hashlib.sha256).hexdigest()[:24]


@functools.lru_cache(maxsize=8192)
def _fold(char: str) -> str:
    return "".join(c for c in normalize(char).text.lower() if c.isalnum())


def _squeeze(text: str) -> str:
    return "".join(map(_fold, text))


def _weight(char: str) -> float:
    return 1 / RUN_LATIN if char < "\u2e80" else 1 / RUN_CHINESE


class _Automaton:
    """Suffix automaton of some texts (Blumer et al., 1985): every substring is a path from state 0."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.edges: list[dict[str, int]] = [{}]
        self.link, self.length = array("l", [-1]), array("l", [0])
        for text in texts:
            last = 0
            for char in text:
                last = self._extend(last, char)

    def step(self, state: int, length: int, char: str) -> tuple[int, int]:
        """Follow one character; return the state and the length of the longest suffix that is in the texts."""
        while state and char not in self.edges[state]:
            state = self.link[state]
            length = self.length[state]
        if char in self.edges[state]:
            return self.edges[state][char], length + 1
        return 0, 0

    def _add(self, length: int, edges: dict[str, int], link: int) -> int:
        self.edges.append(edges)
        self.length.append(length)
        self.link.append(link)
        return len(self.edges) - 1

    def _split(self, at: int, char: str, target: int) -> int:
        clone = self._add(self.length[at] + 1, dict(self.edges[target]), self.link[target])
        self.link[target] = clone
        while at >= 0 and self.edges[at].get(char) == target:
            self.edges[at][char] = clone
            at = self.link[at]
        return clone

    def _extend(self, last: int, char: str) -> int:
        if char in self.edges[last]:  # a text before this one went the same way
            target = self.edges[last][char]
            return target if self.length[target] == self.length[last] + 1 else self._split(last, char, target)
        new, at = self._add(self.length[last] + 1, {}, 0), last
        while at >= 0 and char not in self.edges[at]:
            self.edges[at][char] = new
            at = self.link[at]
        if at >= 0:
            target = self.edges[at][char]
            self.link[new] = target if self.length[target] == self.length[at] + 1 else self._split(at, char, target)
        return new


class LeakDetector:
    """What must not be shown: a system prompt and its canary. Immutable, one object serves all requests of a prompt.

    `system_prompt` is the template as it was written: placeholders (`{{ question }}`) and commonplaces ("You are a helpful
    assistant") are no secret. `public` are further texts of which nothing is one.
    """

    def __init__(self, system_prompt: str, canary: str = "", public: Iterable[str] = ()) -> None:
        text = system_prompt.replace(canary, "\n{{}}\n") if canary else system_prompt
        for known in public:
            text = text.replace(known, "\n{{}}\n") if known else text
        parts = [_squeeze(part) for piece in _PLACEHOLDER.split(text) for part in _COMMONPLACE.split(piece)]
        self.weight = sum(_weight(char) for part in parts for char in part)
        self.prompt = _Automaton(piece for part in parts for piece in (part, part[::-1]))
        self.canary = _Automaton(_disguises(canary))

    def stream(self) -> LeakStream:
        """Return a watch over one answer."""
        return LeakStream(self)

    def find(self, text: str) -> Leak | None:
        """Return the first leak of a whole answer; it ends where it became certain."""
        return self.stream().feed(text)


@dataclass
class LeakStream:
    """One answer as it arrives: call `feed` with each piece, show all but the last `hold()` characters."""

    detector: LeakDetector
    leak: Leak | None = None
    _read: int = 0
    _origin: list[int] = field(default_factory=list)
    _weights: list[float] = field(default_factory=lambda: [0.0])
    _prompt: tuple[int, int] = (0, 0)
    _canary: tuple[int, int] = (0, 0)
    _runs: dict[str, float] = field(default_factory=dict)
    _letters: list[str] = field(default_factory=list)

    def feed(self, piece: str) -> Leak | None:
        """Return the leak as soon as there certainly is one, and from then on."""
        for char in piece:
            if self.leak is None:
                for letter in _fold(char):
                    self._step(letter)
            self._read += 1
        return self.leak

    def hold(self) -> int:
        """Return how many characters at the end belong to a run that may become a leak, or are one."""
        if self.leak is not None:
            return self._read - self.leak.start
        length = max(self._prompt[1], self._canary[1])
        return self._read - self._origin[-length] if length else 0

    def _step(self, letter: str) -> None:
        if self.leak is not None:
            return
        self._origin.append(self._read)
        self._letters.append(letter)
        self._weights.append(self._weights[-1] + _weight(letter))
        before = self._prompt[1]
        self._prompt = self.detector.prompt.step(*self._prompt, letter)
        self._canary = self.detector.canary.step(*self._canary, letter)
        if self._prompt[1] <= before:
            self._note_run(before, end=len(self._letters) - 1)
        if self._canary[1] >= CANARY_RUN:
            self._found("canary", self._canary[1])
        elif self._run(self._prompt[1]) >= 1:
            self._found("run", self._prompt[1])
        elif sum(self._runs.values()) >= max(1.0, SHARE * self.detector.weight):
            self._found("share", self._prompt[1] or 1)

    def _run(self, length: int) -> float:
        return self._weights[-1] - self._weights[-1 - length] + 1e-9

    def _note_run(self, length: int, end: int) -> None:
        weight = self._weights[end] - self._weights[end - length]
        if weight >= 0.5:  # noqa: PLR2004  half of a leak
            self._runs["".join(self._letters[end - length : end])] = weight

    def _found(self, kind: Literal["canary", "run", "share"], length: int) -> None:
        self.leak = Leak(self._origin[-length], self._read + 1, kind)


def _disguises(marker: str) -> list[str]:
    """Return the canary as it stands, reversed, in hex, ROT13 and base64 at its three alignments; empty for none."""
    if not marker:
        return []
    raw = marker.encode()
    # The first and last character of a base64 piece depend on what stands beside it.
    coded = [base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")[(0, 2, 3)[shift] : -1] for shift in range(3)]
    return [_squeeze(form) for form in (marker, marker[::-1], raw.hex(), codecs.encode(marker, "rot13"), *coded)]
