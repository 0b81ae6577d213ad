"""Each recipe is refused where vLLM has no kernel for it, with the reason and what to take."""

from typing import get_args

import pytest

from models import quantize_job
from services.recipes import RECIPES, RecipeName, refusal, runs_on
from services.target import Target

AVX512 = frozenset({"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq"})
XEON = Target("cpu", "x86_64", AVX512)
LAPTOP = Target("cpu", "x86_64", frozenset({"avx2"}))
ARM = Target("cpu", "aarch64", frozenset({"asimd"}))
GPU = Target("cuda")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (XEON, {"none", "w8a8", "w4a16-gptq", "w4a16-awq"}),
        (LAPTOP, {"none", "w8a8"}),
        (ARM, {"none", "w8a8"}),
        (Target("cpu", "riscv64"), set()),
        (GPU, set(RECIPES)),
    ],
)
def test_what_runs_where(target, expected):
    assert {name for name in RECIPES if runs_on(name, target)} == expected


def test_a_refusal_names_what_is_missing_and_the_remedies():
    message = refusal("w4a16-gptq", LAPTOP)

    assert "avx512bw, avx512dq, avx512f, avx512vl" in message
    assert "take one of none, w8a8" in message
    assert "--device cuda" in message
    assert refusal("w4a16-gptq", XEON) is None
    assert "AArch64; check for a GPU" in refusal("none", Target("cpu", "riscv64"))


def test_every_recipe_has_an_entry_here_and_in_the_job():
    assert set(RECIPES) == set(get_args(RecipeName)) == set(quantize_job.RECIPES)
