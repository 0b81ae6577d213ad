"""Training on a tiny random model: it learns, stops, and goes on after being killed as if nothing had been."""

from dataclasses import replace

import pytest
import torch

from adapters import checkpoint
from adapters.batching import answer_loss, collate
from adapters.checkpoint import CheckpointError, State
from adapters.fitting import fit, measure
from adapters.lora import add_lora
from adapters.recipe import Recipe, TrainingError
from adapters.train import check_loss

peft = pytest.importorskip("peft")
RECIPE = Recipe(rank=4, alpha=8, epochs=30, batch=8, learning_rate=2e-2, dropout=0.1, patience=100)


class Quiet:
    """A progress that remembers its notes, and may kill the training at a step."""

    def __init__(self, killed_at=None):
        self.notes, self.killed_at = [], killed_at

    def tell(self, text, done, total):
        if done == self.killed_at:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def run(make_model, examples, tmp_path, monkeypatch):
    monkeypatch.setattr("adapters.fitting.CHECKPOINT_STEPS", 3)

    def train(recipe=RECIPE, *, folder="run", state=None, progress=None, held_out=8):
        model = add_lora(make_model(), recipe)
        held = examples[:held_out]
        outcome = fit(model, examples[8:], held, recipe, state or State({}), tmp_path / folder, progress or Quiet())
        return outcome, {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}

    return train


def test_it_learns(run):
    outcome, _ = run(replace(RECIPE, dropout=0))

    assert sum(outcome.state.losses[-4:]) < sum(outcome.state.losses[:4]) - 1
    assert outcome.state.best_loss < outcome.state.held_out[0][1] - 0.3
    assert outcome.state.step == outcome.steps == 30 * 4


@pytest.mark.parametrize("killed_at", [1, 7, 50])
def test_killed_and_resumed_it_gives_the_same_weights(run, tmp_path, killed_at):
    recipe = replace(RECIPE, epochs=15)
    whole, wanted = run(recipe, folder="whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, progress=Quiet(killed_at))
    state = checkpoint.load(tmp_path / "run")
    assert (state.step if state else 0) == killed_at // 3 * 3
    progress = Quiet()
    resumed, given = run(recipe, state=state, progress=progress)

    assert resumed.state.losses == whole.state.losses
    assert resumed.state.held_out == whole.state.held_out
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    assert any("going on from step" in note for note in progress.notes) == (killed_at > 3)


def test_it_stops_when_held_out_rows_get_no_better_and_keeps_the_best(run, make_model, examples):
    recipe = replace(RECIPE, learning_rate=0.5, patience=2, dropout=0)
    outcome, weights = run(recipe)
    state = outcome.state

    assert state.step < outcome.steps
    assert state.best_step == min(state.held_out, key=lambda point: point[1])[0] < state.step
    assert all(torch.equal(weights[name], state.best_weights[name]) for name in weights)
    model = add_lora(make_model(), recipe)
    for name, weight in model.named_parameters():
        if name in weights:
            weight.data.copy_(weights[name])
    assert measure(model.get_base_model(), examples[:8], recipe, 3)[0] == pytest.approx(state.best_loss, rel=1e-5)


def test_a_stopped_training_stays_stopped(run, tmp_path):
    recipe = replace(RECIPE, learning_rate=0.5, patience=2, dropout=0)
    first, wanted = run(recipe)
    again, given = run(recipe, state=checkpoint.load(tmp_path / "run"))

    assert again.state.best_step == first.state.best_step
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)


def test_a_loss_that_is_no_number_ends_the_training(run):
    with pytest.raises(TrainingError, match="lower --learning-rate"):
        run(replace(RECIPE, learning_rate=1e38, dropout=0))


def test_without_held_out_rows_the_last_weights_count(run):
    outcome, weights = run(replace(RECIPE, epochs=2), held_out=0)

    assert outcome.state.held_out == []
    assert all(torch.equal(weights[name], outcome.state.weights[name]) for name in weights)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_fused_product_is_pefts_own(make_model, examples, rslora):
    fused = add_lora(make_model(), replace(RECIPE, dropout=0, rslora=rslora))
    stock = add_lora(make_model(), replace(RECIPE, dropout=1e-9, rslora=rslora)).eval()
    for (_, one), (_, other) in zip(fused.named_parameters(), stock.named_parameters(), strict=True):
        if one.requires_grad:
            one.data.normal_(std=0.1)
            other.data.copy_(one.data)
    batch = collate(examples[:8], 3)
    losses = [answer_loss(model.get_base_model(), batch) for model in (fused, stock)]
    for loss in losses:
        loss.backward()

    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for one, other in zip(fused.parameters(), stock.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_accuracy_counts_answers_that_are_right_to_the_last_token(make_model, examples):
    class Oracle(torch.nn.Module):
        """Predicts 15 after anything."""

        config = make_model().config

        def base_model(self, *, input_ids, **_):
            states = torch.zeros((*input_ids.shape, 32))
            states[..., 15] = 1
            return type("Output", (), {"last_hidden_state": states})

        def get_output_embeddings(self):
            return torch.nn.Identity()

    some = [replace(examples[0], ids=[1, 2, 15, 15], prompt_length=2), replace(examples[0], ids=[1, 3, 15, 9], prompt_length=2)]

    assert measure(Oracle(), some, RECIPE, 0)[1] == 0.5


def test_an_architecture_with_logits_of_its_own_is_refused(make_model, examples):
    model = make_model()
    check_loss(model, examples[:4])
    stock = model.forward

    def scaled(**inputs):
        output = stock(**inputs)
        output.loss = output.loss * 2
        return output

    model.forward = scaled
    with pytest.raises(TrainingError, match="LlamaForCausalLM"):
        check_loss(model, examples[:4])


def test_a_broken_checkpoint_says_what_to_do(tmp_path):
    assert checkpoint.load(tmp_path) is None
    (tmp_path / checkpoint.FILE).write_bytes(b"PK broken")
    with pytest.raises(CheckpointError, match="--fresh"):
        checkpoint.load(tmp_path)
    checkpoint.discard(tmp_path)
    assert checkpoint.load(tmp_path) is None
