"""Identifiers used in China: patterns and check digits. Plain data and functions; `guards.pii` hands them to Presidio.

A check digit raises a score and does not gate: real text has typing errors, and a wrong number may still be somebody's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PROVINCES = frozenset(
    [
        "11",
        "12",
        "13",
        "14",
        "15",
        "21",
        "22",
        "23",
        "31",
        "32",
        "33",
        "34",
        "35",
        "36",
        "37",
        "41",
        "42",
        "43",
        "44",
        "45",
        "46",
        "50",
        "51",
        "52",
        "53",
        "54",
        "61",
        "62",
        "63",
        "64",
        "65",
        "71",
        "81",
        "82",
        "83",
    ]
)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_PLATE_PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_BEFORE, _AFTER = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"


@dataclass(frozen=True)
class Pattern:
    """One entity: its regular expression, its score, and a check that returns a better score or None to reject."""

    entity: str
    regex: str
    score: float
    check: Callable[[str], float | None] | None = None


def id_card(value: str) -> float | None:
    """GB 11643: the date must be right; a known province raises the score, the check digit (ISO 7064 mod 11-2) settles it."""
    try:
        born = date.fromisoformat(f"{value[6:10]}-{value[10:12]}-{value[12:14]}")
    except ValueError:
        return None
    if not date(1900, 1, 1) <= born <= date.today():  # noqa: DTZ011  a birthday has no time zone
        return None
    total = sum(int(digit) * weight for digit, weight in zip(value[:17], _ID_WEIGHTS, strict=True))
    if "10X98765432"[total % 11] == value[17].upper():
        return 1.0
    return 0.6 if value[:2] in _PROVINCES else 0.45


def luhn(value: str) -> bool:
    """Whether the digits of a card number satisfy the Luhn check."""
    digits = [int(char) for char in value if char.isdigit()]
    doubled = (sum(divmod(2 * d, 10)) for d in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def bank_card(value: str) -> float | None:
    """UnionPay numbers (62...) of 16-19 digits."""
    return 1.0 if luhn(value) else 0.5


def payment_card(value: str) -> float | None:
    """Card numbers of 12-19 digits from anywhere: nothing but the check digit tells them from other numbers."""
    return 0.6 if luhn(value) else None


PATTERNS = (
    Pattern("CN_ID_CARD", rf"{_BEFORE}\d{{17}}[\dXx]{_AFTER}", 0.6, id_card),
    Pattern("CN_MOBILE", rf"(?<![A-Za-z0-9.])(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{{4}}[- ]?\d{{4}}{_AFTER}", 0.7),
    Pattern("CN_LANDLINE", rf"{_BEFORE}(?:\(0\d{{2,3}}\) ?|0\d{{2,3}}[- ])[2-8]\d{{6,7}}(?:-\d{{1,5}})?{_AFTER}", 0.6),
    Pattern("CN_LANDLINE", rf"{_BEFORE}400[- ]\d{{3}}[- ]?\d{{4}}{_AFTER}", 0.6),
    Pattern("CN_BANK_CARD", rf"{_BEFORE}62\d{{2}}(?:[- ]?\d{{4}}){{3}}(?:[- ]?\d{{1,3}})?{_AFTER}", 0.5, bank_card),
    Pattern("CREDIT_CARD", rf"{_BEFORE}[2-6]\d{{11,18}}{_AFTER}", 0.6, payment_card),
    Pattern("CN_PLATE", rf"[{_PLATE_PROVINCES}][A-HJ-NP-Z][·.]?[A-HJ-NP-Z0-9]{{4,5}}[A-HJ-NP-Z0-9挂学警港澳]{_AFTER}", 0.6),
)
