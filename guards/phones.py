"""Telephone numbers: one lenient pattern for the world, ruled by the plans of `phonenumbers`, and China's own forms."""

from __future__ import annotations

import re

import phonenumbers

from guards.pattern import AFTER, BEFORE, Pattern, digits

_WEAK = 0.3  # needs context
_SHORTEST, _LONGEST = 7, 15  # digits, E.164
_NATIONAL = range(9, 12)  # digits with the leading zero
_LONG_GROUP = 3  # pairs alone are anything: bytes, dates, scores
_HOME = ("US", "GB")  # whose numbers are known without a country code
_WORDS = (
    r"(?i)phone|\btel|\bcall|mobile|\bcell|\bfax|\bdesk|\boffice|hotline|contact|reach|\btext|\bsms|messag|whats ?app|\bdial|\bring|\bline\b"
    r"|answer|电话|手机|座机|固话|传真|热线|致电|拨打|联系|号码"
)
_DATE = re.compile(r"(?:19|20)\d\d[-./ ][01]?\d[-./ ]|[0-3]?\d[-./][01]?\d[-./](?:19|20)\d\d(?!\d)")
_CHINA = re.compile(r"\(?(?:\+|00)?86\)?[ -]?[0-9() -]{9,16}|1[3-9]\d[- ]?\d{4}[- ]?\d{4}")
_SSN = re.compile(r"\d{3}-\d\d-\d{4}")
_GROUPS = re.compile(r"[0-9]+")


def world_phone(value: str) -> float | None:
    """Score a number by the signs that it is one: a country code, a valid plan, an area code in brackets, a leading zero."""
    bare = re.split(r"(?i)x|ext", value)[0]
    number = digits(bare)
    if not _SHORTEST <= len(number) <= _LONGEST or _DATE.match(value) or _SSN.fullmatch(value):
        return None
    if len(set(number)) == 1:
        return None
    if _CHINA.fullmatch(value):
        return 0.45  # CN_MOBILE and CN_LANDLINE say more where they are wanted
    if value.startswith("+"):
        return 0.75 if _valid(bare, None) else 0.5
    groups = _GROUPS.findall(bare)
    if len(groups) > 1 and max(map(len, groups)) >= _LONG_GROUP and any(_valid(bare, region) for region in _HOME):
        return 0.5
    if bare.startswith("(") or len(bare) < len(value):
        return 0.45
    if number.startswith("0") and len(groups) > 1 and len(number) in _NATIONAL and min(map(len, groups)) > 1:
        return 0.45
    return _WEAK


def landline(value: str) -> float | None:
    """Score a number of China's fixed network by its area code and length."""
    bare = re.split(r"(?<=\d{7})-\d{1,5}$", value)[0]
    return 0.65 if _valid(bare, "CN") else _WEAK


def bare_landline(value: str) -> float | None:
    """Score the same without separators."""
    return 0.45 if _valid(value, "CN") else None


def _valid(value: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(value, region))
    except phonenumbers.NumberParseException:
        return False


PATTERNS = (
    Pattern("CN_MOBILE", r"(?<![A-Za-z0-9.])(?:(?:\+|00)?86[- ]?|\(\+?86\) ?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?![A-Za-z0-9]|\.\d)", 0.85),
    Pattern("CN_MOBILE", rf"{BEFORE}1[3-9]\d{{2}}[- ]\d{{3}}[- ]\d{{4}}{AFTER}", 0.85),
    Pattern(
        "CN_LANDLINE",
        rf"(?<![A-Za-z0-9.])(?:(?:\+|00)?86[- ]?)?(?:\(0\d{{2,3}}\) ?|0\d{{2,3}}[- ])[2-8]\d{{2,3}}[- ]?\d{{4}}(?:[-转]\d{{1,5}})?{AFTER}",
        _WEAK, _WORDS, landline,
    ),
    Pattern("CN_LANDLINE", rf"(?<![A-Za-z0-9.])0[1-9]\d{{8,10}}{AFTER}", _WEAK, r"电话|座机|固话|传真|热线|致电|拨打|联系", bare_landline),
    Pattern("CN_LANDLINE", rf"{BEFORE}[48]00[- ]?\d{{3}}[- ]?\d{{4}}{AFTER}", _WEAK, r"电话|热线|客服|致电|拨打|联系"),
    Pattern("CN_LANDLINE", rf"{BEFORE}400[- ]\d{{3}}[- ]?\d{{4}}{AFTER}", 0.6),
    Pattern("CN_LANDLINE", rf"{BEFORE}[2-8]\d{{2,3}}[- ]?\d{{4}}{AFTER}", _WEAK, r"电话|座机|固话|传真"),
    Pattern(
        "PHONE_NUMBER",
        r"(?i)(?<![a-z0-9.+(/-])(?:\+ ?|\(\+?)?\d{1,5}\)?(?:[ .-]{0,2}\(?\d{1,5}\)?|\(\d\)){1,7}"
        r"(?: ?(?:x|ext\.? ?)\d{1,6})?(?![a-z0-9]|[.,]\d|%)",
        _WEAK, _WORDS, world_phone, r"[0-9][ ().-]*[0-9][ ().-]*[0-9]",
    ),
)  # fmt: skip
