"""Names of persons and places by a small language model, and what it gets wrong left out.

English by a spaCy model in a folder, Chinese by rule (`guards.chinese_names`). torch is never imported.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guards import chinese_names
from guards.normalize import normalize
from guards.pattern import Pattern
from guards.pii import Span, without, without_overlaps

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from guards.onnx_names import OnnxNames

ENTITIES = ("ORGANIZATION", "PERSON", "LOCATION")
DEFAULT_ENTITIES = ("LOCATION", "PERSON")

_LABELS = {"PERSON": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION", "ORG": "ORGANIZATION"}
_SCORE = 0.6  # the model gives none; by its precision this is what a name is worth
_UNUSED = ("tagger", "parser", "lemmatizer", "attribute_ruler", "senter")
_WORD = re.compile(r"[A-ZÀ-Þ][A-Za-zÀ-ɏ]{2,}")
_LATIN_WORD = re.compile(r"[A-Za-zÀ-ɏ]{2}")
_CAPITALISED = re.compile(r"[A-ZÀ-Þ][A-Za-zÀ-ɏ]")
_MAX_WORDS = 5
_MAX_CHARS = 20_000  # searched at a time; the model's memory grows with the length

_TITLE = r"(?:mr|mrs|ms|miss|mx|dr|prof|professor|sir|madam|dame|lady|lord|rev|hon|capt|captain|judge|doctor)"
_LEADING = re.compile(rf"(?i){_TITLE}\b\.?\s+")
_NEVER = frozenset([
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
    "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "jan", "feb", "mar", "apr", "jun", "jul",
    "aug", "sep", "sept", "oct", "nov", "dec", "mon", "tue", "wed", "thu", "fri", "sat", "sun", "mr", "mrs", "ms", "miss", "dr",
    "prof", "sir", "madam", "dear", "hi", "hello", "hey", "thanks", "regards", "street", "st", "st.", "avenue", "ave", "ave.",
    "road", "rd", "rd.", "lane", "ln", "drive", "dr.", "blvd", "boulevard", "suite", "apt", "p.o.", "po", "box", "court", "ct",
    "square", "name", "email", "e-mail", "phone", "mobile", "tel", "fax", "address", "website", "url", "date", "dob", "id",
    "ssn", "iban", "ip", "card", "credit", "account", "password", "city", "state", "zip", "country", "christmas", "easter",
    "bible", "god", "lord", "internet", "python", "java", "javascript", "linux", "windows", "excel", "google", "english",
    "chinese", "french", "german", "spanish", "italian", "japanese", "korean", "russian", "american", "british", "dutch",
    "portuguese", "arabic", "hindi", "canadian", "australian", "indian", "european", "asian", "african",
])  # fmt: skip

_CAPITAL = r"[A-ZÀ-Þ][A-Za-zÀ-ɏ'’-]{1,20}"
_FULL = rf"{_CAPITAL}(?:[ \t](?:[A-Z]\.|(?:van|von|de|da|del|der|di|la|bin|al)\b|{_CAPITAL})){{0,3}}"
_NOBODY = (
    "He|She|It|They|We|You|I|Who|That|This|There|Here|What|Which|Everyone|Everybody|Nobody|Someone|Somebody|Anyone|One|Another|Mother|"
    "Father|Mum|Mom|Dad|Grandma|Grandpa|Both|Neither|Most|Many|Some|All"
)
_CUED = (
    Pattern("PERSON", rf"(?:\b[Mm]y name is|\bI am called|\b(?:[Ff]ull |[Ff]irst |[Ll]ast |[Cc]ustomer |[Pp]atient )?[Nn]ame ?:)\s{{1,8}}({_FULL})", 0.7, needs="[Nn]ame|called"),
    Pattern("PERSON", rf"\b(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof)\b\.? ({_FULL})", 0.7, needs=r"\b(?:M[rsx]|Dr|Prof)"),
    Pattern("PERSON", rf"\bDear ({_FULL})(?=,|\n)", 0.6, needs="Dear "),
    Pattern("PERSON", rf"(?<![\w'’.-])(?!(?:{_NOBODY})\b)({_FULL})(?= (?:lives|lived|resides|resided|grew up|was born) (?:at|on|in|near|with)\b)", 0.6,
            needs="lived?s? |resided?s? |grew up |was born "),
)  # fmt: skip


class Names:
    """The spaCy model in `folder` (the one with `config.cfg`) and the rules for Chinese; safe to call from threads.

    `find` takes about 20 ms of CPU for 500 characters of English. Raises FileNotFoundError where the folder holds no model.
    """

    def __init__(self, folder: Path, entities: Collection[str] = DEFAULT_ENTITIES) -> None:
        if not (folder / "config.cfg").is_file():
            msg = f"{folder} is not a spaCy model: it has no config.cfg"
            raise FileNotFoundError(msg)
        with without("torch"), without("transformers"):  # also Presidio looks for them, at spaCy's first load
            import spacy

            self._nlp: Any = spacy.load(folder, exclude=list(_UNUSED))
        self._lock = threading.Lock()  # the vocabulary has one memory zone at a time
        self._entities = frozenset(entities)

    def find(self, text: str) -> list[Span]:
        """Return the names in a text, in order and without overlaps; spans are those of the original text."""
        return self.find_all([text])[0]

    def find_all(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return what `find` returns for each text; together they take less time than one by one."""
        seen = [normalize(text) for text in texts]
        results: list[list[Span]] = []
        for folded, by_model in zip(seen, self._by_model([folded.text for folded in seen]), strict=True):
            found = [*by_model, *by_rule(folded.text)]
            found += again(folded.text, found)
            wanted = (span for span in found if span.entity in self._entities)
            results.append(without_overlaps(Span(*folded.span(s.start, s.end), s.entity, s.score) for s in wanted))
        return results

    def _by_model(self, texts: Sequence[str]) -> list[list[Span]]:
        pieces: list[tuple[int, int, str]] = []
        for number, text in enumerate(texts):
            cased = text.title() if text.isascii() and text.islower() else text  # the model looks at capitals
            if _CAPITALISED.search(cased):
                pieces += [(number, at, cased[at : at + _MAX_CHARS]) for at in range(0, len(cased), _MAX_CHARS)]
        with self._lock, self._nlp.memory_zone():  # what the words of these texts take is given back
            documents = self._nlp.pipe(piece for _number, _at, piece in pieces)
            entities = [
                [(entity.start_char, entity.end_char, entity.label_) for entity in document.ents] for document in documents
            ]
        found: list[list[Span]] = [[] for _ in texts]
        for (number, at, piece), ents in zip(pieces, entities, strict=True):
            for start, end, label in ents:
                entity = _LABELS.get(label, "")
                if entity and (bounds := name_within(piece[start:end], entity)):
                    found[number].append(Span(at + start + bounds[0], at + start + bounds[1], entity, _SCORE))
        return found


