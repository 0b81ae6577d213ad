"""A model in ONNX with its tokenizer, in a folder as exporters write it: model.onnx, tokenizer.json and config.json.

onnxruntime is no dependency of the project: it is imported when such a model is opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

WINDOW = 512  # tokens, the longest most encoders take
STRIDE = 64  # tokens that neighbouring windows share, longer than a name
_COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_TYPES: dict[str, Any] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxError(ValueError):
    """A folder whose model cannot be used, or a text that it failed on; the message says why."""


class MissingPackage(OnnxError):
    """onnxruntime or tokenizers is not installed here."""


class OnnxModel:
    """A classifier of whole texts or of tokens, on one thread; safe to call from threads.

    It is tried when it is opened, on a short text and on the longest one: raises OnnxError where it cannot be used, with what
    is wrong. `labels` are in the order of the model's outputs.
    """

    def __init__(self, folder: Path, of: Literal["texts", "tokens"]) -> None:
        config = _json(folder / "config.json")
        self.labels = _labels(folder / "config.json", config)
        self._path, self._of = folder / "model.onnx", of
        self._tokenizer, self._window = _tokenizer(folder, config)
        self._session = _session(self._path)
        self._inputs = {one.name: _TYPES.get(one.type) for one in self._session.get_inputs()}
        self._output = _output([one.name for one in self._session.get_outputs()])
        self._check_inputs()
        self._try()

    def windows(self, text: str) -> list[Any]:
        """Return a text as `tokenizers.Encoding`s of at most 512 tokens, or what the model takes; one without tokens is left out.

        Neighbours share 64 tokens. Offsets are in characters of the text.
        """
        whole = self._tokenizer.encode(text)
        return [window for window in (whole, *whole.overflowing) if window.ids]

    def chances(self, window: Any) -> NDArray[np.float64]:
        """Return the probability of each label: shape (labels,) of a text, (tokens, labels) of its tokens.

        Raises OnnxError where the model fails, or gives what is no number.
        """
        logits = self._run({name: getattr(window, column) for name, column in _COLUMNS.items()})
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    def _run(self, columns: dict[str, list[int]]) -> NDArray[np.float64]:
        feed = {name: np.array([columns[name]], dtype=kind) for name, kind in self._inputs.items()}
        try:
            logits = np.asarray(self._session.run([self._output], feed)[0])
        except Exception as error:  # onnxruntime's errors have no common base
            msg = f"{self._path} failed on {len(columns['input_ids'])} tokens: {_first_line(error)}"
            raise OnnxError(msg) from error
        tokens = len(columns["input_ids"])
        shape = (1, len(self.labels)) if self._of == "texts" else (1, tokens, len(self.labels))
        if logits.shape != shape:
            msg = (
                f"{self._path}: {self._output!r} has the shape {logits.shape} for {tokens} tokens, not {shape}: "
                f"take a model that classifies {self._of}, with as many outputs as `id2label` in config.json has labels"
            )
            raise OnnxError(msg)
        if not np.isfinite(logits).all():
            msg = f"{self._path} gives what is no number for {tokens} tokens"
            raise OnnxError(msg)
        return logits[0].astype(np.float64)

    def _check_inputs(self) -> None:
        if strange := sorted(self._inputs.keys() - _COLUMNS):
            msg = f"{self._path} asks for {', '.join(strange)}; it may ask for {', '.join(_COLUMNS)} alone"
            raise OnnxError(msg)
        for one in self._session.get_inputs():
            if self._inputs[one.name] is None:
                msg = f"{self._path}: {one.name} is {one.type}, not int64 or int32; export it with integers"
                raise OnnxError(msg)
            shape: list[Any] = list(one.shape)
            if len(shape) != 2 or isinstance(shape[1], int) or (isinstance(shape[0], int) and shape[0] != 1):  # noqa: PLR2004
                msg = f"{self._path}: {one.name} has the fixed shape {shape}; export it with dynamic axes for batch and sequence"
                raise OnnxError(msg)

    def _try(self) -> None:
        """Run a short text and one as long as they come, of the tokenizer's last token: another model's has more."""
        last = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        for size in (2, self._window):
            try:
                self._run({"input_ids": [last] * size, "attention_mask": [1] * size, "token_type_ids": [0] * size})
            except OnnxError as error:
                msg = (
                    f"{error} (tried with token {last}, the tokenizer's last: is tokenizer.json this model's, and does "
                    "`max_position_embeddings` in config.json or `model_max_length` in tokenizer_config.json say what it takes?)"
                )
                raise OnnxError(msg) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OnnxError(f"{path} does not exist; the folder needs model.onnx, tokenizer.json and config.json") from error
    except (OSError, ValueError) as error:
        raise OnnxError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise OnnxError(f"{path} is no JSON object")
    return found


def _labels(path: Path, config: dict[str, Any]) -> list[str]:
    named = config.get("id2label")
    if not isinstance(named, dict) or not named or set(named) != {str(index) for index in range(len(named))}:
        raise OnnxError(f'{path} does not name the labels in `id2label`: {{"0": ..., "1": ...}}')
    return [str(named[str(index)]) for index in range(len(named))]


def _tokenizer(folder: Path, config: dict[str, Any]) -> tuple[Any, int]:
    """Return the tokenizer, and how many tokens of a text the model sees at a time."""
    path = folder / "tokenizer.json"
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise _missing(folder, "tokenizers") from error
    if not path.is_file():
        raise OnnxError(f"{path} does not exist; save the model's fast tokenizer (`tokenizer.save_pretrained`)")
    try:
        tokenizer: Any = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise OnnxError(f"{path} is no tokenizer: {error}") from error
    beside = folder / "tokenizer_config.json"
    told = [config.get("max_position_embeddings"), (_json(beside) if beside.is_file() else {}).get("model_max_length")]
    window = int(min([WINDOW, *(most for most in told if isinstance(most, int | float) and most > 0)]))
    room = window - tokenizer.num_special_tokens_to_add(is_pair=False)
    if room < 2:  # noqa: PLR2004  a token, and one more
        raise OnnxError(f"{folder}: a model that takes {window} tokens has no room for a text")
    tokenizer.no_padding()
    tokenizer.enable_truncation(window, stride=min(STRIDE, room // 2))
    return tokenizer, window


def _session(path: Path) -> Any:
    if not path.is_file():
        raise OnnxError(f"{path} does not exist; the folder needs model.onnx, tokenizer.json and config.json")
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]  the user's to install
    except ModuleNotFoundError as error:
        raise _missing(path.parent, "onnxruntime") from error
    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # its threads spin and would stall the engine's
    options.log_severity_level = 4  # what fails is raised
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise OnnxError(f"{path} is no model that onnxruntime can run: {_first_line(error)}") from error


def _output(names: list[str]) -> str:
    return "logits" if "logits" in names else names[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _missing(folder: Path, package: str) -> MissingPackage:
    return MissingPackage(f"{folder} needs {package}, which is not installed: `uv pip install {package}`")
