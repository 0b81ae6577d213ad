"""Identifiers used in China: patterns and check digits. Plain data and functions; `guards.pii` hands them to Presidio.

A check digit raises a score and does not gate: real text has typing errors, and a wrong number may still be somebody's.
"""

from __future__ import annotations

from datetime import date

from guards.pattern import AFTER, BEFORE, Pattern, digits, luhn

# GB/T 2260: the first two digits of a region.
_PROVINCES = frozenset([
    "11", "12", "13", "14", "15", "21", "22", "23", "31", "32", "33", "34", "35", "36", "37", "41", "42", "43", "44", "45",
    "46", "50", "51", "52", "53", "54", "61", "62", "63", "64", "65", "71", "81", "82", "83",
])  # fmt: skip
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_LENGTH = 18
_UNIONPAY_LENGTH = 19
_USCC_ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
_USCC_WEIGHTS = (1, 3, 9, 27, 19, 26, 16, 17, 20, 29, 25, 13, 8, 24, 10, 30, 28)
_WEAK = 0.3  # needs context

_PLATE_PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_REGIONS = (
    "北京|天津|上海|重庆|河北|山西|内蒙古|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|广西|海南|四川|贵州|云南|"
    "西藏|陕西|甘肃|青海|宁夏|新疆|台湾|香港|澳门"
)
_HAN = r"[\u4e00-\u9fff]"
# Characters that end what comes before a name of a place: "lives in", "from", "to", "of".
_NAME = r"(?:(?![在是到至往去住址的与及或省市区县路街号])[\u4e00-\u9fff])"
_AREA = rf"{_NAME}{{1,7}}(?:自治[区州县旗]|特别行政区|地区|新区|[市区县州盟旗])"
_SECTION = "(?:[东南西北中一二三四五六七八九]段)?"
_ROAD = (
    rf"(?:(?:(?![在是到至往去住址的与及或])[\u4e00-\u9fffA-Z0-9]){{1,10}}?"
    rf"(?:街道|大道|大街|胡同|社区|小区|开发区|[路街道巷弄里镇乡村](?![路街道巷弄镇乡村])){_SECTION})"
)
_SIGN = "[0-9A-Z一二三四五六七八九十甲乙丙丁]"
_NUMBER = (
    rf"(?:[第东西南北中]?{_SIGN}{{1,6}}(?:[-之][0-9A-Z]{{1,5}}){{0,3}}(?:号院|号楼|单元|号|弄|幢|栋|座|楼|层|室|组|门)"
    r"(?:之[一二三四五])?(?:[0-9]{3,4}(?![0-9号弄幢栋座楼层室单]))?)"
)
_PLACE = (
    r"(?:(?:(?![在是到至往去住址的与及或])[\u4e00-\u9fff]){2,10}?"
    r"(?:花园|公寓|大厦|广场|家园|中心|产业园|科技园|大楼|[苑园城府院])(?:[A-Z]?[0-9]{1,4}(?:-[0-9A-Z]{1,5}){1,3}(?![0-9A-Z]))?)"
)
_DETAIL = rf"(?:(?:[ ,]?{_ROAD}){{0,2}}(?:[ ,]?{_NUMBER}){{0,4}}(?:[ ,]?{_PLACE})?(?:[ ,]?{_NUMBER}){{0,4}})"


def id_card(value: str) -> float | None:
    """GB 11643: a right date and a known province make a number likely; the check digit (ISO 7064 mod 11-2) settles it.

    The old form of 15 digits has no check digit and a year of two digits.
    """
    value = value.replace(" ", "").replace("-", "").upper()
    old = len(value) != _ID_LENGTH
    born = f"19{value[6:12]}" if old else value[6:14]
    try:
        birthday = date.fromisoformat(born)
    except ValueError:
        return None if old else 0.1
    known = value[:2] in _PROVINCES
    if not date(1900, 1, 1) <= birthday <= date.today():  # noqa: DTZ011  a birthday has no time zone
        return 0.1
    if old:
        return _WEAK if known else None
    total = sum(int(digit) * weight for digit, weight in zip(value[:17], _ID_WEIGHTS, strict=True))
    if "10X98765432"[total % 11] == value[17]:
        return 1.0
    return 0.6 if known else 0.45


def bank_card(value: str) -> float | None:
    """Card numbers of 16-19 digits; without the check digit they need context, but for UnionPay's own length of 19."""
    if not luhn(value):
        return 0.45 if value.startswith("62") and len(digits(value)) == _UNIONPAY_LENGTH else _WEAK
    return 1.0 if value.startswith("62") else 0.55


