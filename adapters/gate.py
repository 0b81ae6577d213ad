"""The gate: whether an adapter may be served. The same check at `ekiben adapter check`, at packing and before a hot load.

It reads what is on disk and nothing more: no torch, no engine, and no pickle, which can run code when it is read. Each refusal
names the file and the field, and says what to do.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.manifest import CONFIG, MANIFEST, WEIGHTS, AdapterError, Manifest, digest_file, read_manifest

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 2 * 2**30
# The base's own weights have a root mean square of 0.02 to 0.2; what training adds stays well below.
MAX_DELTA_RMS = 0.5
MAX_SCALING = 64.0
MAX_ALPHA = 1e6
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_KNOWN = frozenset({"LICENSE", "NOTICE", ".gitattributes"})
_BESIDE = frozenset({".md", ".yaml", ".json", ".txt", ".png", ".jinja", ".safetensors", ".jsonl"})
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# PEFT settings that change what the weights mean, and the only value of each that vLLM 0.32.0 serves.
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA", "use_dora": False, "modules_to_save": None, "bias": "none", "lora_bias": False,
    "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False, "trainable_token_indices": None,
    "target_parameters": None, "use_qalora": False, "use_bdlora": None, "alora_invocation_tokens": None,
    "layer_replication": None,
}  # fmt: skip


@dataclass(frozen=True)
class BaseModel:
    """What the gate knows of the base: its source, and, once it is packed, its linear layers and its tokenizer.

    `linears` maps a layer's name to its shape (out, in).
    """

    source: str
    linears: Mapping[str, tuple[int, int]] | None = None
    tokenizer: Path | None = None


def check_adapter(folder: Path, *, base: BaseModel, max_lora_rank: int) -> Manifest:
    """Check a folder and return its manifest; raises AdapterError for the first thing that is wrong.

    Files first (kinds, size, links), then the manifest and the digest, then the settings, then every tensor: its name, shape,
    dtype, values, and the size of what it adds to the base.
    """
    _check_files(folder)
    manifest, config = _read(folder)
    if manifest.base_source != base.source:
        msg = (
            f"{folder / MANIFEST}: base_source: made for base {manifest.base_source!r}, but the bundle's model is "
            f"{base.source!r}; train it on this base or take an adapter that was"
        )
        raise AdapterError(msg)
    found = digest_file(folder / WEIGHTS)
    if found != manifest.sha256:
        msg = f"{folder / WEIGHTS}: sha256 is {found}, its manifest says {manifest.sha256}; the file was altered or cut short"
        raise AdapterError(msg)
    scaling = _check_settings(folder / CONFIG, config, max_lora_rank)
    _check_weights(folder / WEIGHTS, rank=int(config["r"]), scaling=scaling, linears=base.linears)
    if base.tokenizer is not None:
        _check_tokenizer(folder, base.tokenizer)
    return manifest


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise AdapterError(f"{folder} is not a folder; name the folder that holds {CONFIG}, {WEIGHTS} and {MANIFEST}")
    inside, total = folder.resolve(), 0
    for path in sorted(folder.rglob("*")):
        _check_inside(path, inside)
        if path.is_dir():
            continue
        if path.suffix.lower() in _PICKLES:
            msg = f"{path} is a pickle, which can run code, and was not read; save the weights as safetensors and remove it"
            raise AdapterError(msg)
        if path.suffix.lower() not in _BESIDE and path.name not in _KNOWN:
            raise AdapterError(f"{path} does not belong to an adapter; remove it")
        total += path.stat().st_size
    if total > MAX_BYTES:
        raise AdapterError(f"{folder} holds {total} bytes, more than {MAX_BYTES}; train with a smaller rank or fewer modules")
    for name in (CONFIG, WEIGHTS, MANIFEST):
        if not (folder / name).is_file():
            msg = f"{folder / name} is missing: an adapter folder holds {CONFIG}, {WEIGHTS} and {MANIFEST}"
            raise AdapterError(msg)


def _check_inside(path: Path, folder: Path) -> None:
    try:
        inside = path.resolve(strict=True).is_relative_to(folder)
    except (OSError, RuntimeError) as error:
        raise AdapterError(f"{path} leads nowhere; put the file itself there, or remove the link") from error
    if not inside:
        raise AdapterError(f"{path} leads out of the adapter's folder; put the file itself there")


def _read(folder: Path) -> tuple[Manifest, dict[str, Any]]:
    manifest = read_manifest(folder)
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        rank = config["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{folder / CONFIG}: cannot be read as PEFT's settings: {error!r}; save the adapter with PEFT"
        ) from error
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(f"{folder / CONFIG}: r: {rank!r} is no rank; it must be a whole number above 0")
    return manifest, config


def _check_settings(path: Path, config: dict[str, Any], max_lora_rank: int) -> float:
    """Return the scaling of B·A."""
    rank, alpha = int(config["r"]), config.get("lora_alpha")
    if rank > max_lora_rank:
        raise AdapterError(
            f"{path}: rank r={rank} is over engine.max_lora_rank={max_lora_rank}; raise max_lora_rank in the bundle"
        )
    for key, wanted in _PLAIN.items():
        given = config.get(key) or wanted
        if given != wanted:
            raise AdapterError(f"{path}: {key} is {given!r}; vLLM serves plain LoRA only: train with {key}={wanted!r}")
    if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise AdapterError(f"{path}: lora_alpha: {alpha!r} must be a number above 0")
    if alpha > MAX_ALPHA:
        raise AdapterError(f"{path}: lora_alpha is over {MAX_ALPHA:.0f}; lower it")
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if scaling > MAX_SCALING:
        msg = (
            f"{path}: lora_alpha: the weights would be multiplied by {scaling:.0f}, more than {MAX_SCALING:.0f}; lower lora_alpha"
        )
        raise AdapterError(msg)
    return scaling


def _check_weights(path: Path, *, rank: int, scaling: float, linears: Mapping[str, tuple[int, int]] | None) -> None:
    import numpy as np

    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, values in _read_tensors(path).items():
        layer, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if side not in {"lora_A", "lora_B"} or not layer or not name.endswith(".weight"):
            msg = f"{path}: {name}: not a LoRA weight of a linear layer; train without modules_to_save and embeddings"
            raise AdapterError(msg)
        if not np.isfinite(values).all():
            raise AdapterError(f"{path}: {name}: holds NaN or infinite values; train again with a lower learning rate")
        pair = pairs.setdefault(layer, {})
        if side in pair:
            raise AdapterError(f"{path}: {layer}: {side} stands twice; save the adapter with PEFT again")
        pair[side] = values
    if not pairs:
        raise AdapterError(f"{path} holds no weights; save the adapter with PEFT")
    for layer, pair in pairs.items():
        if len(pair) != len(("lora_A", "lora_B")):
            raise AdapterError(f"{path}: {layer}: only {next(iter(pair))} is there; save the adapter with PEFT again")
        _check_pair(path, layer, pair["lora_A"], pair["lora_B"], rank=rank, scaling=scaling, linears=linears)


def _check_pair(
    path: Path, layer: str, a: np.ndarray, b: np.ndarray, *, rank: int, scaling: float,
    linears: Mapping[str, tuple[int, int]] | None,
) -> None:  # fmt: skip
    import numpy as np

    if a.ndim != 2 or b.ndim != 2 or not a.size or not b.size or a.shape[0] != rank or b.shape[1] != rank:  # noqa: PLR2004  matrices
        msg = f"{path}: {layer}: shapes {a.shape} and {b.shape} are not (r, in) and (out, r) with r={rank} of {CONFIG}"
        raise AdapterError(msg)
    if linears is not None:
        if layer not in linears:
            kinds = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise AdapterError(f"{path}: {layer}: the base has no such linear layer; target_modules may be: {kinds}")
        if (b.shape[0], a.shape[1]) != linears[layer]:
            msg = f"{path}: {layer}: made for a layer of shape {(b.shape[0], a.shape[1])}, the base's is {linears[layer]}"
            raise AdapterError(msg)
    # The Frobenius norm of B·A from two small products: tr((BᵀB)(AAᵀ)).
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    square = float(np.sum((wide_b.T @ wide_b) * (wide_a @ wide_a.T)))
    rms = scaling * math.sqrt(max(square, 0.0) / (b.shape[0] * a.shape[1]))
    if rms > MAX_DELTA_RMS:
        msg = (
            f"{path}: {layer}: adds {rms:.2f} to the base's weights (root mean square), more than {MAX_DELTA_RMS}: training "
            "has run away; train again with a lower learning rate or lora_alpha"
        )
        raise AdapterError(msg)


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return all tensors as float32; safetensors' own reader checks the header against the file."""
    import numpy as np
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(path.read_bytes())
    except (SafetensorError, struct.error) as error:
        raise AdapterError(f"{path}: not a whole safetensors file ({error}); copy or save it again") from error
    read: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        dtype = _DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise AdapterError(f"{path}: {name}: dtype {tensor['dtype']} is not served; save it as BF16, F16 or F32")
        values = np.frombuffer(tensor["data"], dtype=dtype).reshape(tensor["shape"])
        if tensor["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        read[name] = values.astype(np.float32)
    return read


def _check_tokenizer(folder: Path, base: Path) -> None:
    """The served prompt is the base's: an adapter that was trained with other tokens or another template answers wrongly."""
    known = _vocabulary(base)
    added = sorted(_vocabulary(folder) - known) if known else []
    if added:
        msg = (
            f"{folder}: its tokenizer adds {', '.join(added[:5])}{' ...' if len(added) > 5 else ''} to the base's; "  # noqa: PLR2004
            "vLLM serves the base's tokens: train without new tokens"
        )
        raise AdapterError(msg)
    own, served = _template(folder), _template(base)
    if own is not None and served is not None and own.strip() != served.strip():
        msg = f"{folder}: chat_template differs from the base's, which is the one that is served; train with the base's template"
        raise AdapterError(msg)


def _vocabulary(folder: Path) -> set[str]:
    tokens: set[str] = set()
    whole, added = folder / "tokenizer.json", folder / "added_tokens.json"
    try:
        if whole.is_file():
            content = json.loads(whole.read_bytes())
            tokens |= {token["content"] for token in content.get("added_tokens", [])}
            vocabulary = content.get("model", {}).get("vocab", {})
            tokens |= set(vocabulary) if isinstance(vocabulary, dict) else {entry[0] for entry in vocabulary}
        if added.is_file():
            tokens |= set(json.loads(added.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(
            f"{folder}: its tokenizer's files cannot be read ({error!r}); remove them or save them again"
        ) from error
    return tokens


def _template(folder: Path) -> str | None:
    apart, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if apart.is_file():
        try:
            return apart.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise AdapterError(f"{apart}: is no UTF-8 text; remove it or save it again") from error
    if config.is_file():
        try:
            template = json.loads(config.read_bytes()).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise AdapterError(f"{config}: cannot be read ({error!r}); remove it or save it again") from error
        return template if isinstance(template, str) else None
    return None
