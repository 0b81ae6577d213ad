"""Numbers, amounts, dates and times of English and Chinese text, in one form: 12% is 百分之十二 is twelve percent.

Not seen: signs (-5), fractions in words but for halves (two thirds), Roman numerals, ordinals in words (first), dates
relative to today, and which thing a number counts.
"""

# ruff: noqa: E501, SIM905, PLR2004  patterns and word lists are read whole; hours and months

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_DIGITS = {**{c: i for i, c in enumerate("零一二三四五六七八九")}, "〇": 0, "两": 2}
_POWERS = {"十": 10, "百": 100, "千": 1000}
_GROUPS = {"万": 10**4, "亿": 10**8, "萬": 10**4, "億": 10**8}
_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen".split()
    )
} | {word: 10 * value for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MONTHS = "january february march april may june july august september october november december".split()
_WEEKDAYS: Sequence[str] = "monday tuesday wednesday thursday friday saturday sunday".split()
_IDIOMS = frozenset({"万一", "千万", "一一", "百万", "千百", "亿万", "两三", "三两", "十十", "二三", "四五", "七八", "万千"})

# dimension: {spelling: factor}. English spellings take a plural s.
_UNITS: dict[str, dict[str, float]] = {
    "percent": {"%": 1, "percent": 1, "per cent": 1, "percentage point": 1, "个百分点": 1},
    "length": {
        "km": 1000, "kilometre": 1000, "kilometer": 1000, "公里": 1000, "千米": 1000, "m": 1, "metre": 1, "meter": 1, "米": 1,
        "cm": 0.01, "centimetre": 0.01, "centimeter": 0.01, "厘米": 0.01, "公分": 0.01, "mm": 0.001, "millimetre": 0.001,
        "millimeter": 0.001, "毫米": 0.001, "mile": 1609.344, "英里": 1609.344, "ft": 0.3048, "foot": 0.3048, "feet": 0.3048,
        "英尺": 0.3048, "inch": 0.0254, "inches": 0.0254, "英寸": 0.0254,
    },
    "area": {
        "km2": 1e6, "square kilometre": 1e6, "square kilometer": 1e6, "sq km": 1e6, "平方公里": 1e6, "平方千米": 1e6, "m2": 1,
        "square metre": 1, "square meter": 1, "平方米": 1, "ha": 1e4, "hectare": 1e4, "公顷": 1e4, "square mile": 2589988,
        "平方英里": 2589988, "acre": 4046.86, "英亩": 4046.86,
    },
    "mass": {
        "kg": 1, "kilogram": 1, "kilo": 1, "公斤": 1, "千克": 1, "g": 0.001, "gram": 0.001, "克": 0.001, "mg": 1e-6,
        "milligram": 1e-6, "毫克": 1e-6, "t": 1000, "tonne": 1000, "ton": 1000, "吨": 1000, "斤": 0.5, "lb": 0.45359,
    },
    "duration": {
        "second": 1, "秒": 1, "秒钟": 1, "min": 60, "minute": 60, "分钟": 60, "hour": 3600, "hr": 3600, "h": 3600, "小时": 3600,
        "个小时": 3600, "钟头": 3600, "个钟头": 3600, "day": 86400, "天": 86400, "日": 86400, "week": 604800, "周": 604800,
        "个星期": 604800, "星期": 604800, "ms": 0.001, "millisecond": 0.001, "毫秒": 0.001,
    },
    "months": {"month": 1, "个月": 1, "year": 12, "年": 12, "decade": 120, "century": 1200, "centuries": 1200, "个世纪": 1200},
    "EUR": {"€": 1, "eur": 1, "euro": 1, "欧元": 1},
    "USD": {"$": 1, "us$": 1, "usd": 1, "dollar": 1, "us dollar": 1, "美元": 1, "美金": 1},
    "GBP": {"£": 1, "gbp": 1, "英镑": 1},
    "CNY": {"¥": 1, "cny": 1, "rmb": 1, "yuan": 1, "元": 1, "块": 1, "块钱": 1, "人民币": 1, "元人民币": 1},
    "JPY": {"jpy": 1, "yen": 1, "日元": 1},
    "temperature": {"°c": 1, "degrees celsius": 1, "摄氏度": 1},
    "fahrenheit": {"°f": 1, "degrees fahrenheit": 1, "华氏度": 1},
    "degrees": {"degree": 1, "度": 1, "°": 1},
    "volume": {"l": 1, "litre": 1, "liter": 1, "升": 1, "公升": 1, "ml": 0.001, "millilitre": 0.001, "milliliter": 0.001, "毫升": 0.001},
    "bytes": {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12},
    "speed": {"km/h": 1, "公里/小时": 1, "mph": 1.609344},
    "hertz": {"hz": 1, "khz": 1e3, "mhz": 1e6, "ghz": 1e9},
    "watts": {"w": 1, "kw": 1e3, "mw": 1e6, "gw": 1e9, "瓦": 1, "千瓦": 1e3, "兆瓦": 1e6},
}  # fmt: skip
_UNIT = {spelling: (dimension, factor) for dimension, spellings in _UNITS.items() for spelling, factor in spellings.items()}
_COUNTERS = "个位名人次件条只种张本家座所届场点岁倍页句口辆艘首部支间层步号颗枚项级度期"


def _alternatives(spellings: list[str]) -> str:
    return "|".join(
        re.escape(s) + (r"s?(?![A-Za-z0-9])" if s.isascii() and s[-1].isalnum() else "") for s in sorted(spellings, key=len)[::-1]
    )


_NUMERAL = "零〇一二两三四五六七八九十百千万亿萬億"
_NUMBER = (
    r"(?P<digits>(?<![A-Za-z\d.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?:st|nd|rd|th)?(?:\s?(?P<scale>百万|千万|[百千万亿萬億]+|"
    r"(?:hundred|thousand|million|billion|trillion|bn)(?![a-z])))?"
    rf"|(?P<numeral>[{_NUMERAL}]+(?:点[{_NUMERAL}]+)?)"
    rf"|(?P<words>(?<![A-Za-z])(?:a (?=hundred|thousand|million|billion))?(?:{'|'.join([*_WORDS, *_SCALES])})"
    rf"(?:[ -](?:and )?(?:{'|'.join(sorted([*_WORDS, *_SCALES], key=len)[::-1])}))*(?![A-Za-z]))"
)
_QUANTITY = re.compile(
    rf"(?P<prefix>US\$|[$€£¥])?\s?(?:(?P<over>百分之))?(?:{_NUMBER})(?:[ -]?(?P<unit>{_alternatives(list(_UNIT))}))?",
    re.IGNORECASE,
)
_HALF = re.compile(r"\bhalf (?:of |the |an? )?(?P<hour>hour)?|(?P<zh>半(?=个?小时))|(?P<share>一半|半价)", re.IGNORECASE)
_PART = rf"[{_NUMERAL}]{{1,3}}|\d{{1,2}}"
_MONTH = "|".join(f"{m}|{m[:3]}\\b\\.?" if m != "may" else m for m in _MONTHS)
_DATE = re.compile(
    rf"(?P<iy>\d{{4}})[-/.](?P<im>\d{{1,2}})[-/.](?P<id>\d{{1,2}})(?!\d)"
    rf"|(?:(?P<cy>\d{{4}}|[零〇一二三四五六七八九]{{4}})年)(?:(?P<cm>{_PART})月(?:(?P<cd>{_PART})[日号])?)?"
    rf"|(?P<zm>{_PART})月(?P<zd>{_PART})[日号]"
    rf"|(?<![A-Za-z\d])(?P<ed>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<em>{_MONTH})(?![A-Za-z])(?:,? (?P<ey>\d{{4}})(?!\d))?"
    rf"|(?<![A-Za-z])(?P<am>{_MONTH}) (?:(?P<ad>\d{{1,2}})(?!\d)(?:st|nd|rd|th)?(?:,? (?P<ay>\d{{4}})(?!\d))?|(?P<by>\d{{4}})(?!\d))",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"(?<![\d:])(?P<h>[01]?\d|2[0-4]):(?P<m>[0-5]\d)(?![\d:])(?:\s?(?P<half>[ap])\.?m\b\.?)?"
    r"|(?<![\d:.,])(?P<h2>1[0-2]|[1-9])\s?(?P<half2>[ap])\.?m\b\.?"
    rf"|(?P<day>凌晨|早上|清晨|上午|中午|下午|傍晚|晚上|夜里|晚)?(?P<h3>{_PART})[点點时](?![钟头零一二三四五六七八九\d]+[%元])"
    rf"(?:(?P<bian>半)|(?P<ke>[一三])刻|(?P<m3>{_PART})分?)?(?=[钟整]|[^间候期]|$)"
    r"|(?P<noon>\bnoon\b|正午)|(?P<midnight>\bmidnight\b|午夜)",
    re.IGNORECASE,
)
_WEEKDAY = re.compile(rf"\b(?P<en>{'|'.join(_WEEKDAYS)})s?\b|(?:星期|周|礼拜)(?P<zh>[一二三四五六日天])", re.IGNORECASE)


@dataclass(frozen=True)
class Quantity:
    """A quantity from `start` to `end` (exclusive) of its text.

    `dimension` is `number`, `date`, `clock` (`clock12`: morning or evening not said), `weekday`, a currency or a name of
    physical dimension; `value` is in that dimension's unit (a clock's in minutes, a date is year * 10000 + month * 100 +
    day with 0 for what is not said); `parts` are the plain numbers as written.
    """

    start: int
    end: int
    dimension: str
    value: float
    parts: tuple[float, ...]


def find_quantities(text: str) -> list[Quantity]:
    """Return the quantities of a text in order; its width should be folded (`guards.normalize`)."""
    found: list[Quantity] = []
    taken = bytearray(len(text))
    for pattern, read in ((_DATE, _date), (_TIME, _time), (_WEEKDAY, _weekday), (_HALF, _half), (_QUANTITY, _quantity)):
        for match in pattern.finditer(text):
            if not any(taken[match.start() : match.end()]) and (quantity := read(match, text)):
                found.append(quantity)
                taken[quantity.start : quantity.end] = b"\1" * (quantity.end - quantity.start)
    return sorted(found, key=lambda q: q.start)


def occurs(claimed: Quantity, known: list[Quantity]) -> bool:
    """Whether a claimed quantity is among the known ones, in any spelling; one without a unit matches any unit."""
    return any(_agrees(claimed, other) for other in known)


def _agrees(claimed: Quantity, other: Quantity) -> bool:
    if claimed.dimension == other.dimension == "date":
        fields = [(a, b) for a, b in zip(_fields(claimed.value), _fields(other.value), strict=True) if a]
        return all(a == b for a, b in fields)
    if claimed.dimension == other.dimension:
        return math.isclose(claimed.value, other.value, rel_tol=2e-3)
    if claimed.dimension == "clock12" and other.dimension == "clock":
        return claimed.value % 720 == other.value % 720
    if claimed.dimension == "clock" and other.dimension == "clock12":
        return claimed.value == other.value
    if "number" in {claimed.dimension, other.dimension}:
        return any(math.isclose(a, b, rel_tol=1e-6) for a in claimed.parts for b in other.parts)
    return False


def numeral(text: str) -> float:
    """Return the value of a Chinese numeral: 三百零五 is 305, 二〇二四 is 2024, 一点五 is 1.5."""
    if "点" in text and text[-1] in _GROUPS:
        return numeral(text[:-1]) * _GROUPS[text[-1]]
    whole, _, decimals = text.partition("点")
    if not any(c in _POWERS or c in _GROUPS for c in whole):
        value = float("".join(str(_DIGITS[c]) for c in whole) or 0)
    else:
        total = section = digit = 0
        for char in whole:
            if char in _DIGITS:
                digit = _DIGITS[char]
            elif char in _POWERS:
                section += (digit or 1) * _POWERS[char]
                digit = 0
            else:
                group = _GROUPS[char]
                total = total + (section + digit or 1) * group if total > group else (total + section + digit or 1) * group
                section = digit = 0
        value = float(total + section + digit)
    return value + (float("0." + "".join(str(_DIGITS.get(c, 0)) for c in decimals)) if decimals else 0)


def _number_words(text: str) -> float:
    total = current = 0.0
    for word in re.split(r"[ -]", text.lower()):
        if word in _WORDS:
            current += _WORDS[word]
        elif word == "hundred":
            current = (current or 1) * 100
        elif word in _SCALES:
            total += (current or 1) * _SCALES[word]
            current = 0
    return total + current


def _quantity(match: re.Match[str], text: str) -> Quantity | None:
    digits, chinese, words = match["digits"], match["numeral"], match["words"]
    unit = (match["unit"] or "").lower()
    start = match.start() + len(match[0]) - len(match[0].lstrip())
    if digits:
        plain = float(digits.replace(",", ""))
        scale = (match["scale"] or "").lower()
        value = plain * (_SCALES.get("billion" if scale == "bn" else scale) or (numeral("一" + scale) if scale else 1))
    elif chinese:
        following = text[match.end() : match.end() + 1]
        counted = unit or match["over"] or (following and following in _COUNTERS)
        if not counted and (len(chinese) == 1 or chinese in _IDIOMS):
            return None
        value = plain = numeral(chinese)
    else:
        value = plain = _number_words(words)
    if match["over"]:
        dimension, factor = "percent", 1.0
    else:
        spelling = unit if unit in _UNIT else unit.removesuffix("s")
        dimension, factor = _UNIT.get(spelling) or _UNIT.get((match["prefix"] or "").lower(), ("number", 1.0))
    return Quantity(start, match.end(), dimension, value * factor, tuple({plain, value}))


def _half(match: re.Match[str], _text: str) -> Quantity:
    if match["hour"] or match["zh"]:
        return Quantity(*match.span(), "duration", 1800.0, (0.5, 30))
    return Quantity(*match.span(), "percent", 50.0, (50, 0.5))


def _fields(date: float) -> tuple[int, int, int]:
    return int(date) // 10000, int(date) // 100 % 100, int(date) % 100


def _part(text: str | None) -> int:
    if not text:
        return 0
    return int(text) if text.isascii() else int(numeral(text))


def _date(match: re.Match[str], _text: str) -> Quantity | None:
    year, month, day = (
        next((match[name] for name in names if match[name]), None)
        for names in (("iy", "cy", "ey", "ay", "by"), ("im", "cm", "zm", "em", "am"), ("id", "cd", "zd", "ed", "ad"))
    )
    if month and month[0].isalpha() and month.isascii():
        number = next(i for i, name in enumerate(_MONTHS, 1) if name.startswith(month.lower().rstrip(".")[:3]))
    else:
        number = _part(month)
    fields = (_part(year), number, _part(day))
    if fields[1] > 12 or fields[2] > 31:
        return None
    return Quantity(
        *match.span(), "date", float(fields[0] * 10000 + fields[1] * 100 + fields[2]), tuple(float(f) for f in fields if f)
    )


def _time(match: re.Match[str], _text: str) -> Quantity | None:
    if match["noon"] or match["midnight"]:
        return Quantity(*match.span(), "clock", 720.0 if match["noon"] else 0.0, ())
    hour = _part(match["h"] or match["h2"] or match["h3"])
    minute = 30 if match["bian"] else 15 * _part(match["ke"]) if match["ke"] else _part(match["m"] or match["m3"])
    half = (match["half"] or match["half2"] or "").lower()
    evening = (
        half == "p" or (match["day"] or "") in {"下午", "傍晚", "晚上", "晚", "夜里"} or (match["day"] == "中午" and hour < 3)
    )
    said = bool(half or match["day"]) or hour > 12 or (match["h"] or "").startswith("0")
    if hour > 24 or minute > 59 or (match["h3"] and not (match["day"] or match["bian"] or match["ke"] or match["m3"] or match[0][-1] in "点點")):  # fmt: skip
        return None
    clock = (hour % 12 + 12 if evening and hour <= 12 else 0 if half == "a" and hour == 12 else hour % 24) * 60 + minute
    return Quantity(*match.span(), "clock" if said else "clock12", float(clock), (float(hour), float(minute)))


def _weekday(match: re.Match[str], _text: str) -> Quantity:
    value = (
        _WEEKDAYS.index(match["en"].lower()) + 1 if match["en"] else "一二三四五六日".find(match["zh"].replace("天", "日")) + 1
    )
    return Quantity(*match.span(), "weekday", float(value), ())
