"""The quantization recipes: what each makes of the weights, where the pinned vLLM can run it, and what else it forbids.

What a CPU needs was found in vLLM 0.32.0 itself: its kernels are built for some instruction sets and absent from the rest,
and it notices only at the first token. So it is told here, before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from services.target import Target

RecipeName = Literal["none", "w8a8", "w4a16-gptq", "w4a16-awq", "fp8"]
_ANY_CPU: Mapping[str, frozenset[str]] = {"x86_64": frozenset(), "aarch64": frozenset()}
_ANY_REASON = "vLLM is built for x86-64 and AArch64"
_AVX512: Mapping[str, frozenset[str]] = {"x86_64": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})}


@dataclass(frozen=True)
class Recipe:
    """One way to make weights smaller."""

    summary: str
    max_nll_increase: float
    """How much worse the model may get by default, in nats a token."""
    calibrated: bool = False
    """Whether the weights are fitted on a text."""
    keeps_activations: bool = True
    """Whether a layer's input stays what it was: what a LoRA adapter for the unquantized model multiplies."""
    cpus: Mapping[str, frozenset[str]] | None = None
    """Architectures with a kernel, and the CPU flags that it needs there; None where no CPU that was tried has one of use."""
    cpu_reason: str = ""


RECIPES: Mapping[RecipeName, Recipe] = {
    "none": Recipe("bfloat16 weights", max_nll_increase=0.1, cpus=_ANY_CPU, cpu_reason=_ANY_REASON),
    "w8a8": Recipe("8-bit weights and activations", max_nll_increase=0.1, cpus=_ANY_CPU, cpu_reason=_ANY_REASON),
    "w4a16-gptq": Recipe(
        "4-bit weights in groups, fitted by GPTQ", max_nll_increase=0.3, calibrated=True, cpus=_AVX512,
        cpu_reason="vLLM's 4-bit kernel for CPUs is built for x86-64 with AVX-512 only",
    ),
    "w4a16-awq": Recipe(
        "4-bit weights in groups, scaled by AWQ", max_nll_increase=0.3, calibrated=True, keeps_activations=False, cpus=_AVX512,
        cpu_reason="vLLM's 4-bit kernel for CPUs is built for x86-64 with AVX-512 only",
    ),
    "fp8": Recipe(
        "8-bit floating-point weights and activations", max_nll_increase=0.1,
        cpu_reason="it is made for GPUs; on CPUs vLLM computes it by a fallback that is slower than no quantization",
    ),
}  # fmt: skip


def refusal(name: RecipeName, target: Target) -> str | None:
    """Return why the target cannot run what the recipe makes, and what to do; None where it can."""
    if runs_on(name, target):
        return None
    recipe = RECIPES[name]
    needs = (recipe.cpus or {}).get(target.architecture)
    lacks = "" if needs is None else f" (this one lacks {', '.join(sorted(needs - target.flags))})"
    others = ", ".join(other for other in RECIPES if runs_on(other, target))
    return (
        f"{name} is not for this CPU, {target.architecture}{lacks}: {recipe.cpu_reason}; "
        f"{f'take one of {others}, or ' if others else ''}check for a GPU with --device cuda (EKIBEN_DEVICE=cuda)"
    )


def runs_on(name: RecipeName, target: Target) -> bool:
    """Whether the target can run what the recipe makes."""
    if target.device == "cuda":
        return True
    needs = (RECIPES[name].cpus or {}).get(target.architecture)
    return needs is not None and needs <= target.flags
