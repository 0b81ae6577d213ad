"""Rows as token ids, in batches of like length, and the loss over their answers.

Two things make a step cheap on a CPU. The tokens that all prompts begin with (template and system prompt) are computed once a
batch, and their keys and values repeated. The projection to the vocabulary and the cross-entropy see the answers only. The loss
stays what it is: `tests/unit/adapters/test_batching.py` compares it, and its gradient, with the model's own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapters.rows import Row

if TYPE_CHECKING:
    import torch

GROUPS_A_WINDOW = 32


@dataclass(frozen=True)
class Example:
    """Token ids of one conversation; the first `prompt_length` of them carry no loss."""

    ids: list[int]
    prompt_length: int


@dataclass(frozen=True)
class Batch:
    """Examples without their common beginning and their last token, padded on the right (no answer looks to its right).

    prefix (1, common), ids (examples, longest), positions (answer tokens,) into the flattened ids: where the token of
    targets (answer tokens,) is to be predicted.
    """

    prefix: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


def encode(tokenizer: Any, system: str, row: Row, end: int) -> Example:
    """Render one row with the model's own chat template; the answer is the label and the token `end`."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": row.text}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(row.label, add_special_tokens=False)["input_ids"]
    return Example([*prompt_ids, *answer_ids, end], len(prompt_ids))


def common_prefix(examples: list[Example]) -> int:
    """Return how many tokens all prompts begin with; each prompt keeps at least one of its own."""
    first = min((example.ids for example in examples), key=len)
    longest = min(example.prompt_length for example in examples) - 1
    for position in range(longest):
        if any(example.ids[position] != first[position] for example in examples):
            return position
    return longest


def batches(examples: list[Example], size: int, rng: random.Random) -> list[list[Example]]:
    """Group examples of like length, then shuffle the groups. The number of groups depends on the two numbers alone."""
    shuffled = rng.sample(examples, len(examples))
    window = size * GROUPS_A_WINDOW
    groups: list[list[Example]] = []
    for start in range(0, len(shuffled), window):
        part = sorted(shuffled[start : start + window], key=lambda example: len(example.ids))
        groups.extend(part[i : i + size] for i in range(0, len(part), size))
    rng.shuffle(groups)
    return groups


def collate(examples: list[Example], common: int) -> Batch:
    """Put examples that share their first `common` tokens into one batch."""
    import torch

    inputs = [example.ids[common:-1] for example in examples]
    longest = max(map(len, inputs))
    ids = torch.zeros((len(inputs), longest), dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    for row, (example, own) in enumerate(zip(examples, inputs, strict=True)):
        ids[row, : len(own)] = torch.tensor(own)
        positions += range(row * longest + example.prompt_length - 1 - common, row * longest + len(own))
        targets += example.ids[example.prompt_length :]
    return Batch(torch.tensor([examples[0].ids[:common]]), ids, torch.tensor(positions), torch.tensor(targets))


def answer_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Return the logits (answer tokens, vocabulary) at the batch's positions; `model` is a causal one of transformers."""
    from transformers import DynamicCache

    if batch.prefix.shape[1]:
        cache = DynamicCache(config=model.config)
        model.base_model(input_ids=batch.prefix, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(batch.ids))
        states = model.base_model(input_ids=batch.ids, past_key_values=cache, use_cache=True).last_hidden_state
    else:
        states = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(states.flatten(0, 1)[batch.positions])


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of the answers' tokens, in nats."""
    import torch

    return torch.nn.functional.cross_entropy(answer_logits(model, batch).float(), batch.targets)


def plain_loss(model: Any, examples: list[Example]) -> torch.Tensor:
    """Return the same loss as the model itself computes it, over whole padded rows: slow, and what `answer_loss` must equal."""
    import torch

    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros((len(examples), longest), dtype=torch.long)
    labels = torch.full((len(examples), longest), -100)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        mask[row, :length] = 1
        labels[row, example.prompt_length : length] = ids[row, example.prompt_length : length]
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss
