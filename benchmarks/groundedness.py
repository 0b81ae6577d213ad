"""The claim checker against answers that are true by construction, and the same answers with one thing made wrong.

True sentences of documents are answers; each corruption changes one thing in them, each rewording keeps their truth. Another
passage of the collection stands beside the true one. Run: `python benchmarks/groundedness.py rag/documents MORE...`, where a
path is a folder of texts or holds `*/corpus.jsonl.gz` with a `text` a line. Prints figures, the last line is JSON.
"""

# ruff: noqa: E501, SIM905, PLR2004  patterns and word lists are read whole; lengths

from __future__ import annotations

import argparse
import collections
import gzip
import json
import random
import re
import statistics
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

from guards import claims
from guards.quantities import find_quantities
from guards.sentences import CITATION, is_chinese, split

Change = Callable[[str, str, str, random.Random], str | None]
"""From a sentence, its passage and a foreign passage to the changed sentence, or None where it does not apply."""


def passages(path: Path) -> Iterator[str]:
    """Yield the texts at a path, of 150 to 1,500 characters."""
    corpora = sorted(path.glob("*/corpus.jsonl.gz"))
    for corpus in corpora:
        with gzip.open(corpus, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        yield from (text for text in texts if 150 <= len(text) <= 1500)
    if not corpora:
        for file in sorted([*path.glob("*.md"), *path.glob("*.txt")]):
            yield file.read_text(encoding="utf-8")


def _number(text: str, passage: str, _other: str, rng: random.Random) -> str | None:
    found = list(re.finditer(r"(?<![A-Za-z\d.,:\-/])\d{1,6}(?![\d.,:\-/]\d|[A-Za-z\d])", text))
    if not found:
        return None
    match = rng.choice(found)
    value = str(int(match[0]) + rng.choice([1, 2, 3, 7, 10]))
    return None if re.search(rf"(?<!\d){value}(?!\d)", passage) else text[: match.start()] + value + text[match.end() :]


def _swap(pairs: list[tuple[str, str]], *, first: bool = False) -> Change:
    def change(text: str, _passage: str, _other: str, rng: random.Random) -> str | None:
        options = [(m, new) for old, new in pairs for m in re.finditer(old, text, re.IGNORECASE)]
        if not options:
            return None
        match, new = options[0] if first else rng.choice(options)
        return text[: match.start()] + match.expand(new) + text[match.end() :]

    return change


_unit = _swap(
    [
        (r"(\d ?)km\b", r"\1m"), (r"(\d )kilomet(?:er|re)s?\b", r"\1miles"), (r"(\d )miles?\b", r"\1kilometres"), (r"(\d ?)%", r"\1 km"),
        (r"(\d )percent\b", r"\1kilograms"), (r"(\d )hours?\b", r"\1days"), (r"(\d )days?\b", r"\1weeks"), (r"(\d )years?\b", r"\1months"),
        (r"(\d )minutes?\b", r"\1hours"), (r"(\d ?)公里", r"\1米"), (r"(\d ?)米", r"\1公里"), (r"(\d ?)公斤", r"\1克"), (r"(\d ?)小时", r"\1天"),
        (r"(\d ?)分钟", r"\1小时"), (r"(\d ?)(?:美元|欧元)", r"\1日元"), (r"(\d ?)平方公里", r"\1平方米"), (r"(\d ?)个月", r"\1天"), (r"(\d ?)天", r"\1个月"),
        (r"(\d )euros\b", r"\1dollars"), (r"(\d )months?\b", r"\1years"), (r"(\d )weeks?\b", r"\1days"), (r"\$(\d)", r"€\1"),
    ]
)  # fmt: skip


def _date(text: str, passage: str, _other: str, rng: random.Random) -> str | None:
    dates = [q for q in find_quantities(text) if q.dimension == "date" and re.search(r"\d", text[q.start : q.end])]
    if not dates:
        return None
    date = rng.choice(dates)
    digits = list(re.finditer(r"\d+", text[date.start : date.end]))
    match = rng.choice(digits)
    old = int(match[0])
    new = str(old + rng.choice([-3, -1, 1, 2])) if old > 31 else str(old % 12 + 1)
    changed = text[: date.start + match.start()] + new + text[date.start + match.end() :]
    shifted = changed[date.start : date.end + len(new) - len(match[0])]
    return None if shifted in passage else changed


def _name(text: str, passage: str, other: str, rng: random.Random) -> str | None:
    if is_chinese(text):
        return None
    pattern = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}")
    skip = re.compile(r"January|February|March|April|June|July|August|September|October|November|December|\w+day$")
    ours = [m for m in pattern.finditer(text) if not skip.match(m[0])]
    theirs = sorted({m[0] for m in pattern.finditer(other) if m[0] not in passage and not skip.match(m[0])})
    if not ours or not theirs:
        return None
    match = rng.choice(ours)
    return text[: match.start()] + rng.choice(theirs) + text[match.end() :]


