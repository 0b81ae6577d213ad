"""What vLLM's worker needs on a CPU beside what it has; `--worker-extension-cls services.cpu_worker.CpuWorker` loads it.

It brings the LoRA kernel (`adapters.cpu_lora`), and keeps a seeded request from ending the engine. vLLM 0.32.0 samples a token
for every chunk of a prompt and throws away all but the last; the random state is then turned back by an offset, which a CPU's
generators do not have: RuntimeError, and with the engine every request under way is lost.
"""

from __future__ import annotations

import sys
from typing import Any

from services.renewal import close_listeners, empty, forget_zeros, renew, trim


def keep_seeds(runner_class: Any) -> None:
    """Let a runner put the state of a request's generator back itself when the token it drew is thrown away."""
    stock_sample, stock_bookkeeping = runner_class._sample, runner_class._bookkeeping_sync  # noqa: SLF001  vLLM has no other way

    def discarded(runner: Any) -> dict[int, Any]:
        batch = runner.input_batch
        thrown_away = runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist()
        return {i: batch.generators[i] for i in thrown_away if i in batch.generators}

    def sample(runner: Any, *args: Any, **kwargs: Any) -> Any:
        before = [(generator, generator.get_state()) for generator in discarded(runner).values()]
        sampled = stock_sample(runner, *args, **kwargs)
        for generator, state in before:
            generator.set_state(state)
        return sampled

    def bookkeeping(runner: Any, *args: Any, **kwargs: Any) -> Any:
        hidden, generators = discarded(runner), runner.input_batch.generators
        for i in hidden:
            del generators[i]
        try:
            return stock_bookkeeping(runner, *args, **kwargs)
        finally:
            generators.update(hidden)

    runner_class._sample, runner_class._bookkeeping_sync = sample, bookkeeping  # noqa: SLF001


def adapter_slots(model: Any) -> list[Any]:
    """Return the tensors that hold adapters in a model's layers: most of their slots are zeros that nobody has read yet."""
    found: list[Any] = []
    for layer in model.modules():
        for name in ("lora_a_stacked", "lora_b_stacked"):
            held = getattr(layer, name, ())
            found += held if isinstance(held, tuple | list) else [held]
    return [tensor for tensor in found if tensor is not None]


class CpuWorker:
    """The class that the argument names; vLLM mixes it into its worker."""

    model_runner: Any

    def before_dump(self) -> None:
        """Let go of what a snapshot must not hold; called in the worker's process."""
        close_listeners()
        empty(self.model_runner.kv_caches)
        forget_zeros(adapter_slots(self.model_runner.model))
        trim()

    def after_restore(self) -> None:
        """Renew what a process that was dumped must have anew; called in the worker's process."""
        renew()


# vLLM imports this file for its effect, before the worker is made.
if "vllm" in sys.modules:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    from adapters import cpu_lora

    cpu_lora.install()
    keep_seeds(CPUModelRunner)
