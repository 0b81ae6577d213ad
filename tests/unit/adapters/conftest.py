"""A tiny random model, and conversations for it that can be learnt."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.batching import Example

SYSTEM = [1, 2, 3]
END = 4


@pytest.fixture(autouse=True)
def one_thread():
    """Small products are faster on one thread, and their sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_model():
    def make():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, eos_token_id=END, bos_token_id=1, pad_token_id=END,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return make


@pytest.fixture
def examples():
    """Forty prompts of different lengths; the answer is two tokens that follow from the first one."""
    rng = random.Random(2)
    made = []
    for _ in range(40):
        text = [rng.randrange(5, 13) for _ in range(rng.randrange(1, 9))]
        prompt = [*SYSTEM, *text]
        made.append(Example([*prompt, text[0] + 10, 20 + text[0] % 3, END], len(prompt)))
    return made
