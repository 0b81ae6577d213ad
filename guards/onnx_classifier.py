"""A slot for a sequence classifier of the user's own, in ONNX: none is shipped.

The folder is as exporters write it: model.onnx, tokenizer.json, and config.json with `id2label`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from guards.classifier import ClassifierError

MAX_TOKENS = 512
_HARMLESS = frozenset({"benign", "safe", "legit", "negative", "harmless", "label_0", "0", "no_injection"})


class OnnxClassifier:
    """A model read from a folder, on one thread; raises ClassifierError where it or a package is missing."""

    def __init__(self, folder: Path, *, session: Any = None, tokenizer: Any = None) -> None:
        try:
            labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
            self._harmless = [int(index) for index, label in labels.items() if str(label).lower() in _HARMLESS]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            msg = f"{folder / 'config.json'} does not name the labels in `id2label`: {error!r}"
            raise ClassifierError(msg) from error
        if not 0 < len(self._harmless) < len(labels):
            msg = f"{folder / 'config.json'}: none or all of the labels {sorted(labels.values())} mean harmless"
            raise ClassifierError(msg)
        self._tokenizer = tokenizer or _tokenizer(folder / "tokenizer.json")
        self._session = session or _session(folder / "model.onnx")
        self._names = {given.name for given in self._session.get_inputs()}

    def score(self, text: str) -> float:
        """Return the probability, 0 to 1, that a text is an attack; the worst of its windows of 512 tokens."""
        encoded = self._tokenizer.encode(text)
        pieces = [encoded, *encoded.overflowing]
        return max(self._attack(piece) for piece in pieces)

    def _attack(self, piece: Any) -> float:
        ids = np.array([piece.ids], dtype=np.int64)
        given = {
            "input_ids": ids,
            "attention_mask": np.array([piece.attention_mask], dtype=np.int64),
            "token_type_ids": np.zeros_like(ids),
        }
        logits = self._session.run(None, {name: value for name, value in given.items() if name in self._names})[0][0]
        shares = np.exp(logits - np.max(logits))
        return float(1 - shares[self._harmless].sum() / shares.sum())


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
    except ImportError as error:
        msg = "an ONNX classifier needs the package `tokenizers`; install it or take the classifier out of the policy"
        raise ClassifierError(msg) from error
    except Exception as error:  # tokenizers raises nothing narrower
        msg = f"{path} is no tokenizer: {error}"
        raise ClassifierError(msg) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS, stride=64)
    return tokenizer


def _session(path: Path) -> Any:
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]  the user's to install
    except ImportError as error:
        msg = "an ONNX classifier needs the package `onnxruntime`; install it or take the classifier out of the policy"
        raise ClassifierError(msg) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # its threads spin and would stall the engine's
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        msg = f"{path} is no model that onnxruntime can run: {error}"
        raise ClassifierError(msg) from error
