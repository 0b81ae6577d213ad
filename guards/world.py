"""Identifiers used everywhere: cards, addresses of the net, dates of birth, numbers of the United States.

Plain data and functions; `guards.pii` hands them to Presidio. E-mail addresses and IBANs are Presidio's own.
"""

from __future__ import annotations

import ipaddress
import re

from guards.pattern import AFTER, BEFORE, Pattern, digits, luhn

_WEAK = 0.3  # needs context
_CARD_WORDS = r"(?i)\bcard|credit|debit|visa|master|amex|american exp|maestro|discover|diners|\bjcb|\bcc\b|payment|卡号|信用卡|银行卡|储蓄卡|借记卡|支付"
_GROUPED_CARD = re.compile(r"\d+|\d{4}(?:([ -])\d{4})(?:\1\d{4}){1,3}(?:\1\d{1,3})?|\d{4}([ -])\d{6}\2\d{4,5}", re.ASCII)
_CHINESE_ID = re.compile(r"\d{6}(?:19|20)\d\d[01]\d[0-3]\d{5}", re.ASCII)  # `guards.china` knows better
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_MIN_GROUPS = 3  # of an IPv6 address; with fewer it may be a name in C++ or a time

# Domains that a bare name may end in; `https://` and `www.` take any.
_TOP = "com|org|net|edu|gov|mil|info|biz|io|dev|app|cn|uk|de|fr|jp|eu|us|ru|nl|ch|se|hk|tw|xyz|site|online|shop|tech"
_PATH = r"(?:[/?#](?:[A-Za-z0-9._~:/?#\[\]@!$&'*+;=%-]*[A-Za-z0-9_~/#=&%-])?)?"
_MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}"
_DATE = (
    r"(?:(?:19|20)\d\d(?:[-/.]|年)[01]?\d(?:[-/.]|月)[0-3]?\d日?|[0-3]?\d[-/.][0-3]?\d[-/.](?:19|20)?\d\d"
    rf"|{_MONTH} [0-3]?\d(?:st|nd|rd|th)?,? (?:19|20)\d\d|[0-3]?\d(?:st|nd|rd|th)? {_MONTH},? (?:19|20)\d\d)"
)


def card(value: str) -> float | None:
    """Payment cards (ISO/IEC 7812) of 12-19 digits: the check digit, or else context, tells them from other numbers."""
    number = digits(value)
    if len(set(number)) == 1 or _CHINESE_ID.fullmatch(number):
        return None
    if not _GROUPED_CARD.fullmatch(value):
        return 0.45 if luhn(number) else 0.1
    return 0.6 if luhn(number) else _WEAK


def ipv4(value: str) -> float | None:
    """Score an address; four short numbers may as well be a version, and need context."""
    try:
        address = ipaddress.ip_interface(value)
    except ValueError:
        return None
    octets = str(address.ip).split(".")
    plain = len(set(octets)) == 1 or octets[0] in {"10", "127"} or any(len(octet) > 2 for octet in octets)  # noqa: PLR2004
    return 0.6 if plain or sum(map(len, octets)) > 6 else _WEAK  # noqa: PLR2004


def ipv6(value: str) -> float | None:
    """Score an address; short ones need context."""
    try:
        ipaddress.ip_interface(value)
    except ValueError:
        return None
    groups = [group for group in value.split("/", maxsplit=1)[0].split(":") if group]
    return 0.6 if len(groups) >= _MIN_GROUPS or value.lower().startswith("fe80:") else _WEAK


PATTERNS = (
    Pattern("CREDIT_CARD", rf"{BEFORE}(?:[2-6]\d{{3}}|1800)(?:[ -]?\d){{8,15}}{AFTER}", _WEAK, _CARD_WORDS, card),
    Pattern(
        "IP_ADDRESS", rf"(?<![A-Za-z0-9.])(?:{_OCTET}\.){{3}}{_OCTET}(?:/\d{{1,2}})?(?![A-Za-z0-9]|\.\d)", 0.6,
        r"(?i)\bip|addr|host|server|dns|gateway|ping|subnet|地址|服务器|主机|网关", ipv4, r"\d\.\d",
    ),
    Pattern(
        "IP_ADDRESS", r"(?<![A-Za-z0-9:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{1,4})?"
        r"(?:%[A-Za-z0-9]{1,15})?(?:/\d{1,3})?(?![A-Za-z0-9:])", 0.6,
        r"(?i)\bip|addr|host|server|dns|gateway|ping|subnet|地址|服务器|主机|网关", ipv6, r":[0-9A-Fa-f]{0,4}:",
    ),
    Pattern("URL", rf"(?i)(?<![a-z0-9])(?:https?|ftp|wss?)://(?:[a-z0-9._~%-]{{1,64}}(?::[^\s@/]{{0,64}})?@)?"
            rf"(?:[a-z0-9-]{{1,63}}\.){{0,8}}[a-z0-9-]{{1,63}}(?::\d{{1,5}})?{_PATH}", 0.8, needs="://"),
    Pattern("URL", rf"(?i)(?<![a-z0-9@._/-])www\d?\.(?:[a-z0-9-]{{1,63}}\.){{1,6}}[a-z]{{2,24}}(?::\d{{1,5}})?{_PATH}", 0.7,
            needs=r"(?i)www\d?\."),
    Pattern("URL", rf"(?i)(?<![a-z0-9@._/-])(?:[a-z0-9][a-z0-9-]{{0,62}}\.){{1,4}}(?:{_TOP})(?![a-z0-9-]|\.[a-z0-9])(?::\d{{1,5}})?{_PATH}", 0.5,
            needs=r"\.[A-Za-z]{2}"),
    Pattern("US_SSN", rf"{BEFORE}(?!000|666|9)\d{{3}}[- .](?!00)\d{{2}}[- .](?!0000)\d{{4}}(?![A-Za-z0-9-])", 0.5,
            r"(?i)\bssn|social"),
    Pattern("US_SSN", rf"{BEFORE}(?!000|666|9)\d{{3}}(?!00)\d{{2}}(?!0000)\d{{4}}{AFTER}", _WEAK, r"(?i)\bssn|social"),
    Pattern("DATE_OF_BIRTH", rf"(?i)(?:\bdob\b|\bborn\b|birth(?: ?date|day)?|生日|出生(?:日期|年月)?)[ :]{{0,2}}(?:on |is |于|在|是|为)?({_DATE})",
            0.65, needs=r"(?i)dob|born|birth|生"),
)  # fmt: skip