def _quote(text: str, passage: str, other: str, rng: random.Random) -> str | None:
    pattern = re.compile(r"(?<=《)[^》]{2,}(?=》)|(?<=“)[^”]{2,}(?=”)|(?<=「)[^」]{2,}(?=」)|(?<= \")[^\"]{3,}(?=\"[ .,])")
    ours, words = list(pattern.finditer(text)), re.findall(r"[A-Za-z]{4,}|[\u4e00-\u9fff]{4}", other)
    if not ours or len(words) < 3:
        return None
    match, at = rng.choice(ours), rng.randrange(len(words) - 2)
    new = ("" if is_chinese(text) else " ").join(words[at : at + 2])
    return None if new in passage else text[: match.start()] + new + text[match.end() :]


_AUXILIARY = r"\b(is|are|was|were|can|could|will|would|has|have|had|may|must|should)\b(?! not)"
_negated = _swap(
    [
        (_AUXILIARY, r"\1 not"),
        (r"(?<![不没未无])(可以|能够|允许|需要|包括|属于|成为|具有|使用|认为|接受)", r"不\1"),
        (r"(?<![不没未无总还若但就])是(?=[一由在为中])", "不是"),
    ],
    first=True,
)
_affirmed = _swap(
    [
        (r"\b(\w+) not (?!only)", r"\1 "),
        (r"\bcannot\b", "can"),
        (r"(?<![是能会可要])不(可以|能|会|是|得|需|再|属于|包括)", r"\1"),
        (r"没有", "有"),
    ]
)
_antonym = _swap(
    [
        (r"\bbefore\b", "after"), (r"\bafter\b", "before"), (r"\bmore than\b", "less than"), (r"\bless than\b", "more than"), (r"\blargest\b", "smallest"),
        (r"\bincreased\b", "decreased"), (r"\bincludes\b", "excludes"), (r"\bfree\b", "paid"), (r"以上", "以下"), (r"之前", "之后"), (r"之后", "之前"), (r"超过", "少于"),
        (r"免费", "收费"), (r"增加", "减少"), (r"最大", "最小"), (r"允许", "禁止"), (r"可以", "不得"),
    ]
)  # fmt: skip


def _foreign(text: str, _passage: str, other: str, rng: random.Random) -> str | None:
    options = [other[a:b] for a, b in split(other) if b - a > 20 and is_chinese(text) == is_chinese(other[a:b])]
    return rng.choice(options) if options else None


def _reformat(text: str, _passage: str, _other: str, _rng: random.Random) -> str | None:
    """Numbers and dates in another spelling."""
    months = "January February March April May June July August September October November December".split()
    changed = re.sub(r"(?<=\d)%", "%" if is_chinese(text) else " percent", text)
    changed = re.sub(rf"\b({'|'.join(months)}) (\d{{1,2}}), (\d{{4}})", r"\2 \1 \3", changed)
    changed = re.sub(
        r"(?<![\d.])(\d{2})(?:\.\d+)?%", lambda m: "百分之" + _hanzi(int(m[1])) if "." not in m[0] else m[0], changed
    )
    changed = re.sub(r"(\d{4})年(\d{1,2})月(\d{1,2})日", lambda m: f"{m[1]}-{int(m[2]):02}-{int(m[3]):02}", changed)
    changed = re.sub(r"(?<![\d.,])(\d{1,3}),(\d{3})(?![\d,])", r"\1\2", changed)
    changed = re.sub(r"(?<![\d.,\-–])(\d{1,2})(?= ?(?:个|人|名|次|天|小时|分钟|公里))", lambda m: _hanzi(int(m[1])), changed)
    return changed if changed != text else None


def _hanzi(value: int) -> str:
    digits = "零一二三四五六七八九"
    tens, ones = divmod(value, 10)
    return digits[value] if value < 10 else ("" if tens == 1 else digits[tens]) + "十" + (digits[ones] if ones else "")


def _reorder(text: str, _passage: str, _other: str, _rng: random.Random) -> str | None:
    match = re.fullmatch(r"([^,，]{6,}?)([,，]\s?)([^,，]{6,})([.。])", text)
    return f"{match[3]}{match[2]}{match[1]}{match[4]}" if match and not re.search(r"[\"“”「《]", text) else None


