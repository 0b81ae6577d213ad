"""Passages made shorter for a prompt: the sentences that say most about the question stay, word for word and in their order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rag.lexical import tokens
from rag.sentences import sentences

GAP = " … "
NEAR = 0.35  # of a sentence's worth that its neighbours get: what is asked and its answer may stand side by side


def compressed(passages: Sequence[str], question: str, share: float) -> list[str]:
    """Return the passages with the sentences worth most to the question, `share` of all characters or a little more.

    A sentence is worth what the question's terms in it are worth, rare ones most, and a part of what its neighbours are. A
    passage that keeps no sentence becomes empty; left-out sentences leave a mark. With a share of 1 nothing changes.
    """
    cut = [sentences(passage) for passage in passages]
    if share >= 1 or not any(cut):
        return list(passages)
    wanted = set(tokens(question))
    terms = [[wanted & set(tokens(sentence)) for sentence in parts] for parts in cut]
    held = Counter(term for parts in terms for found in parts for term in found)
    count = sum(map(len, cut))
    rarity = {term: math.log(1 + (count - df + 0.5) / (df + 0.5)) for term, df in held.items()}
    own = [[sum(rarity[term] for term in found) for found in parts] for parts in terms]
    order = sorted(
        ((number, place) for number, parts in enumerate(cut) for place, sentence in enumerate(parts) if sentence.strip()),
        key=lambda at: -_worth(own[at[0]], at[1]),
    )
    left = share * sum(map(len, passages))
    kept: set[tuple[int, int]] = set()
    for number, place in order:
        if left <= 0:
            break
        kept.add((number, place))
        left -= len(cut[number][place])
    return [
        _joined([sentence if (number, place) in kept else None for place, sentence in enumerate(parts)])
        for number, parts in enumerate(cut)
    ]


def _worth(own: list[float], place: int) -> float:
    near = own[place - 1] if place else 0.0
    if place + 1 < len(own):
        near = max(near, own[place + 1])
    return own[place] + NEAR * near


def _joined(parts: list[str | None]) -> str:
    text = ""
    gap = False
    for part in parts:
        if part is None:
            gap = bool(text)
            continue
        text = text.rstrip() + GAP + part.lstrip() if gap else text + part
        gap = False
    return text.strip()
