"""Whether two sentences that say the same thing say it with opposite signs: negations and antonyms, English and Chinese.

Not seen: opposition without a negator or a listed antonym (half full, declined), irony, double negation across clauses.
"""

# ruff: noqa: E501, SIM905  patterns and word lists are read whole

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from guards.sentences import stem, terms

_EN_NEGATOR = re.compile(r"\b(?:not|no|never|without|cannot|neither|nor|none|nobody|nothing|hardly)\b|n['’]t\b", re.IGNORECASE)
_ZH_NEGATOR = re.compile(r"不|没有?|(?<!有)无|未|勿|禁止|严禁|并非|绝非|从未")
_NOT_NEGATING = re.compile(
    r"不(?:同|仅|但|过|断|少|久|管|论|只|光|单|如|料|愧|禁|妨|得不|朽|锈|限于|等式|良|幸|动产|安|满|足|利|错|明|及格)|无(?:论|线|数|限|形|意|辜|产|机|人机|疑|双|非|锡|极)"
    r"|未(?:来|婚|必|知|央|遂)|没(?:收|落|关系)|是否|能否|要不要|是不是|可不可|not only|no\.? ?\d|no longer than|no (?:more|less|fewer|later|earlier) than",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]+")
_SKIP = frozenset("a an the be been being to have has had any it yet of very all as so that this been ever".split())

_EN_PAIRS = (
    "allowed forbidden", "allowed prohibited", "permitted forbidden", "permitted prohibited", "before after", "include exclude",
    "included excluded", "open closed", "opens closes", "more less", "more fewer", "higher lower", "increase decrease",
    "increased decreased", "maximum minimum", "most least", "always never", "first last", "above below", "earlier later",
    "possible impossible", "valid invalid", "legal illegal", "required optional", "mandatory optional", "accept reject",
    "accepted rejected", "win lose", "won lost", "north south", "east west", "buy sell", "enable disable", "enabled disabled",
    "positive negative", "safe dangerous", "start end", "larger smaller", "longer shorter", "old new", "left right", "male female",
    "with without", "over under", "inside outside", "refundable nonrefundable", "success failure", "true false", "rise fall",
    "early late", "high low", "large small", "long short", "arrival departure",
)  # fmt: skip
_ZH_PAIRS = (
    "免费 收费", "免费 付费", "允许 禁止", "可以 禁止", "包括 除外", "包含 不含", "以前 以后", "之前 之后", "以上 以下", "以内 以外",
    "以内 以上", "超过 不足", "超过 少于", "高于 低于", "大于 小于", "多于 少于", "早于 晚于", "最高 最低", "最大 最小", "最多 最少", "至少 至多",
    "至少 最多", "增加 减少", "上升 下降", "开放 关闭", "营业 停业", "成功 失败", "必须 无需", "需要 无需", "有效 无效", "合法 非法", "提前 推迟", "接受 拒绝",
    "上午 下午", "东部 西部", "南部 北部", "前者 后者", "赞成 反对", "支持 反对", "支持 反抗", "胜利 失败", "同意 拒绝", "购买 出售", "上涨 下跌", "扩大 缩小",
    "发车前 发车后", "强 弱", "优点 缺点", "积极 消极", "先 后", "内 外", "首次 末次", "进口 出口", "室内 室外",
)  # fmt: skip
_EN_ANTONYMS = tuple((frozenset({a}), frozenset({b})) for a, b in (pair.split() for pair in _EN_PAIRS))
_ZH_ANTONYMS = tuple((a, b) for a, b in (pair.split() for pair in _ZH_PAIRS) if len(a) > 1)


@dataclass(frozen=True)
class _Signs:
    """What a sentence denies: the terms that follow its negators, how many negators, its words."""

    denied: frozenset[str]
    negators: int
    words: frozenset[str]
    chinese: str


@functools.lru_cache(maxsize=4096)
def _signs(sentence: str) -> _Signs:
    text = _NOT_NEGATING.sub(lambda match: "\x00" * len(match[0]), sentence)
    denied: set[str] = set()
    count = 0
    for match in _EN_NEGATOR.finditer(text):
        count += 1
        following = [w.lower() for w in _WORD.findall(text[match.end() : match.end() + 40])]
        content = [word for word in following if word not in _SKIP]
        denied.update(stem(word) for word in content[:1])
    for match in _ZH_NEGATOR.finditer(text):
        count += 1
        denied.add(text[match.end() : match.end() + 2])
    words = frozenset(word.lower() for word in _WORD.findall(text)) | frozenset(stem(w.lower()) for w in _WORD.findall(text))
    return _Signs(frozenset(d for d in denied if len(d) > 1), count, words, text)


def contradicts(claim: str, source: str) -> bool:
    """Whether a claim denies what its source says of the same thing, or says the opposite of it.

    Only to be asked of sentences about the same: what is compared is the term behind a negator, then pairs of antonyms,
    and the number of negators where the two sentences hardly differ otherwise.
    """
    ours, theirs = _signs(claim), _signs(source)
    opposed = _opposed(ours, theirs)
    denied = any(_affirms(theirs, term) for term in ours.denied - theirs.denied) or any(
        _affirms(ours, term) for term in theirs.denied - ours.denied
    )
    if opposed or denied:
        return opposed != denied
    if (ours.negators - theirs.negators) % 2:
        left, right = terms(claim), terms(source)
        return len(left & right) >= 0.7 * len(left | right)
    return False


def _affirms(signs: _Signs, term: str) -> bool:
    return term not in signs.denied and (term in signs.words if term.isascii() else term in signs.chinese)


def _opposed(ours: _Signs, theirs: _Signs) -> bool:
    for left, right in _EN_ANTONYMS:
        for a, b in ((left, right), (right, left)):
            if a <= ours.words and b <= theirs.words and not a <= theirs.words and not b <= ours.words:
                return True
    for left, right in _ZH_ANTONYMS:
        for a, b in ((left, right), (right, left)):
            if a in ours.chinese and b in theirs.chinese and a not in theirs.chinese and b not in ours.chinese:
                return True
    return False
