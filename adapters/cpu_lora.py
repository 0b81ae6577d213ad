"""LoRA on a CPU engine: right in mixed batches, and one pass over the weights of all adapters.

Stock vLLM 0.32.0 gathers a copy of the adapter's weights for every token, and takes index -1 for the last slot: requests of
the base model that share a batch with an adapter's are answered by the adapter (upstream pull requests 48421 and 49656).
Here the slots of a layer lie in one `Pack`, the slices of a fused layer side by side. A step's tokens are grouped by adapter
once, in a `Step`; each layer then costs two batched matrix products, and tokens of the base model cost nothing.

The worker installs it before the model is made (`services.cpu_worker`). CPU engines only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

CHECKED_VERSION = "0.32.0"
# A slot with so many tokens has products of its own, of at most so many rows: what is between them stays in the cache.
MANY_TOKENS = 128
PIECE = 512


class Pack:
    """The adapters of one layer, in float32: `a` (slots, in, slices * rank) and `b` (slots, slices * rank, out).

    `b` is block-diagonal: rows i*rank..(i+1)*rank reach the columns of slice i only. `used` holds the slots with weights.

    A token's share must not depend on who shares its batch, or a greedy answer differs where two tokens nearly tie. MKL's
    batched product of two blocks and more, of two rows and more each, gives a row the same bits wherever it stands and
    whatever the sizes; a single block's sum is split among threads by its size. So there are always two of both. oneDNN's
    products in bfloat16 are alike everywhere too, but take two to four times as long at these sizes.
    """

    def __init__(self, slots: int, rank: int, inputs: int, sizes: tuple[int, ...]) -> None:
        self.rank, self.sizes = rank, sizes
        self.a = torch.zeros(slots, inputs, len(sizes) * rank)
        self.b = torch.zeros(slots, len(sizes) * rank, sum(sizes))
        self.used: set[int] = set()

    def views(self) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Return each slice as vLLM knows it, over the same memory: a (slots, 1, rank, in) and b (slots, 1, size, rank)."""
        a: list[torch.Tensor] = []
        b: list[torch.Tensor] = []
        offset = 0
        for i, size in enumerate(self.sizes):
            rows = slice(i * self.rank, (i + 1) * self.rank)
            a.append(self.a[:, :, rows].transpose(1, 2).unsqueeze(1))
            b.append(self.b[:, rows, offset : offset + size].transpose(1, 2).unsqueeze(1))
            offset += size
        return tuple(a), tuple(b)

    def add(self, y: torch.Tensor, x: torch.Tensor, step: Step) -> None:
        """Add each adapter's share to the rows of its tokens, in place: y (tokens, out or more), x (tokens, in)."""
        groups = step.groups(frozenset(self.used))
        y = y[:, : self.b.shape[2]]
        for piece in groups.pieces:
            share = self._share(x, piece.order, piece.slot, 2, y.dtype)
            y.index_add_(0, piece.order[: piece.tokens], share[: piece.tokens])
        if groups.few is not None:
            slots, order, length, inverse = groups.few
            share = self._share(x, order, slots, len(order) // length, y.dtype)
            share[length - 1] = 0  # written, not multiplied in: an adapter's product may be infinite
            y += share.index_select(0, inverse)

    def _share(self, x: torch.Tensor, order: torch.Tensor, slots: slice, blocks: int, dtype: torch.dtype) -> torch.Tensor:
        """Return what is to be added for the rows of x in this order: so many equal blocks, of one slot or each of its own."""
        gathered = x.index_select(0, order).float().view(blocks, -1, x.shape[1])
        a, b = (weights[slots].expand(blocks, -1, -1) for weights in (self.a, self.b))  # copies nothing
        return torch.bmm(torch.bmm(gathered, a), b).flatten(0, 1).to(dtype)


class Piece(NamedTuple):
    """Tokens of one slot that has many: the first `tokens` of `order`, which may name the last one twice to be even."""

    slot: slice
    order: torch.Tensor
    tokens: int


class Few(NamedTuple):
    """Tokens of slots that have few, as in decoding: a block for each slot, all equally long; a slot that is alone has two.

    `order` (blocks * length,) says which token stands where, and `inverse` (tokens,) brings each token its row back: those
    that are not concerned get row length - 1, the last of the first block, which is no token's.
    """

    slots: slice
    order: torch.Tensor
    length: int
    inverse: torch.Tensor


class Groups(NamedTuple):
    """How the tokens of a step are worked on."""

    pieces: list[Piece]
    few: Few | None


class Step:
    """One step of the engine: for each of its tokens a slot, or -1; `indices` has shape (tokens,)."""

    def __init__(self, indices: torch.Tensor) -> None:
        self.tokens = len(indices)
        self._rows: dict[int, list[int]] = {}
        for row, slot in enumerate(indices.tolist()):
            self._rows.setdefault(slot, []).append(row)
        self._groups: dict[frozenset[int], Groups] = {}

    def groups(self, used: frozenset[int]) -> Groups:
        """Return how the tokens of the slots in `used` are grouped; made once a step."""
        slots = used.intersection(self._rows)
        if slots not in self._groups:
            self._groups[slots] = self._group(slots)
        return self._groups[slots]

    def _group(self, slots: frozenset[int]) -> Groups:
        pieces: list[Piece] = []
        few: dict[int, list[int]] = {}
        for slot in slots:
            rows = self._rows[slot]
            if len(rows) < MANY_TOKENS:
                few[slot] = rows
                continue
            for start in range(0, len(rows), PIECE):
                piece = rows[start : start + PIECE]
                order = torch.tensor(piece + piece[-1:] * (len(piece) % 2))
                pieces.append(Piece(slice(slot, slot + 1), order, len(piece)))
        return Groups(pieces, self._few(few) if few else None)

    def _few(self, rows: dict[int, list[int]]) -> Few:
        slots = slice(min(rows), max(rows) + 1)
        blocks = [rows.get(slot, []) for slot in range(slots.start, slots.stop)]
        if len(blocks) == 1:
            blocks = [blocks[0][::2], blocks[0][1::2]]
        length = max(map(len, blocks)) + 1
        order = torch.zeros(len(blocks), length, dtype=torch.long)
        inverse = torch.full((self.tokens,), length - 1)
        for number, block in enumerate(blocks):
            concerned = torch.tensor(block, dtype=torch.long)
            order[number, : len(block)] = concerned
            inverse[concerned] = torch.arange(len(block)) + number * length
        return Few(slots, order.flatten(), length, inverse)


# One worker has one model and one step at a time. A layer is known by where the memory of its first slice begins.
_packs: dict[int, Pack] = {}
_steps: dict[str, Step] = {"tokens": Step(torch.empty(0)), "samples": Step(torch.empty(0))}


def _add_lora(y: torch.Tensor, x: torch.Tensor, layer: torch.Tensor, per: str) -> None:
    pack, step = _packs[layer.data_ptr()], _steps[per]
    if not pack.used:
        return
    if step.tokens != len(x):
        msg = f"the step has {step.tokens} {per}, the layer was given {len(x)} rows"
        raise RuntimeError(msg)
    pack.add(y, x, step)


# To torch.compile this is one opaque operation: how tokens are grouped depends on the batch, and is no part of a graph.
# `layer` is the memory of the layer's first slice; `per` says whether a row is one of the step's tokens or samples.
_library = torch.library.Library("ekiben", "DEF")
_library.define("add_lora(Tensor(a!) y, Tensor x, Tensor layer, str per) -> ()")
_library.impl("add_lora", _add_lora, "CPU")
_library.impl("add_lora", lambda _y, _x, _layer, _per: None, "Meta")
add_lora = torch.ops.ekiben.add_lora


def adopt(layer: Any) -> Any:
    """Move the weights of one of vLLM's LoRA layers into a Pack, and keep track of the slots in use; returns the layer."""
    single = isinstance(layer.lora_a_stacked, torch.Tensor)  # the logits' layer has one slice and no tuple
    a = (layer.lora_a_stacked,) if single else layer.lora_a_stacked
    b = (layer.lora_b_stacked,) if single else layer.lora_b_stacked
    pack = Pack(a[0].shape[0], a[0].shape[2], a[0].shape[3], tuple(one.shape[2] for one in b))
    a, b = pack.views()
    layer.lora_a_stacked, layer.lora_b_stacked = (a[0], b[0]) if single else (a, b)
    _packs[a[0].data_ptr()] = pack
    stock_set, stock_reset = layer.set_lora, layer.reset_lora

    def reset_lora(index: int) -> None:
        stock_reset(index)
        pack.used.discard(index)

    def set_lora(index: int, lora_a: Any, lora_b: Any) -> None:
        stock_set(index, lora_a, lora_b)
        pack.used.add(index)

    layer.reset_lora, layer.set_lora = reset_lora, set_lora
    return layer


def check_vllm() -> None:
    """Raise RuntimeError on a vLLM that this file was not checked with, and on a GPU."""
    import vllm
    from vllm.platforms import current_platform

    if not vllm.__version__.startswith(CHECKED_VERSION):
        msg = (
            f"adapters/cpu_lora.py was checked with vLLM {CHECKED_VERSION}, this is {vllm.__version__}; "
            "check it and raise the version"
        )
        raise RuntimeError(msg)
    if not current_platform.is_cpu():
        msg = "adapters/cpu_lora.py is for CPU engines; on a GPU vLLM's own kernels are right: leave --worker-extension-cls out"
        raise RuntimeError(msg)


def install() -> None:
    """Put the kernel in the place of vLLM's; raises RuntimeError where it must not be."""
    check_vllm()
    from vllm.lora import model_manager as manager
    from vllm.lora.layers import base_linear as layers
    from vllm.lora.punica_wrapper import punica_cpu

    # vLLM exports none of these as something to replace.
    stock_manager: Any = manager
    stock_layers: Any = layers

    class GroupedPunicaWrapper(punica_cpu.PunicaWrapperCPU):
        """vLLM's interface to LoRA kernels, over this file's."""

        def update_metadata(self, *args: Any, **kwargs: Any) -> None:
            self._update_base_metadata(*args, **kwargs)
            _steps["tokens"], _steps["samples"] = Step(self.token_lora_indices), Step(self.sampler_indices)

        def add_lora_linear(self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: Any, *_: Any, **__: Any) -> None:
            add_lora(y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), lora_a_stacked[0], "tokens")

        def add_lora_logits(self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: torch.Tensor, *_: Any, **__: Any) -> None:
            add_lora(y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), lora_a_stacked, "samples")

        def add_lora_embedding(self, *_: Any, **__: Any) -> None:
            """Do nothing: the gate lets no adapter in that has weights for the embeddings."""

    stock_from_layer, stock_logits = stock_manager.from_layer, stock_manager.from_layer_logits_processor
    stock_device = stock_layers._get_lora_device  # noqa: SLF001  there is no public one

    def from_layer(layer: Any, *args: Any, **kwargs: Any) -> Any:
        made = stock_from_layer(layer, *args, **kwargs)
        return adopt(made) if isinstance(made, layers.BaseLinearLayerWithLoRA) else made

    def get_lora_device(base_layer: Any) -> torch.device:
        # On a CPU without AMX the INT8 weight is packed into oneDNN's own memory and the layer's is None.
        if getattr(base_layer, "weight", base_layer) is None:
            return torch.device("cpu")
        return stock_device(base_layer)

    stock_layers._get_lora_device = get_lora_device  # noqa: SLF001
    stock_manager.from_layer = from_layer
    stock_manager.from_layer_logits_processor = lambda *args, **kwargs: adopt(stock_logits(*args, **kwargs))
    stock_manager.get_punica_wrapper = GroupedPunicaWrapper
