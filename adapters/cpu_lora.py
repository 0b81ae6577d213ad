"""LoRA on a CPU engine: right in mixed batches, and one pass over the weights of all adapters.

Stock vLLM 0.32.0 gathers a copy of the adapter's weights for every token, and takes index -1 for the last slot: requests of
the base model that share a batch with an adapter's are answered by the adapter (upstream pull requests 48421 and 49656).
Here the slots of a layer lie in one `Pack`, the slices of a fused layer side by side. A step's tokens are grouped by adapter
once, in a `Step`; each layer then costs two batched matrix products, and tokens of the base model cost nothing.

The worker installs it before the model is made (`services.cpu_worker`). CPU engines only.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch

CHECKED_VERSION = "0.32.0"
# So many neighbouring tokens of one adapter are worth two products of their own.
RUN_TOKENS = 32


class Pack:
    """The adapters of one layer: `a` (slots, in, slices * rank) and `b` (slots, slices * rank, out), of the model's dtype.

    In bfloat16 a row's product is the same to the bit in every batch: sums are float32 and in one order, and what is rounded
    between the two products is rounded alike. Products in float32 are faster in small batches, but differ with the batch in
    the last bits, and a greedy answer then differs where two tokens nearly tie.

    `b` is block-diagonal: rows i*rank..(i+1)*rank reach the columns of slice i only. `used` holds the slots with weights.
    """

    def __init__(self, slots: int, rank: int, inputs: int, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
        self.rank, self.sizes = rank, sizes
        self.a = torch.zeros(slots, inputs, len(sizes) * rank, dtype=dtype)
        self.b = torch.zeros(slots, len(sizes) * rank, sum(sizes), dtype=dtype)
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
        for run in groups.runs:
            self._add_run(y[run.rows], x[run.rows], run.slot)
        if groups.scattered is None:
            return
        slots, order, length, inverse = groups.scattered
        gathered = x.index_select(0, order).to(self.a.dtype).view(-1, length, x.shape[1])
        share = torch.bmm(torch.bmm(gathered, self.a[slots]), self.b[slots]).flatten(0, 1).to(y.dtype)
        share[length - 1] = 0  # written, not multiplied in: an adapter's product may be infinite
        y[:, : self.b.shape[2]] += share.index_select(0, inverse)

    def _add_run(self, y: torch.Tensor, x: torch.Tensor, slot: int) -> None:
        shrunk = x.to(self.a.dtype) @ self.a[slot]
        offset = 0
        for i, size in enumerate(self.sizes):
            rows, columns = slice(i * self.rank, (i + 1) * self.rank), slice(offset, offset + size)
            y[:, columns] += (shrunk[:, rows] @ self.b[slot, rows, columns]).to(y.dtype)
            offset += size


class Run(NamedTuple):
    """Neighbouring tokens of one slot, as a prompt's are."""

    slot: int
    rows: slice


class Scattered(NamedTuple):
    """Single tokens of several slots, as in decoding, gathered into a block for each slot and all blocks equally long.

    `order` (slots * length,) says which token stands where, and `inverse` (tokens,) brings each token its row back: those
    without an adapter get row length - 1, the last of the first block, which is no token's.
    """

    slots: slice
    order: torch.Tensor
    length: int
    inverse: torch.Tensor


class Groups(NamedTuple):
    """How the tokens of a step are worked on: long runs one by one, all others at once."""

    runs: list[Run]
    scattered: Scattered | None


class Step:
    """One step of the engine: for each of its tokens a slot, or -1; `indices` has shape (tokens,)."""

    def __init__(self, indices: torch.Tensor) -> None:
        self.tokens = len(indices)
        self._slots: list[int] = indices.tolist()
        self._present = frozenset(self._slots)
        self._groups: dict[frozenset[int], Groups] = {}

    def groups(self, used: frozenset[int]) -> Groups:
        """Return how the tokens of the slots in `used` are grouped; made once a step."""
        slots = self._present & used
        if slots not in self._groups:
            self._groups[slots] = self._group(slots)
        return self._groups[slots]

    def _group(self, slots: frozenset[int]) -> Groups:
        runs: list[Run] = []
        single: dict[int, list[int]] = {}
        start = 0
        for slot, tokens in itertools.groupby(self._slots):
            stop = start + len(list(tokens))
            if slot in slots:
                if stop - start >= RUN_TOKENS or stop - start == self.tokens:
                    runs.append(Run(slot, slice(start, stop)))
                else:
                    single.setdefault(slot, []).extend(range(start, stop))
            start = stop
        return Groups(runs, self._scatter(single) if single else None)

    def _scatter(self, tokens: dict[int, list[int]]) -> Scattered:
        slots = range(min(tokens), max(tokens) + 1)
        length = max(len(rows) for rows in tokens.values()) + 1
        order = torch.zeros(len(slots), length, dtype=torch.long)
        inverse = torch.full((self.tokens,), length - 1)
        for block, slot in enumerate(slots):
            rows = torch.tensor(tokens.get(slot, []), dtype=torch.long)
            order[block, : len(rows)] = rows
            inverse[rows] = torch.arange(len(rows)) + block * length
        return Scattered(slice(slots.start, slots.stop), order.flatten(), length, inverse)


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
    pack = Pack(a[0].shape[0], a[0].shape[2], a[0].shape[3], tuple(one.shape[2] for one in b), a[0].dtype)
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
