"""What one answer of a route is worth: against its references and its passages, its citations, and whether it is due at all.

Deterministic: the claim checker of `guards.claims` holds sentences against passages, and no model judges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from guards.claims import check
from guards.sentences import CITATION, split
from rag.answers import against, answer_tokens, holds
from rag.judgements import Question
from rag.language import language_of

_APOLOGY = re.compile(
    r"^\W*(?:(?:i['’]?\s?a?m|we['’]?\s?a?re)\s+)?(?:(?:very\s+)?sorry|(?:my\s+)?apologies)\b[^.]{0,12}\W*$"
    r"|^\W*(?:很|非常)?(?:抱歉|对不起|不好意思)\W*$",
    re.IGNORECASE,
)
# What an answer says instead of an answer, beside what the claim checker knows: there it must be sure of a sentence anywhere.
_ABSTAINS = re.compile(
    r"\b(?:texts?|handbook|guide|manual|documents?|documentation|context|passages?|sources?|excerpts?|materials?|information)\b.{0,30}"
    r"(?:\bnot|n['’]t)\s+(?:\w+\s+)?(?:mention|contain|say|state|include|provide|specify|cover|tell|address|describe|list|give|discuss"
    r"|indicate|explain|answer)"
    r"|\b(?:texts?|handbook|guide|manual|documents?|context|passages?|sources?)\s+(?:says?|tells?|contains?|mentions?|gives?|ha[sv]e?)\s+no"
    r"(?:thing)?\b"
    r"|(?:\bnot|n['’]t)\s+(?:\w+ly\s+)?(?:covered|mentioned|stated|specified|said|given|described|found|answered|addressed|discussed)\s+"
    r"(?:in|by)\s+(?:the|these|this|any)\b.{0,20}\b(?:texts?|handbook|guide|documents?|context|passages?|sources?|information)"
    r"|^\W*(?:(?:it|that|this|the answer)\s+is\s+)?"
    r"(?:unknown|unclear|not (?:known|clear|stated|specified|mentioned|given|provided))\W*$"
    r"|\b(?:i|we)\b.{0,12}(?:\bnot|n['’]t)\s+have\s+(?:\w+\s+)?information|\bnot possible to (?:determine|say|tell|answer|know)\b"
    r"|\b(?:i|we)\s+(?:can(?:not|['’]t| not)|could(?: not|n['’]t)|(?:am|are) unable to)\s+(?:\w+\s+)?"
    r"(?:determine|answer|find|tell|help|say)\b"
    r"|\bi(?:['’]m| am) not (?:sure|aware|certain)\b|^\W*nothing (?:about|on)\b.{0,40}\b(?:said|mentioned|stated|found|written)\b"
    r"|(?:手册|指南|段落|片段|内容|文本|资料|文档|材料|上下文|文中|这里|原文).{0,8}(?:没有|未|无法|无|找不到|没).{0,6}"
    r"(?:说明|提及|提到|涉及|包含|包括|提供|给出|答案|记载|回答|介绍|说)"
    r"|(?:没有|未能?|无法|暂无|找不到|没能?)(?:找到)?(?:任何|有关|与.{1,12})?(?:相关的?|有关的?)(?:内容|信息|资料|说明|答案|规定)"
    r"|^\W*(?:目前|暂时|对此)?(?:无法|不能|难以)(?:确定|判断|回答|得知|知道)[^,，。;；]{0,12}\W*$",
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
            abstains = all(claim.reason == "abstention" for claim in claims) or bool(_ABSTAINS.search(body))
            claimed.append(Sentence(body, tuple(dict.fromkeys(numbers)), abstains))
    return claimed


def _abstains(claimed: Sequence[Sentence]) -> bool:
    """Whether an answer begins by saying that the documents do not answer; what it adds is no answer then."""
    return bool(claimed) and claimed[0].abstains


def _carried(sentence: str, passages: Sequence[str]) -> bool:
    """Whether a passage has a sentence word for word (the checker may miss that of a short one), or the checker says so."""
    said = answer_tokens(sentence, "zh")  # keeps articles
    if any(holds(answer_tokens(passage, "zh"), said) for passage in passages):
        return True
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
