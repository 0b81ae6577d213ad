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

from guards import china, phones, secrets, world
from guards.normalize import normalize
from guards.pattern import CONTEXT, Pattern

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from presidio_analyzer import AnalyzerEngine

PATTERNS = (*world.PATTERNS, *phones.PATTERNS, *china.PATTERNS, *secrets.PATTERNS)

ENTITIES = tuple(sorted({"EMAIL_ADDRESS", "IBAN_CODE", *(pattern.entity for pattern in PATTERNS)}))

# What is masked unless a policy says otherwise. A URL is seldom a person's, and answers cite sources by it; a code of a
# post office, a company's number and a date say little about a person without what stands beside them.
DEFAULT_ENTITIES = tuple(e for e in ENTITIES if e not in {"CN_POSTCODE", "CN_USCC", "DATE_OF_BIRTH", "URL"})

# Values with characters that end a run of an identifier: a stream must hold the whole clause to find them.
CLAUSE_ENTITIES = frozenset({"CN_ADDRESS", "DATE_OF_BIRTH", "SECRET_PASSWORD"})

# Values of many lines: a stream must hold them from `-----BEGIN` on.
BLOCK_ENTITIES = frozenset({"SECRET_PRIVATE_KEY"})

__all__ = ["BLOCK_ENTITIES", "CLAUSE_ENTITIES", "CONTEXT", "DEFAULT_ENTITIES", "ENTITIES", "Span", "find_pii", "without_overlaps"]


@dataclass(frozen=True)
class Span:
    """Personal data from `start` to `end` (exclusive) of the text that was searched."""

    start: int
    end: int
    entity: str
    score: float


def find_pii(text: str, entities: Collection[str], threshold: float, *, context: str = "") -> list[Span]:
    """Return the personal data in a text, in order and without overlaps: the longer span wins, then the higher score.

    `text` is searched in its normalised form; the spans are those of the original. `context` is what stands right before it:
    it raises scores, and a value that begins in it is reported from the start of `text` on.
    """
    seen = normalize(text)
    before = normalize(context[-CONTEXT:]).text
    whole = before + seen.text
    wanted = _possible(whole, frozenset(entities))
    if not seen.text or not wanted:
        return []
    results = _analyzer().analyze(whole, language="en", entities=list(wanted), score_threshold=threshold)
    lead = len(before)
    return without_overlaps(
        Span(*seen.span(max(0, r.start - lead), r.end - lead), r.entity_type, r.score)
        for r in results
        if r.end > max(r.start, lead)
    )


def without_overlaps(spans: Iterable[Span]) -> list[Span]:
    """Return the spans in order, without those that overlap a longer one, or one as long with a higher score."""
    chosen: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start - s.end, -s.score, s.start, s.entity)):
        if all(span.end <= other.start or span.start >= other.end for other in chosen):
            chosen.append(span)
    return sorted(chosen, key=lambda s: s.start)


def _possible(text: str, entities: frozenset[str]) -> list[str]:
    """Return the entities that this text may hold."""
    found = {pattern.entity for pattern in PATTERNS if pattern.entity in entities and pattern.possible(text)}
    if "@" in text:
        found.add("EMAIL_ADDRESS")
    if any(char.isdigit() for char in text):
        found.add("IBAN_CODE")
    return sorted(found & entities)


@functools.cache
def _analyzer() -> AnalyzerEngine:
    os.environ.setdefault("REGEX_TIMEOUT_SECONDS", "2")
    import regex
    import tldextract

    with without("torch"), without("transformers"):
        from presidio_analyzer import AnalyzerEngine, ContextAwareEnhancer, LocalRecognizer, RecognizerRegistry, RecognizerResult
        from presidio_analyzer import predefined_recognizers as stock
        from presidio_analyzer.nlp_engine import NoOpNlpEngine

    # The stock extractor asks the network for a list of suffixes at its first use.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Ours(LocalRecognizer):
        """One entity, by patterns of ours."""

        def __init__(self, entity: str, patterns: list[Pattern]) -> None:
            self._patterns = patterns
            super().__init__(supported_entities=[entity], name=entity)

        def load(self) -> None:
            """Nothing to load."""

        def analyze(self, text: str, entities: list[str], nlp_artifacts: Any) -> list[Any]:
            """Search the text."""
            del entities, nlp_artifacts
            return [
                RecognizerResult(pattern.entity, start, end, score)
                for pattern in self._patterns
                if pattern.possible(text)
                for start, end, score in pattern.find(text)
            ]

    class AsFound(ContextAwareEnhancer):
        """Scores stay: our patterns look at what stands beside; Presidio, which asks lemmas, would copy every result."""

        def __init__(self) -> None:
            super().__init__(0.0, 0.0, 0, 0)

        def enhance_using_context(self, text: str, raw_results: list[Any], *_: Any, **__: Any) -> list[Any]:
            """Return the results."""
            del text
            return raw_results

    registry = RecognizerRegistry(supported_languages=["en"])
    glued: list[Any] = [stock.EmailRecognizer(), stock.IbanRecognizer()]
    for recognizer in glued:
        recognizer.global_regex_flags |= regex.ASCII
        registry.add_recognizer(recognizer)
    by_entity: dict[str, list[Pattern]] = {}
    for pattern in PATTERNS:
        by_entity.setdefault(pattern.entity, []).append(pattern)
    for entity, patterns in by_entity.items():
        registry.add_recognizer(Ours(entity, patterns))
    nlp_engine = NoOpNlpEngine(models=[{"lang_code": "en", "model_name": "none"}])
    nlp_engine.load()
    return AnalyzerEngine(registry=registry, nlp_engine=nlp_engine, supported_languages=["en"], context_aware_enhancer=AsFound())


@contextmanager
def without(module: str) -> Generator[None]:
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
