"""What one answer of a route is worth: against its references and its passages, its citations, and whether it is due at all.

Deterministic: the claim checker of `guards.claims` holds sentences against passages, and no model judges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from guards.claims import check
from guards.sentences import CITATION, split
from rag.answers import against
from rag.judgements import Question
from rag.language import language_of

_APOLOGY = re.compile(
    r"^\W*(?:(?:i['’]?\s?a?m|we['’]?\s?a?re)\s+)?(?:(?:very\s+)?sorry|(?:my\s+)?apologies)\b[^.]{0,12}\W*$|^\W*(?:很|非常)?(?:抱歉|对不起|不好意思)\W*$",
    re.IGNORECASE,
)
_SAYS = re.compile(r"\w")


@dataclass(frozen=True)
class Shown:
    """An answer as its caller sees it."""

    text: str
    passages: tuple[str, ...] | None = None
    """In the order of their numbers, from 1; None where the server does not tell what it was shown."""
    sources: tuple[str, ...] = ()
    """The documents that the passages are from."""
    nothing_found: bool = False
    """The route did not ask its model, as nothing was found."""
    refused: bool = False
    """A guard refused the question or took the answer away: no answer, and no abstention either."""


@dataclass(frozen=True)
class Sentence:
    """A sentence that claims something, without its citations; `cited` are the numbers behind it, in order, each once."""

    text: str
    cited: tuple[int, ...]
    abstains: bool


def language(question: Question) -> str:
    """Return the language a question counts for: `en`, `zh` or `other`."""
    return language_of(question.text) or "other"


def grade(question: Question, shown: Shown) -> dict[str, float]:
    """Return the figures that apply to an answer, each 0 to 1; see rag.answers.FIGURES and docs/documents.md."""
    plain = CITATION.sub("", shown.text).strip()
    figures: dict[str, float] = {}
    if question.answers:
        figures |= against(plain, question.answers, language(question))
    if question.sources and shown.passages is not None:
        figures["source_recall"] = len(set(question.sources) & set(shown.sources)) / len(set(question.sources))
    claimed = sentences(shown.text)
    abstained = not shown.refused and (shown.nothing_found or (_abstains(claimed) and not figures.get("contains")))
    figures["false_abstention" if question.answerable else "abstention"] = float(abstained)
    claims = [sentence for sentence in claimed if not sentence.abstains]
    if claims and shown.passages is not None and not shown.nothing_found and not shown.refused:
        figures |= _supported(claims, shown.passages)
    return figures


def _supported(claims: Sequence[Sentence], passages: Sequence[str]) -> dict[str, float]:
    numbers = range(1, len(passages) + 1)
    figures = {
        "groundedness": float(all(_carried(sentence.text, passages) for sentence in claims)),
        "citation_recall": sum(not set(sentence.cited).isdisjoint(numbers) for sentence in claims) / len(claims),
    }
    if right := [_right(sentence, number, passages) for sentence in claims for number in sentence.cited]:
        figures["citation_precision"] = sum(right) / len(right)
    return figures


def sentences(text: str) -> list[Sentence]:
    """Return the sentences of an answer that claim something. Citations on a line of their own belong to the one before."""
    found: list[tuple[str, list[int]]] = []
    for start, end in split(text):
        numbers = [int(number) for mark in CITATION.findall(text, start, end) for number in re.findall(r"\d+", mark)]
        body = CITATION.sub("", text[start:end]).strip()
        if _SAYS.search(body):
            found.append((body, numbers))
        elif found:
            found[-1][1].extend(numbers)
    claimed: list[Sentence] = []
    for body, numbers in found:
        claims = check(body, ()).claims
        if claims and not _APOLOGY.search(body):
            abstains = all(claim.reason == "abstention" for claim in claims)
            claimed.append(Sentence(body, tuple(dict.fromkeys(numbers)), abstains))
    return claimed


def _abstains(claimed: Sequence[Sentence]) -> bool:
    """Whether an answer begins by saying that the documents do not answer; what it adds is no answer then."""
    return bool(claimed) and claimed[0].abstains


def _carried(sentence: str, passages: Sequence[str]) -> bool:
    return not check(sentence, passages, cited=False).unsupported


def _right(sentence: Sentence, number: int, passages: Sequence[str]) -> bool:
    """Whether a citation supports its sentence: what is cited carries it, and this one alone does, or the others do not.

    Citation precision as ALCE defines it (Gao et al. 2023, https://arxiv.org/abs/2305.14627), with the claim checker as judge.
    """
    there = [one for one in sentence.cited if 1 <= one <= len(passages)]
    if number not in there or not _carried(sentence.text, [passages[one - 1] for one in there]):
        return False
    others = [passages[one - 1] for one in there if one != number]
    return _carried(sentence.text, [passages[number - 1]]) or not _carried(sentence.text, others)