def company(value: str) -> float | None:
    """GB 32100, the number of a company: its check digit gates, since other numbers have the same form."""
    total = sum(_USCC_ALPHABET.index(char) * weight for char, weight in zip(value[:17], _USCC_WEIGHTS, strict=True))
    if _USCC_ALPHABET[-total % 31] != value[17]:
        return None
    return 0.45 if value.isdigit() else 0.9


def bare_account(value: str) -> float | None:
    """Accept the number of a QQ account unless it is one digit again and again."""
    return 0.65 if len(set(digits(value))) > 1 else None


PATTERNS = (
    Pattern(
        "CN_ID_CARD", rf"{BEFORE}\d{{6}}[ -]?\d{{8}}[ -]?\d{{3}}[\dXx]{AFTER}", 0.6,
        r"(?i)身份|证件|证号|公民|\bid\b|identi", id_card,
    ),
    Pattern("CN_ID_CARD", rf"{BEFORE}\d{{15}}{AFTER}", _WEAK, r"(?i)身份|证件|证号|公民|\bid\b|identi", id_card),
    Pattern(
        "CN_BANK_CARD", rf"{BEFORE}62\d{{2}}(?:[ -]?\d{{4}}){{3}}(?:[ -]?\d{{1,3}})?{AFTER}", _WEAK,
        r"(?i)卡号|账号|账户|帐号|帐户|银行|储蓄|借记|信用卡|\bcard|account|unionpay", bank_card,
    ),
    Pattern(
        "CN_BANK_CARD", rf"{BEFORE}[3-9]\d{{3}}(?:[ -]?\d{{4}}){{3}}(?:[ -]?\d{{1,3}})?{AFTER}", _WEAK,
        "卡号|账号|账户|帐号|帐户|银行|储蓄|借记|信用卡", bank_card,
    ),
    Pattern("CN_PASSPORT", rf"{BEFORE}(?:[EeGg]\d{{8}}|[Ee][A-HJ-NP-Za-hj-np-z]\d{{7}}|[DSPdsp]\d{{7}}|[HMChmc]\d{{8,10}}){AFTER}", _WEAK,
            r"(?i)护照|通行证|回乡证|passport|travel permit"),
    Pattern(
        "CN_PLATE",
        rf"[{_PLATE_PROVINCES}][A-HJ-NP-Z][·. -]?(?:[DF][A-HJ-NP-Z0-9]\d{{4}}|\d{{5}}[DF]|[A-HJ-NP-Z0-9]{{4}}[A-HJ-NP-Z0-9挂学警港澳]){AFTER}", 0.6,
    ),
    Pattern("CN_USCC", rf"{BEFORE}[159ANY][1-9A-GY]\d{{6}}[0-9A-HJ-NP-RTUWXY]{{10}}{AFTER}", 0.9, "信用代码|税号|纳税人|执照", company),
    Pattern("CN_QQ", r"(?i)(?:\bQQ|企鹅)(?:号码?|群)?[ :是为]{0,3}([1-9]\d{4,10})(?![0-9A-Za-z.])", 0.65, check=bare_account),
    Pattern(
        "CN_WECHAT",
        r"(?i)(?:微信|wechat|weixin|\b[wv]x|V信)(?:号|id|账号)?(?: ?[:=]| ?[是为]|(?<=[号信])) ?([a-z][a-z0-9_-]{5,19})(?![a-z0-9_-])", 0.65,
        needs="(?i)微信|wechat|weixin|[wv]x|V信",
    ),
    Pattern("CN_POSTCODE", r"(?i)(?:邮编|邮政编码|postcode|postal code|zip code)[ :是为]{0,3}(\d{6})(?![0-9A-Za-z])", 0.65),
    # A region by name and what is below it, down to the number of the house.
    Pattern("CN_ADDRESS", rf"(?:{_REGIONS})(?:省|市|(?:壮族|回族|维吾尔)?自治区|特别行政区)?[ ,]?(?:{_AREA}[ ,]?){{1,3}}(?:{_ROAD}|{_NUMBER})(?:{_DETAIL})", 0.75,
            needs="[市区县州盟旗]"),
    Pattern("CN_ADDRESS", rf"(?:{_AREA}[ ,]?){{1,3}}(?:{_ROAD}[ ,]?){{1,2}}(?:{_PLACE})?{_NUMBER}(?:{_DETAIL})", 0.65, needs="[号弄幢栋座楼层室]"),
    # A street and a number alone.
    Pattern("CN_ADDRESS", rf"{_NAME}{{2,6}}?(?:大道|大街|胡同|[路街巷弄道]){_SECTION}[ ,]?{_NUMBER}(?:[ ,]?{_PLACE})?(?:[ ,]?{_NUMBER}){{0,5}}", 0.5, needs="[号弄幢栋座楼层室]"),
)  # fmt: skip
