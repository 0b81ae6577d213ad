"""A slot for a sequence classifier of the user's own, in ONNX: none is shipped."""

from __future__ import annotations

from pathlib import Path

from guards.onnx_model import OnnxError, OnnxModel

_HARMLESS = frozenset({"benign", "safe", "legit", "negative", "harmless", "label_0", "0", "no_injection"})


class OnnxClassifier:
    """A model read from a folder (see `guards.onnx_model`), of which some labels, but not all, mean harmless.

    Raises OnnxError where it cannot be used or a package is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._model = OnnxModel(folder, of="texts")
        labels = self._model.labels
        self._harmless = [index for index, label in enumerate(labels) if label.lower() in _HARMLESS]
        if not 0 < len(self._harmless) < len(labels):
            msg = (
                f"{folder / 'config.json'}: none or all of the labels {sorted(labels)} mean harmless; "
                f"in `id2label`, call those that do one of {', '.join(sorted(_HARMLESS))}"
            )
            raise OnnxError(msg)

    def score(self, text: str) -> float:
        """Return the probability, 0 to 1, that a text is an attack; the worst of its windows of 512 tokens.

        0 where a text has no tokens. Raises OnnxError where the model fails.
        """
        return max((self._attack(window) for window in self._model.windows(text)), default=0.0)

    def _attack(self, window: object) -> float:
        return float(1 - self._model.chances(window)[self._harmless].sum())
