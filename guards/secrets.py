"""Keys, tokens and passwords: what vendors document of their forms, assignments, and randomness."""

from __future__ import annotations

import base64
import codecs
import math
import re
from collections import Counter

from guards.pattern import Pattern

ENTITIES = ("SECRET_KEY", "SECRET_PASSWORD", "SECRET_PRIVATE_KEY", "SECRET_TOKEN")

_RANDOM_BITS = 4.2  # Shannon entropy a character; English words in camel case stay below 4
_EACH = 3  # characters of each class that a random key of its length has almost surely
_PLACEHOLDER = re.compile(
    r"(?i)[<{$*\[(]|x{4}|your|example|changeme|placeholder|process\.|environ|getenv|none$|null$|true$|false$|required"
)
_KEY_BEFORE, _KEY_AFTER = r"(?<![A-Za-z0-9_-])", r"(?![A-Za-z0-9_-])"
# Prefixes documented by the vendors that issue the keys, with their lengths.
_VENDOR_KEYS = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",  # AWS
    r"AIza[\w-]{35}|GOCSPX-[\w-]{28}|ya29\.[\w-]{20,400}",  # Google
    r"LTAI[A-Za-z0-9]{12,26}|AKID[A-Za-z0-9]{32}",  # Alibaba, Tencent
    r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}",  # GitHub
    r"gl(?:pat|rt|ptt|dt)-[\w-]{20,60}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,200}|xapp-\d-[A-Za-z0-9-]{10,200}",  # Slack
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,200}|whsec_[A-Za-z0-9]{24,64}",  # Stripe
    r"sk-(?:proj|svcacct|admin|ant|or)-[\w-]{20,200}|sk-[A-Za-z0-9]{20,64}",  # OpenAI, Anthropic and those who follow them
    r"hf_[A-Za-z0-9]{30,40}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,250}",  # model hub, package registries
    r"SG\.[\w-]{22}\.[\w-]{43}|SK[0-9a-f]{32}|key-[0-9a-f]{32}",  # SendGrid, Twilio, Mailgun
    r"do[opr]_v1_[0-9a-f]{64}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|dapi[0-9a-f]{32}",  # DigitalOcean, Shopify, Databricks
    r"glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}|hvs\.[\w-]{24,200}|\d{8,10}:AA[\w-]{33}",  # Grafana, Vault, Telegram
)


def entropy(value: str) -> float:
    """Return Shannon's entropy of a value, in bits a character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def random_key(value: str) -> float | None:
    """Accept what looks drawn at random: all classes of characters, evenly spread, and no text in base64."""
    classes = (str.isdigit, str.islower, str.isupper)
    if any(sum(map(kind, value)) < _EACH for kind in classes) or entropy(value) < _RANDOM_BITS or _is_text(value):
        return None
    return 0.5


def _is_text(value: str) -> bool:
    raw = value.rstrip("=")
    try:
        decoded = base64.b64decode(raw[: len(raw) // 4 * 4], altchars=b"-_" if "-" in raw or "_" in raw else None)
        text = codecs.getincrementaldecoder("utf-8")().decode(decoded)  # the value may end in the middle of a character
    except ValueError:
        return False
    return text.replace("\n", "").isprintable()


def password(value: str) -> float | None:
    """Accept an assigned password with a digit or sign in it, unless it stands for another."""
    if _PLACEHOLDER.search(value) or value.isalpha():
        return None
    return 0.7


def assigned_key(value: str) -> float | None:
    """Accept an assigned key with digits and letters in it, unless it stands for another."""
    if _PLACEHOLDER.search(value) or not re.search(r"\d", value) or not re.search(r"[A-Za-z]", value):
        return None
    return 0.7


PATTERNS = (
    Pattern(
        "SECRET_PRIVATE_KEY",
        r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[\sA-Za-z0-9+/=:,.\\-]{0,8000}?-----END (?:[A-Z0-9]{2,12} ){0,3}"
        r"PRIVATE KEY(?: BLOCK)?-----|[\sA-Za-z0-9+/=:,.\\]{0,8000})", 1.0, needs="-----BEGIN ",
    ),
    Pattern("SECRET_KEY", rf"{_KEY_BEFORE}(?:{'|'.join(_VENDOR_KEYS)}){_KEY_AFTER}", 0.95, needs=r"[A-Za-z0-9_.-]{16}"),
    Pattern("SECRET_TOKEN", rf"{_KEY_BEFORE}eyJ[\w-]{{8,2000}}\.eyJ[\w-]{{8,4000}}\.[\w-]{{8,1000}}", 0.95, needs="eyJ"),
    Pattern("SECRET_TOKEN", r"(?i)\b(?:bearer|basic) +([a-z0-9._~+/-]{20,2000}=*)", 0.8, check=assigned_key, needs="(?i)bearer|basic"),
    Pattern("SECRET_PASSWORD", r"://[^\s:/@]{1,64}:([^\s:/@]{3,128})@", 0.8, needs="://"),
    Pattern(
        "SECRET_PASSWORD",
        r"(?i)(?:passw(?:or)?d|\bpwd|passphrase|passcode|密码|口令)[\"']?(?: ?[:=]{1,2} ?| (?:is|was) |是|为)[\"']?([!-~]{4,64}?)(?=[\"',;)}\]]*(?:[^!-~]|$))",
        0.7, check=password, needs="(?i)passw|pwd|passphrase|passcode|密码|口令",
    ),
    Pattern(
        "SECRET_KEY",
        r"(?i)(?:api[_ -]?key|access[_ -]?key(?:[_ -]?(?:id|secret))?|secret(?:[_ -]?(?:access)?[_ -]?key)?|private[_ -]?key|account[_ -]?key"
        r"|(?:auth|access|refresh|api|bot)[_ -]?token|\btoken|client[_ -]?secret|密钥|令牌)[\"']?(?: ?[:=]{1,2} ?| is |是|为)[\"']?"
        r"([a-z0-9+/_.~=-]{12,200})", 0.7, check=assigned_key, needs="(?i)key|secret|token|密钥|令牌",
    ),
    Pattern("SECRET_KEY", r"(?<![A-Za-z0-9+/_.=@-])[A-Za-z0-9+/_-]{32,200}={0,2}(?![A-Za-z0-9+/_=@-])", 0.5, check=random_key, needs=r"[A-Za-z0-9+/_-]{32}"),
)  # fmt: skip
