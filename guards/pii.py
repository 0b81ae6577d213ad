r"""Personal data by pattern: Presidio, without any language model. The only file that knows Presidio.

Presidio's stock recognizers take `\b` in its Unicode sense and so miss values glued to Chinese characters; compiled with
ASCII classes they do not. One analyzer holds the patterns of both languages: no language has to be guessed.
"""

from __future__ import annotations

import functools
import os  # noqa: TID251  Presidio reads its regex time-out from the environment at import
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guards.china import PATTERNS, Pattern
from guards.normalize import normalize

if TYPE_CHECKING:
    from collections.abc import Collection

    from presidio_analyzer import AnalyzerEngine

ENTITIES = (
    "CREDIT_CARD", "CN_BANK_CARD", "CN_ID_CARD", "CN_LANDLINE", "CN_MOBILE", "CN_PLATE",
    "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER", "US_SSN",
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Personal data from `start` to `end` (exclusive) of the text that was searched."""

    start: int
    end: int
    entity: str
    score: float


def find_pii(text: str, entities: Collection[str], threshold: float) -> list[Span]:
    """Return the personal data in a text, in order and without overlaps: the longer span wins, then the higher score.

    `text` is searched in its normalised form; the spans are those of the original.
    """
    if not any(char.isdigit() or char in "@＠" for char in text):
        return []
    seen = normalize(text)
    results = _analyzer().analyze(seen.text, language="en", entities=list(entities), score_threshold=threshold)
    spans = [Span(*seen.span(r.start, r.end), r.entity_type, r.score) for r in results if r.end > r.start]
    chosen: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start - s.end, -s.score, s.start, s.entity)):
        if all(span.end <= other.start or span.start >= other.end for other in chosen):
            chosen.append(span)
    return sorted(chosen, key=lambda s: s.start)


@functools.cache
def _analyzer() -> AnalyzerEngine:
    os.environ.setdefault("REGEX_TIMEOUT_SECONDS", "2")
    import regex
    import tldextract

    with _without("torch"), _without("transformers"):
        from presidio_analyzer import AnalyzerEngine, PatternRecognizer, RecognizerRegistry
        from presidio_analyzer import Pattern as PresidioPattern
        from presidio_analyzer import predefined_recognizers as stock
        from presidio_analyzer.nlp_engine import NoOpNlpEngine

    # The stock extractor asks the network for a list of suffixes at its first use.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Checked(PatternRecognizer):
        def __init__(self, entity: str, patterns: list[Pattern]) -> None:
            self._checks = {p.entity: p.check for p in patterns}
            super().__init__(entity, name=entity, patterns=[PresidioPattern(entity, p.regex, p.score) for p in patterns])

        def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None, regex_flags: Any = None) -> list[Any]:
            results = super().analyze(text, entities, nlp_artifacts, regex_flags)
            check = self._checks[self.supported_entities[0]]
            if check is None:
                return results
            kept: list[Any] = []
            for result in results:
                score = check(text[result.start : result.end])
                if score is not None:
                    result.score = score
                    kept.append(result)
            return kept

    registry = RecognizerRegistry(supported_languages=["en"])
    recognizers: list[Any] = [
        stock.CreditCardRecognizer(),
        stock.EmailRecognizer(),
        stock.IbanRecognizer(),
        stock.IpRecognizer(),
        stock.PhoneRecognizer(supported_regions=("US", "GB")),
        stock.UsSsnRecognizer(),
    ]
    by_entity: dict[str, list[Pattern]] = {}
    for pattern in PATTERNS:
        by_entity.setdefault(pattern.entity, []).append(pattern)
    recognizers += [Checked(entity, patterns) for entity, patterns in by_entity.items()]
    for recognizer in recognizers:
        if hasattr(recognizer, "global_regex_flags"):
            recognizer.global_regex_flags |= regex.ASCII
        registry.add_recognizer(recognizer)
    nlp_engine = NoOpNlpEngine(models=[{"lang_code": "en", "model_name": "none"}])
    nlp_engine.load()
    return AnalyzerEngine(registry=registry, nlp_engine=nlp_engine, supported_languages=["en"])


@contextmanager
def _without(module: str) -> Generator[None]:
    """Let imports do without a module that they take where they find it.

    Presidio imports transformers, and through spaCy torch: seconds and 300 MB for a process that has no use for them.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # pyright: ignore[reportArgumentType]  what makes `import` raise ImportError
    try:
        yield
    finally:
        del sys.modules[module]
