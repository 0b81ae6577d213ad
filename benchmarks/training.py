"""Rows a second of a training step: PEFT's plain way beside ours, by turns in one run.

    taskset -c 0,1 .venv/bin/python -m benchmarks.training

The plain way: whole padded rows, logits for every token, LoRA with dropout, bfloat16 autocast. Rows are made up, with the
lengths of a message to a bank.
"""

from __future__ import annotations

import random
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.batching import Example, answer_loss, batches, collate, common_prefix, encode, plain_loss
from adapters.lora import add_lora
from adapters.recipe import Recipe, faster_compute
from adapters.rows import Row
from services.bundle import load_bundle
from services.cli.console import Bar
from services.settings import load_settings
from services.training import unquantized_base

ROUNDS, ROWS = 5, 96
WORDS = (
    "my",
    "card",
    "payment",
    "was",
    "declined",
    "and",
    "the",
    "transfer",
    "fee",
    "shows",
    "a",
    "wrong",
    "amount",
    "please",
    "help",
)


def main() -> None:
    """Measure and print."""
    with Bar() as bar:
        base = unquantized_base(load_bundle(load_settings().bundle), bar)
    tokenizer, rng = AutoTokenizer.from_pretrained(base), random.Random(7)  # noqa: S311  not for security
    rows = [Row(" ".join(rng.choices(WORDS, k=rng.randrange(4, 22))), "declined_card_payment") for _ in range(ROUNDS * ROWS)]
    examples = [encode(tokenizer, "Name the intent.", row, tokenizer.eos_token_id) for row in rows]
    compute = faster_compute()
    plain_model = add_lora(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), Recipe(rank=16, dropout=0.05))
    model = add_lora(AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, compute)), Recipe(rank=16))

    def plain(batch: list[Example]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = plain_loss(plain_model, batch)
        loss.backward()

    def ours(batch: list[Example]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute == "bfloat16"):
            loss = answer_loss(model.get_base_model(), collate(batch, common_prefix(examples)))
        loss.backward()

    plain(examples[:16])
    ours(examples[:32])
    print(f"{torch.get_num_threads()} threads; ours computes in {compute}")
    for turn in range(ROUNDS):
        part = examples[turn * ROWS : (turn + 1) * ROWS]
        for name, step, size in (("plain, 16 rows a step", plain, 16), ("ours, 32 rows a step", ours, 32)):
            groups = batches(part, size, rng)
            began = time.perf_counter()
            for group in groups:
                step(group)
            print(f"{name}: {ROWS / (time.perf_counter() - began):.1f} rows/s", flush=True)


main()