_synonym = _swap(
    [
        (r"\bmany\b", "numerous"), (r"\blarge\b", "big"), (r"\bbegan\b", "started"), (r"\balso\b", "in addition"), (r"\bhowever\b", "yet"), (r"\bshow(?:s|ed)?\b", "demonstrated"),
        (r"\bused\b", "employed"), (r"\bimportant\b", "significant"), (r"因为", "由于"), (r"但是", "不过"), (r"著名", "知名"), (r"开始", "起"), (r"建立", "成立"), (r"目前", "现在"),
        (r"许多", "很多"), (r"大约", "约"), (r"位于", "坐落于"), (r"并且", "而且"), (r"cannot", "can not"), (r"\bis not\b", "isn't"),
    ]
)  # fmt: skip


def _prefixed(text: str, _passage: str, _other: str, _rng: random.Random) -> str | None:
    return "根据资料," + text if is_chinese(text) else "According to the passage, " + text


def _same(text: str, _passage: str, _other: str, _rng: random.Random) -> str | None:
    return text


WRONG: dict[str, Change] = {
    "number": _number, "unit": _unit, "date": _date, "name": _name, "quote": _quote, "negated": _negated, "affirmed": _affirmed,
    "antonym": _antonym, "foreign": _foreign, "citation": _same,
}  # fmt: skip
RIGHT: dict[str, Change] = {"same": _same, "reformat": _reformat, "reorder": _reorder, "synonym": _synonym, "prefixed": _prefixed}


def main() -> None:
    """Build the benchmark from the paths and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--passages", type=int, default=300, help="of each path")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", default="", help="print the errors of this kind, at most 20")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)  # noqa: S311  a benchmark

    flagged: dict[tuple[str, str], list[bool]] = collections.defaultdict(list)
    scores: dict[bool, list[float]] = {True: [], False: []}
    times: list[float] = []
    for path in arguments.paths:
        texts = list(passages(path))
        rng.shuffle(texts)
        texts = texts[: arguments.passages]
        languages = [is_chinese(text) for text in texts]
        for index, passage in enumerate(texts):
            sentences = [passage[a:b] for a, b in split(passage) if 12 <= b - a <= 300 and not CITATION.search(passage[a:b])]
            others = [t for t, zh in zip(texts, languages, strict=True) if t is not passage and zh == languages[index]]
            if not sentences or not others:
                continue
            sentence, other, beside = rng.choice(sentences), rng.choice(others), texts[index - 1]
            sources = [passage, beside, other]
            for right, changes in ((False, WRONG), (True, RIGHT)):
                for kind, change in changes.items():
                    foreign = rng.choice(others) if kind == "foreign" else other
                    if foreign is other and kind == "foreign":
                        continue
                    answer = change(sentence, passage, foreign, rng)
                    if answer is None or (not right and kind != "citation" and answer in passage):
                        continue
                    answer = answer.strip() + (" [3]" if kind == "citation" else " [1]")
                    started = time.process_time()
                    result = claims.check(answer, sources)
                    times.append(1000 * (time.process_time() - started))
                    language = "zh" if is_chinese(sentence) else "en"
                    flagged[kind, language].append(bool(result.unsupported))
                    scores[right].append(min((c.score for c in result.claims), default=1.0))
                    if kind == arguments.show and bool(result.unsupported) == right and rng.random() < 0.2:
                        print(kind, [c.reason for c in result.claims], answer, "| was:", sentence)
    figures: dict[str, float] = {}
    for (kind, language), found in sorted(flagged.items()):
        figures[f"{kind}/{language}"] = round(sum(found) / len(found), 3)
        print(
            f"{'false alarms' if kind in RIGHT else 'recall':12} {kind:9} {language} {figures[f'{kind}/{language}']:.3f} of {len(found)}"
        )
    alarms = [hit for (kind, _), found in flagged.items() if kind in RIGHT for hit in found]
    figures["false_alarms"] = round(sum(alarms) / len(alarms), 4)
    figures["auc"] = round(_auc(scores[True], scores[False]), 4)
    figures["ms_median"] = round(statistics.median(times), 3)
    figures["ms_p95"] = round(statistics.quantiles(times, n=20)[-1], 3)
    print(json.dumps(figures))


def _auc(right: list[float], wrong: list[float]) -> float:
    """Return the chance that a true answer scores higher than a false one; ties count half."""
    low = sorted(wrong)
    return sum(bisect_left(low, score) + bisect_right(low, score) for score in right) / (2 * len(right) * len(low))


if __name__ == "__main__":
    main()
