"""Prompts carry no loss, like lengths stand together, and the fast loss is the model's own."""

import random

import pytest
import torch

from adapters.batching import Example, answer_loss, batches, collate, common_prefix, encode, plain_loss
from adapters.rows import Row


class Tokenizer:
    """One token a character."""

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return "".join(f"<{m['role'][0]}{m['content']}>" for m in messages) + "<a"

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}


def test_the_answer_is_the_label_and_the_end():
    example = encode(Tokenizer(), "S", Row("hi", "yes"), 0)

    assert "".join(map(chr, example.ids[: example.prompt_length])) == "<sS><uhi><a"
    assert example.ids[example.prompt_length :] == [*map(ord, "yes"), 0]


def test_batches_hold_every_example_once_and_follow_from_the_seed():
    examples = [Example([1] * n, 0) for n in range(1, 40)]
    one = batches(examples, 4, random.Random(7))

    assert sorted(len(e.ids) for group in one for e in group) == list(range(1, 40))
    assert one == batches(examples, 4, random.Random(7))
    assert one != batches(examples, 4, random.Random(8))
    assert max(len(group) for group in one) == 4
    assert all(max(len(e.ids) for e in group) - min(len(e.ids) for e in group) < 4 for group in one)


def test_only_answers_are_targets():
    batch = collate([Example([1, 2, 5, 6, 7], 3), Example([1, 2, 8, 9], 3)], 2)

    assert batch.prefix.tolist() == [[1, 2]]
    assert batch.ids.tolist() == [[5, 6], [8, 0]]  # the last token is predicted, never read
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.positions.tolist() == [0, 1, 2]


def test_what_prompts_share_ends_before_the_shortest_prompt_does():
    assert common_prefix([Example([1, 2, 3, 4], 3), Example([1, 2, 5, 6], 3)]) == 2
    assert common_prefix([Example([1, 2, 3, 4], 3), Example([1, 2, 3, 9], 3)]) == 2
    assert common_prefix([Example([1, 4], 1), Example([2, 4], 1)]) == 0


@pytest.mark.parametrize("shared", [True, False])
def test_the_fast_loss_and_its_gradient_are_the_models_own(make_model, examples, shared):
    model = make_model()
    plain = plain_loss(model, examples[:8])
    plain.backward()
    wanted = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    fast = answer_loss(model, collate(examples[:8], common_prefix(examples) if shared else 0))
    fast.backward()

    assert fast.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-4, atol=1e-6)
