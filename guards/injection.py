"""Prompt injection by rule: each has an id, a score and a reason that an audit can show.

Rules catch what is said plainly, in English and Chinese, and are silent about the rest: a classifier is the next layer.
The rules were written from the forms attacks take, not from any test set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from guards.normalize import normalize


@dataclass(frozen=True)
class Rule:
    """A pattern over normalised, lower-case text."""

    id: str
    score: float
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Hit:
    """The strongest rule that matched; `score` is 0 when none did."""

    rule: str
    score: float


def _rule(identifier: str, score: float, *alternatives: str) -> Rule:
    return Rule(identifier, score, re.compile("|".join(alternatives), re.IGNORECASE | re.DOTALL))


_EN_DROP = (
    r"(?:ignore|disregard|forget|override|bypass|discard|neglect|do not (?:follow|obey)|don'?t (?:follow|obey)|stop following)"
)
_EN_RULES = (
    r"(?:instructions?|directives?|rules?|guidelines?|prompts?|orders?|commands?|restrictions?|programming|training|context)"
)
_EN_EARLIER = r"(?:previous|prior|above|earlier|preceding|former|initial|original|existing|all|any|your|system|the|these|those)"
_ZH_DROP = r"(?:忽略|无视|忘记|忘掉|抛开|不要理会|不用理会|不要遵守|不必遵守|绕过|停止遵循|跳过)"
_ZH_EARLIER = r"(?:之前|以前|先前|前面|上面|上述|以上|此前|所有|一切|全部|任何|你的|系统|原来|原有|既定|现有)"
_ZH_RULES = r"(?:指令|指示|命令|规则|规定|提示词?|限制|设定|约束|要求|准则|对话)"
_ZH_SHOW = r"(?:输出|打印|显示|告诉我|展示|复述|重复|透露|泄露|泄漏|说出|列出|给我看|发给我)"

RULES = (
    _rule(
        "ignore-instructions", 0.95,
        rf"\b{_EN_DROP}\s+(?:\w+\s+){{0,3}}?{_EN_EARLIER}\s+(?:\w+\s+){{0,4}}?{_EN_RULES}\b",
        rf"\b{_EN_DROP}\s+(?:everything|anything|all|what(?:ever)?)\b.{{0,30}}?\b(?:above|before|previously|earlier|said|told|up to now)\b",
        rf"{_ZH_DROP}.{{0,4}}?{_ZH_EARLIER}.{{0,10}}?{_ZH_RULES}",
        rf"{_ZH_DROP}.{{0,6}}?(?:之前|前面|上面|以上)(?:的|所有|全部).{{0,6}}?(?:内容|话|信息|文字)",
    ),
    _rule(
        "reveal-prompt", 0.9,
        r"\b(?:reveal|show|print|repeat|output|display|disclose|leak|tell me|give me|what (?:is|was|are|were))\s+(?:\w+\s+){0,4}?"
        r"(?:your|the|its|hidden|initial|original|full)\s+(?:\w+\s+){0,3}?(?:system prompt|system message|initial prompt|initial instructions?|"
        r"hidden instructions?|original instructions?|pre-?prompt|secret instructions?)",
        r"\b(?:repeat|print|output|copy)\s+(?:\w+\s+){0,4}?(?:everything|all|the (?:text|words|sentence|content))\s+(?:\w+\s+){0,2}?(?:above|before this)",
        rf"{_ZH_SHOW}.{{0,8}}?(?:系统提示|系统指令|系统消息|初始提示|初始指令|原始指令|隐藏指令|提示词|内部指令|预设指令)",
        rf"(?:你的|您的)(?:系统|初始|原始|隐藏|内部)(?:提示词?|指令|设定|prompt).{{0,6}}?(?:是什么|有哪些|{_ZH_SHOW})",
    ),
    _rule(
        "unrestricted-persona", 0.9,
        r"\b(?:you are|you're|act as|pretend (?:to be|you are|that you)|become|roleplay as|simulate|respond as|behave as)\b.{0,80}?"
        r"\b(?:without|no|free (?:of|from)|not bound by|unbound by|unrestricted|unfiltered|uncensored|jailbroken|amoral)\b.{0,40}?"
        r"\b(?:restrictions?|limits?|limitations?|filters?|rules?|guidelines?|ethic\w*|moral\w*|censorship|ai|model|chatbot|assistant|language)\b",
        r"\b(?:do anything now|dan mode|developer mode (?:enabled|on)|jailbreak mode|god mode|evil mode|opposite mode|stay in character as dan)\b",
        r"(?:扮演|假装|假扮|充当|变成|现在是|你是).{0,30}?(?:没有|不受|不再受|无需遵守|无视|摆脱|突破)(?:.{0,8}?)(?:限制|约束|道德|法律|规则|审查|过滤|伦理|底线)",
        r"(?:开发者模式|越狱模式|上帝模式|无限制模式|不受限模式|dan ?模式)",
    ),
    _rule(
        "new-instructions", 0.75,
        r"\b(?:your|here are (?:your|the)) new (?:instructions?|task|role|rules|system prompt)\b\s*(?:is|are|:)",
        r"\b(?:from now on|starting now|henceforth)\b.{0,30}?\byou (?:will|must|shall|are going to|only|are no longer)\b.{0,60}?"
        r"\b(?:no matter|regardless|without (?:question|refus\w+|warning)|never refuse|always (?:answer|comply|obey)|any request)\b",
        r"(?:从现在开始|从现在起|接下来|此后).{0,20}?(?:你必须|你只能|你不能拒绝|你不得拒绝|无条件).{0,30}?(?:任何|所有|一切|服从|执行|回答|遵从)",
        r"(?:新的?(?:系统)?(?:指令|提示词|任务|规则))\s*[:：是为]",
    ),
    _rule(
        "no-refusal", 0.75,
        r"\b(?:you (?:can(?:no|')?t|must not|may not|should not|will not|won't|are not allowed to)|never|do not|don't) (?:ever )?(?:refuse|decline|reject|say (?:that )?you can'?t)\b",
        r"(?:不能|不得|不许|不可以|禁止|不要)(?:拒绝|推脱|回避)(?:回答|执行|我)?",
    ),
    _rule(
        "role-token", 0.95,
        r"<\|\s*(?:im_start|im_end|system|user|assistant|endoftext|eot_id|start_header_id|end_header_id|begin_of_text)\s*\|>",
        r"\[/?inst\]|<<\s*/?sys\s*>>|<\s*/?(?:start|end)_of_turn\s*>",
        r"(?:^|\n)\s*#{2,}\s*(?:system|instruction)s?\s*:?\s*\n.{0,200}?\b(?:you (?:must|are|will)|ignore)\b",
    ),
    _rule(
        "exfiltration", 0.85,
        r"!\[[^\]]{0,80}\]\(\s*https?://[^)\s]{1,200}[?&][^)\s=]{1,40}=\s*(?:\{|\[|<|%7b|\$)",
        r"\b(?:send|post|forward|upload|exfiltrate|e-?mail)\b.{0,40}?\b(?:conversation|chat history|system prompt|credentials|api keys?|passwords?)\b.{0,40}?(?:https?://|\bto\s+\S+@)",
    ),
)  # fmt: skip

_INNER_SPACE = re.compile(r"\s+")


def scan(text: str) -> Hit:
    """Return the strongest rule that matches the text."""
    seen = _INNER_SPACE.sub(" ", normalize(text).text).strip()
    best = Hit("", 0.0)
    for rule in RULES:
        if rule.score > best.score and rule.pattern.search(seen):
            best = Hit(rule.id, rule.score)
    return best
