"""Names by a token-classification model in ONNX: a folder with `config.json`, `tokenizer.json` and `model.onnx`.

onnxruntime is no dependency of the project: it is imported when such a model is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from guards.pii import Span, without_overlaps

_ENTITIES = {
    "PER": "PERSON",
    "PERSON": "PERSON",
    "LOC": "LOCATION",
    "GPE": "LOCATION",
    "LOCATION": "LOCATION",
    "ORG": "ORGANIZATION",
}
_WINDOW = 512  # tokens, the longest most encoders take
_STRIDE = 64  # tokens that neighbouring windows share, longer than a name


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`."""

    def get_inputs(self) -> list[Any]:
        """Return the inputs, each with a `name`."""
        ...

    def run(self, output_names: list[str] | None, input_feed: Mapping[str, np.ndarray]) -> list[Any]:
        """Return the outputs; the first one is logits of shape (1, tokens, labels)."""
        ...


class OnnxNames:
    """A model whose labels are `O` and `B-`, `I-` before PER, LOC, GPE or ORG.

    Raises FileNotFoundError for a file that is missing, ModuleNotFoundError without onnxruntime or tokenizers.
    """

    def __init__(
        self,
        folder: Path,
        entities: Collection[str] = ("LOCATION", "PERSON"),
        threshold: float = 0.5,
        session: Session | None = None,
    ) -> None:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise _missing(folder, "tokenizers") from error
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
        self._tokenizer: Any = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        self._tokenizer.enable_truncation(_WINDOW, stride=_STRIDE)
        self._tokenizer.no_padding()
        self._session = session or _load(folder)
        self._inputs = {given.name for given in self._session.get_inputs()}
        self._entities, self._threshold = frozenset(entities), threshold

    def find(self, text: str) -> list[Span]:
        """Return the names in a text, in order and without overlaps; scores are means of the tokens' probabilities."""
        whole = self._tokenizer.encode(text)
        spans = [span for window in (whole, *whole.overflowing) for span in self._window(window)]
        return without_overlaps(span for span in spans if span.entity in self._entities and span.score >= self._threshold)

    def find_all(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return what `find` returns for each text."""
        return [self.find(text) for text in texts]

    def _window(self, encoding: Any) -> list[Span]:
        columns = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
        feed = {name: np.array([column], dtype=np.int64) for name, column in columns.items() if name in self._inputs}
        logits = cast("np.ndarray", self._session.run(None, feed)[0])[0].astype(np.float64)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        chances = weights / weights.sum(axis=-1, keepdims=True)
        best = chances.argmax(axis=-1)
        tokens = [
            (start, end, self._labels[label], float(chances[at, label]))
            for at, (label, (start, end), special) in enumerate(
                zip(best, encoding.offsets, encoding.special_tokens_mask, strict=True)
            )
            if not special and end > start
        ]
        return list(merge(tokens))


def merge(tokens: list[tuple[int, int, str, float]]) -> Iterator[Span]:
    """Join tokens (start, end, label, probability) into names: `B-` begins one, `I-` of the same kind goes on with it."""
    open_: list[tuple[int, int, str, float]] = []
    for token in [*tokens, (0, 0, "O", 0.0)]:
        kind = token[2][2:]
        if open_ and not (token[2].startswith("I-") and kind == open_[0][2][2:]):
            entity = _ENTITIES.get(open_[0][2][2:].upper())
            if entity:
                yield Span(open_[0][0], open_[-1][1], entity, sum(chance for *_, chance in open_) / len(open_))
            open_ = []
        if kind:
            open_.append(token)


def _load(folder: Path) -> Session:
    path = folder / "model.onnx"
    if not path.is_file():
        msg = f"{path} does not exist"
        raise FileNotFoundError(msg)
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]  no dependency of ours
    except ModuleNotFoundError as error:
        raise _missing(folder, "onnxruntime") from error
    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the engine's threads want the cores
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _missing(folder: Path, package: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"{folder} needs {package}, which is not installed: `uv pip install {package}`", name=package)
