"""Vectors of a build under way: each batch a file that is there whole or not at all, so that a killed run costs one batch."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BATCH = 32


def key_of(text: str) -> bytes:
    """Return 16 bytes that stand for a text as it is embedded."""
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[:16]


class Scratch:
    """A folder of batches; two processes may write to one, which is of no use and does no harm."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def vectors(self) -> dict[bytes, Any]:
        """Return what is there: key -> vector of float32; a file that cannot be read is passed over."""
        import numpy as np

        found: dict[bytes, Any] = {}
        for path in sorted(self._folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as batch:
                    keys, vectors = batch["keys"], batch["vectors"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            found |= {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}
        return found

    def add(self, keys: Sequence[bytes], vectors: Any) -> None:
        """Keep a batch; `vectors` is an array of float32 (keys, dimensions)."""
        import numpy as np

        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as file:
            np.savez(file, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1), vectors=vectors)
        Path(file.name).replace(self._folder / f"{keys[0].hex()}.npz")


def embed_missing(
    texts: Mapping[bytes, str], known: dict[bytes, Any], scratch: Scratch | None, embed: Callable[[list[str]], list[list[float]]],
    progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Embed the texts whose vectors are not `known`, and add them there; each batch is kept in `scratch`.

    `texts` and `known` go by `key_of`; `progress` is told the texts that have vectors, and all.
    """
    import numpy as np

    missing = [key for key in texts if key not in known]
    done = len(texts) - len(missing)
    progress(done, len(texts))
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        vectors = np.asarray(embed([texts[key] for key in batch]), dtype=np.float32)
        if scratch:
            scratch.add(batch, vectors)
        known |= dict(zip(batch, vectors, strict=True))
        progress(done + start + len(batch), len(texts))