def open_names(folder: Path) -> Names | OnnxNames:
    """Open the model in a folder: a spaCy pipeline, or a token classifier in ONNX (`model.onnx`)."""
    if not (folder / "model.onnx").is_file():
        return Names(folder)
    from guards.onnx_names import OnnxNames  # and with it numpy

    return OnnxNames(folder)


def by_rule(text: str) -> Iterator[Span]:
    """Yield the persons in a normalised text whom the words beside them give away, in English and Chinese."""
    for pattern in (*_CUED, *chinese_names.PATTERNS):
        if pattern.possible(text):
            for start, end, score in pattern.find(text):
                if pattern not in _CUED or name_within(text[start:end], "PERSON"):
                    yield Span(start, end, pattern.entity, score)


def again(text: str, found: list[Span]) -> Iterator[Span]:
    """Yield where the persons found stand once more, also by one of their names alone."""
    known = {text[span.start : span.end] for span in found if span.entity == "PERSON"}
    known |= {word for name in known for word in _WORD.findall(name) if word.lower() not in _NEVER}
    if known:
        for match in re.finditer(
            rf"(?<![A-Za-z])(?:{'|'.join(map(re.escape, sorted(known, key=len, reverse=True)))})(?![A-Za-z])", text
        ):
            yield Span(*match.span(), "PERSON", _SCORE)


def name_within(found: str, entity: str) -> tuple[int, int] | None:
    """Return where in what a model took for a name the name lies, or None where there is none.

    Models take for names: numbers, single words in lower case, titles, months, nationalities, labels of forms, headings in
    capitals, parts of addresses of the net, and more than one line.
    """
    line = found.split("\n", 1)[0]
    start = match.end() if (match := _LEADING.match(line)) else 0
    name = line[start:].rstrip(" \t.,;:!?-")
    name = name.removesuffix("'s").removesuffix("’s")
    words = name.split()
    if not words or len(words) > _MAX_WORDS or not _LATIN_WORD.search(name):
        return None
    if any(char.isdigit() or char in "@/\\_:=<>|#*" or "\u4e00" <= char <= "\u9fff" for char in name):
        return None
    if name.islower() or all(word.lower().strip(".,") in _NEVER for word in words):
        return None
    if entity == "PERSON" and (len(name) <= 2 or _is_heading(words) or words[-1].lower() in _NEVER):  # noqa: PLR2004
        return None
    return start, start + len(name)


def _is_heading(words: list[str]) -> bool:
    return all(word.isupper() for word in words) and (len(words) > 3 or (len(words) == 1 and len(words[0]) <= 4))  # noqa: PLR2004
