"""Prompt injection: rules and a classifier, over several views of a text, in one score.

Rules have an id, a score and a reason that an audit can show; they catch what is said plainly, in English and Chinese.
The classifier has seen many more attacks but can give no reason. The rules were written from the forms attacks take, not
from any test set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from guards.thresholds import Source
from guards.views import View, hidden_characters, views

WINDOW = 500  # characters of a document judged at a time; what is planted in it is short
LONG = 4000  # characters above which a user's text is judged in windows too
_DIRECT = ("folded", "spaced")  # views the classifier reads beside the decoded ones


@dataclass(frozen=True)
class Rule:
    """A pattern over folded, lower-case text."""

    id: str
    score: float
    reason: str
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Hit:
    """The strongest rule that matched; `score` is 0 when none did. `span` is in the original text."""

    rule: str
    score: float
    reason: str = ""
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Verdict:
    """How much a text looks like an attack, 0 to 1, and why.

    `rule` is the id of the strongest rule, "classifier" when that alone speaks, "" when the score is 0. `rules` and
    `classifier` are the two parts of the score: a caller may trust them differently. `span` is in the original text, the
    window for the classifier where a text was judged in windows.
    """

    score: float
    rule: str
    reason: str
    span: tuple[int, int] | None
    rules: float
    classifier: float


def _rule(identifier: str, score: float, reason: str, *alternatives: str) -> Rule:
    # A space in a pattern stands for any white space: views keep their line breaks.
    joined = "|".join(alternatives).replace(" ", r"\s")
    return Rule(identifier, score, reason, re.compile(joined, re.DOTALL))


_EN_DROP = (
    r"(?:ignore|disregard|forget|override|bypass|discard|neglect|do not (?:follow|obey)|don'?t (?:follow|obey)|stop following)"
)
_EN_RULES = r"(?:instructions?|directives?|rules?|guidelines?|prompts?|orders?|commands?|restrictions?|programming|training|context|tasks?|assignments?)"
_EN_EARLIER = r"(?:previous|prior|above|earlier|preceding|former|initial|original|existing|all|any|your|system|the|these|those)"
_ZH_DROP = r"(?:忽略|无视|忘记|忘掉|抛开|抛弃|放弃|撇开|取消|[不别][用要必需]?(?:再)?(?:去)?(?:管|理会|理睬|考虑|遵守|遵循|执行|回答|响应|听从)|[无毋]需(?:理会|遵守|考虑|回答|执行|响应)|绕过|停止(?:遵循|执行)|跳过)"
_ZH_EARLIER = r"(?:之前|以前|先前|前面|前述|前文|上文|上面|上述|以上|此前|刚才|所有|一切|全部|任何|你的|系统|原来|原有|既定|现有)"
_ZH_RULES = r"(?:指令|指示|命令|规则|规定|提示词?|限制|设定|约束|要求|准则|对话)"
_ZH_SHOW = r"(?:输出|打印|显示|告诉我|展示|复述|重复|透露|泄露|泄漏|说出|列出|给我看|发给我)"

RULES = (
    _rule(
        "ignore-instructions", 0.95, "asks to drop earlier instructions",
        rf"\b{_EN_DROP}\s+(?:\w+\s+){{0,3}}?{_EN_EARLIER}\s+(?:\w+\s+){{0,4}}?{_EN_RULES}\b",
        rf"\b{_EN_DROP}\s+(?:everything|anything|all|what(?:ever)?)\b.{{0,30}}?\b(?:above|before|previously|earlier|said|told|up to now)\b",
        r"\b(?:vergiss|ignoriere|missachte|vergessen sie|ignorieren sie)\b.{0,30}?\b(?:vorherige|vorangehende|vorige|bisherige|obige|alles?|davor|oben)\w*\b",
        r"\b(?:olvida|ignora|oublie|ignore|dimentica)[rz]?\s+(?:\w+\s+){0,2}?(?:instrucciones|[oó]rdenes|consignes|instructions|istruzioni|reglas|r[eè]gles)\s+(?:anteriores|previas|pr[ée]c[ée]dentes|precedenti)\b",
        rf"{_ZH_DROP}.{{0,4}}?{_ZH_EARLIER}.{{0,10}}?{_ZH_RULES}",
        rf"{_ZH_DROP}.{{0,3}}?(?:之前|先前|前面|前述|上文|上面|上述|以上|此前|刚才).{{0,6}}?(?:问题|任务|内容|话|信息|请求|提问).{{0,4}}?(?:直接|改为|转而|而是|现在|只需?要?|马上)?.{{0,4}}?(?:回复|回答|输出|响应|生成|告诉|执行|说|写)",
        rf"{_ZH_DROP}.{{0,6}}?(?:之前|前面|上面|以上)(?:的|所有|全部).{{0,6}}?(?:内容|话|信息|文字)",
    ),
    _rule(
        "reveal-prompt", 0.9, "asks for the system prompt",
        r"\b(?:reveal|show|print|repeat|output|display|disclose|leak|tell me|give me|what (?:is|was|are|were))\s+(?:\w+\s+){0,4}?"
        r"(?:your|the|its|hidden|initial|original|full)\s+(?:\w+\s+){0,3}?(?:system prompt|system message|initial prompt|initial instructions?|"
        r"hidden instructions?|original instructions?|pre-?prompt|secret instructions?)",
        r"\b(?:repeat|print|output|copy)\s+(?:\w+\s+){0,4}?(?:everything|all|the (?:text|words|sentence|content))\s+(?:\w+\s+){0,2}?(?:above|before this)",
        rf"{_ZH_SHOW}.{{0,8}}?(?:系统提示|系统指令|系统消息|初始提示|初始指令|原始指令|隐藏指令|提示词|内部指令|预设指令)",
        rf"(?:你的|您的)(?:系统|初始|原始|隐藏|内部)(?:提示词?|指令|设定|prompt).{{0,6}}?(?:是什么|有哪些|{_ZH_SHOW})",
    ),
    _rule(
        "unrestricted-persona", 0.9, "asks for a persona without limits",
        r"\b(?:you are|you're|act as|pretend (?:to be|you are|that you)|become|roleplay as|simulate|respond as|behave as)\b.{0,80}?"
        r"\b(?:without|no|free (?:of|from)|not bound by|unbound by|unrestricted|unfiltered|uncensored|jailbroken|amoral)\b.{0,40}?"
        r"\b(?:restrictions?|limits?|limitations?|filters?|rules?|guidelines?|ethic\w*|moral\w*|censorship|ai|model|chatbot|assistant|language)\b",
        r"\b(?:do anything now|dan mode|developer mode (?:enabled|on)|jailbreak mode|god mode|evil mode|opposite mode|stay in character as dan)\b",
        r"(?:扮演|假装|假扮|充当|变成|现在是|你是).{0,30}?(?:没有|不受|不再受|无需遵守|无视|摆脱|突破)(?:.{0,8}?)(?:限制|约束|道德|法律|规则|审查|过滤|伦理|底线)",
        r"(?:开发者模式|越狱模式|上帝模式|无限制模式|不受限模式|dan ?模式)",
    ),
    _rule(
        "new-instructions", 0.75, "gives new instructions with authority",
        r"\b(?:your|here are (?:your|the)) new (?:instructions?|task|role|rules|system prompt)\b\s*(?:is|are|:)",
        r"\b(?:from now on|starting now|henceforth)\b.{0,30}?\byou (?:will|must|shall|are going to|only|are no longer)\b.{0,60}?"
        r"\b(?:no matter|regardless|without (?:question|refus\w+|warning)|never refuse|always (?:answer|comply|obey)|any request)\b",
        r"(?:从现在开始|从现在起|接下来|此后).{0,20}?(?:你必须|你只能|你不能拒绝|你不得拒绝|无条件).{0,30}?(?:任何|所有|一切|服从|执行|回答|遵从)",
        r"(?:新的?(?:系统)?(?:指令|提示词|任务|规则))\s*[:：是为]",
    ),
    _rule(
        "no-refusal", 0.75, "forbids refusing",
        r"\b(?:you (?:can(?:no|')?t|must not|may not|should not|will not|won't|are not allowed to)|never|do not|don't) (?:ever )?(?:refuse|decline|reject|say (?:that )?you can'?t)\b",
        r"(?:不能|不得|不许|不可以|禁止|不要)(?:拒绝|推脱|回避)(?:回答|执行|我)?",
    ),
    _rule(
        "role-token", 0.95, "carries control tokens or headings of a prompt",
        r"<\|\s*(?:im_start|im_end|system|user|assistant|endoftext|eot_id|start_header_id|end_header_id|begin_of_text)\s*\|>",
        r"\[/?inst\]|<<\s*/?sys\s*>>|<\s*/?(?:start|end)_of_turn\s*>",
        r"(?:^|\n)[^\S\n]*#{2,}[^\S\n]*(?:system|instructions?)(?: (?:message|prompt))?[^\S\n]*:?[^\S\n]*\n.{0,200}?\b(?:you (?:must|are|will)|ignore)\b",
    ),
    _rule(
        "exfiltration", 0.85, "would send data to an address",
        r"!\[[^\]]{0,80}\]\(\s*https?://[^)\s]{1,200}[?&][^)\s=]{1,40}=\s*(?:\{|\[|<|%7b|\$)",
        r"\b(?:send|post|forward|upload|exfiltrate|e-?mail)\b.{0,40}?\b(?:conversation|chat history|system prompt|credentials|api keys?|passwords?)\b.{0,40}?(?:https?://|\bto\s+\S+@)",
    ),
    _rule(
        "secret-request", 0.6, "asks for a secret of the system",
        r"\b(?:tell|give|show|send|reveal|share|print|say|disclose|display|output|write|provide)\s+(?:(?:me|us|to|with|out|down|everyone|please|now)\s+){0,2}(?:(?:the|your|our|its|that|all|any|this)\s+){1,2}(?:\w+\s+){0,2}?"
        r"(?:pass(?:word|phrase|code)s?|secret (?:key|code|word|phrase)s?|api keys?|credentials|access (?:token|code|key)s?|private keys?|encryption keys?)\b",
        r"\bwhat(?:'s| is| are| was)\s+(?:the|your|our|its)\s+(?:\w+\s+){0,1}?(?:password|passphrase|secret (?:key|code|word|phrase)|api key|credentials|access (?:token|code))\b",
        rf"{_ZH_SHOW}(?:我|我们)?(?:你的?|您的?|我们的?|系统的?|这个?|该|管理员的?)[^,。，!?！？]{{0,6}}?(?:密码|密钥|口令|令牌|机密)",
    ),
    _rule(
        "run-encoded", 0.6, "asks to decode something and obey it",
        r"\b(?:decode|decrypt|decipher|unscramble|translate)\b.{0,120}?\b(?:and|then)\b.{0,20}?\b(?:follow|obey|execute|carry out|do what|act on)\b",
        r"(?:解码|解密|还原|破译).{0,30}?(?:执行|照做|照着做|回答(?:它|原|该|里面|其中)|按照?(?:它|其|里面|解码|解密)|作答)",
        r"(?:代码|程序|print).{0,12}?(?:输出|运行|打印|结果).{0,20}?(?:作为|当作|当成|视为).{0,12}?(?:指令|命令|问题|提问|输入|要求)",
    ),
)  # fmt: skip


def scan(text: str) -> Hit:
    """Return the strongest rule that matches any view of the text."""
    return _strongest(text, list(views(text)))


def assess(text: str, *, source: Source = "user") -> Verdict:
    """Return how much a text looks like an attack.

    A user's text is judged as a whole, what comes from elsewhere in windows of at most 500 characters of which the worst
    counts. Raises ClassifierError when the classifier's weights cannot be read.
    """
    from guards.classifier import load_classifier

    seen = list(views(text))
    hit = _strongest(text, seen)
    window = LONG if source == "user" else WINDOW
    best, span = 0.0, None
    for view in seen:
        if view.run is None and view.name not in _DIRECT:
            continue
        for start, end in windows(view.text, window):
            score = load_classifier().score(view.text[start:end])
            if score > best:
                best, span = score, view.span(start, end)
    if hit.score > 0:
        together = 1 - (1 - hit.score) * (1 - best)
        return Verdict(together, hit.rule, hit.reason, hit.span, hit.score, best)
    return Verdict(best, "classifier" if span else "", "resembles known attacks" if span else "", span, 0.0, best)


def windows(text: str, size: int) -> Iterator[tuple[int, int]]:
    """Yield spans of at most `size` characters that cover a text; they end at a line, sentence or space where they can."""
    start = 0
    while start < len(text):
        end = min(len(text), start + size)
        if end < len(text):
            half = start + size // 2
            cuts = (max(text.rfind(mark, half, end) for mark in marks) for marks in ("\n", "。！？；.!?;", " "))
            end = next((cut + 1 for cut in cuts if cut >= 0), end)
        if text[start:end].strip():
            yield start, end
        start = end


def _strongest(text: str, seen: list[View]) -> Hit:
    best = Hit("", 0.0)
    for view in seen:
        for rule in RULES:
            if rule.score > best.score and (found := rule.pattern.search(view.text)):
                best = Hit(rule.id, rule.score, rule.reason, view.span(*found.span()))
    if best.score < _HIDDEN.score and hidden_characters(text) >= HIDDEN_PLACES:
        return _HIDDEN
    return best


HIDDEN_PLACES = 3  # below that it may be an accident of copying
_HIDDEN = Hit("hidden-text", 0.45, "hides characters inside words")
