"""The linear layers of a model's folder, read from the headers of its safetensors files: names and shapes, no weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

# What follows a layer's name: plain and INT8 weights, weights packed into INT4, and the shape that a packed layer notes.
_PLAIN, _PACKED, _SHAPE = ".weight", ".weight_packed", ".weight_shape"
_NOT_LINEAR = ("embed", "norm", "lm_head")


def linear_layers(folder: Path) -> dict[str, tuple[int, int]]:
    """Return each linear layer's shape (out, in), by its name; embeddings and the output head are not among them."""
    layers: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            for name, tensor in header.items():
                shape: list[int] = tensor.get("shape", [])
                if any(word in name for word in _NOT_LINEAR):
                    continue
                if name.endswith(_SHAPE):
                    start, stop = tensor["data_offsets"]
                    file.seek(8 + length + start)
                    kind = {"I64": "q", "I32": "i"}[tensor["dtype"]]
                    out, inputs = struct.unpack(f"<2{kind}", file.read(stop - start))
                    layers[name.removesuffix(_SHAPE)] = (out, inputs)
                elif name.endswith(_PLAIN) and len(shape) == 2:  # noqa: PLR2004  a matrix
                    layers[name.removesuffix(_PLAIN)] = (shape[0], shape[1])
    return layers
