"""From rows to an adapter folder: what is written, what is refused, and that a killed training goes on."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("peft")
pytest.importorskip("matplotlib")

from adapters import checkpoint
from adapters.checkpoint import CheckpointError
from adapters.gate import BaseModel, check_adapter
from adapters.recipe import Recipe, TrainingError
from adapters.rows import RowError
from services.bundle import load_bundle
from services.training import Assignment, train_adapter

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} end {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


class Bar:
    """A progress that may kill the training at a step."""

    def __init__(self, killed_at=None):
        self.lines, self.killed_at = [], killed_at

    def step(self, text):
        self.lines.append(text)

    note = step

    def advance(self, done, total):
        pass

    def tell(self, text, done, total):
        if done == self.killed_at:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small products are faster on one thread, and their sums have one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model of two layers, and a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["end", "unk", "system", "user", "assistant", "Name", "it", "fly", "drive", "walk", *(f"w{i}" for i in range(20))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="unk"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="end", unk_token="unk", chat_template=TEMPLATE).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=0, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "p.yaml").write_text("system: Name it\n")
    (tmp_path / "g.yaml").write_text("")
    (tmp_path / "bundle.yaml").write_text(
        "model: {name: m, source: 'pypi:m==1'}\nprompts: {p: {path: p.yaml}}\npolicies: {g: {path: g.yaml}}\n"
        "routes: {r: {prompt: p, policy: g}}\n"
    )
    return load_bundle(tmp_path / "bundle.yaml")


@pytest.fixture
def work(tmp_path, base):
    rows = [{"text": f"w{i} w{(i * 7) % 20}", "label": ("fly", "drive", "walk")[i % 3]} for i in range(60)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Assignment(
        name="a", data=data, dataset="Made up.", licence="apache-2.0", system_prompt="Name it", out=tmp_path / "a", held_out=0.1,
        recipe=Recipe(rank=4, epochs=8, batch=8, patience=100), compute="float32", base=base,
    )  # fmt: skip


def test_the_folder_may_be_served_and_says_how_it_was_made(loaded, work):
    train_adapter(loaded, work, Bar())
    manifest = check_adapter(work.out, base=BaseModel("pypi:m==1"), max_lora_rank=16)

    assert sorted(path.name for path in work.out.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "curve.png", "ekiben.json",
    ]  # fmt: skip
    assert (manifest.system_prompt, manifest.labels) == ("Name it", ["drive", "fly", "walk"])
    told = manifest.training
    assert (told["rows"], told["held_out_rows"], told["rank"], told["steps"], told["steps_done"]) == (54, 6, 4, 56, 56)
    assert "Made up." in (work.out / "README.md").read_text()
    assert str(work.base) not in (work.out / "adapter_config.json").read_text()


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(loaded, work, tmp_path):
    whole = train_adapter(loaded, replace(work, out=tmp_path / "whole"), Bar())
    with pytest.raises(KeyboardInterrupt):
        train_adapter(loaded, work, Bar(killed_at=30))
    assert not work.out.exists()
    bar = Bar()
    resumed = train_adapter(loaded, work, bar)

    assert "going on from step 25 of 56" in bar.lines
    assert resumed.sha256 == whole.sha256
    assert not work.out.with_name("a.training").exists()


def test_an_adapter_that_is_trained_anew_may_be_served_until_the_end(loaded, work):
    before = train_adapter(loaded, work, Bar())
    again = replace(work, overwrite=True, recipe=replace(work.recipe, seed=8))
    with pytest.raises(KeyboardInterrupt):
        train_adapter(loaded, again, Bar(killed_at=30))
    assert check_adapter(work.out, base=BaseModel("pypi:m==1"), max_lora_rank=16) == before

    after = train_adapter(loaded, replace(again, overwrite=False), Bar())
    assert check_adapter(work.out, base=BaseModel("pypi:m==1"), max_lora_rank=16) == after != before


def test_a_checkpoint_of_another_recipe_is_not_gone_on_from(loaded, work):
    with pytest.raises(KeyboardInterrupt):
        train_adapter(loaded, work, Bar(killed_at=30))
    other = replace(work, recipe=replace(work.recipe, learning_rate=1e-4))
    with pytest.raises(CheckpointError, match=r"another learning_rate; .*--fresh"):
        train_adapter(loaded, other, Bar())

    train_adapter(loaded, replace(other, fresh=True), Bar())
    assert checkpoint.load(work.out.with_name("a.training")) is None


def test_an_adapter_is_not_overwritten_unless_told(loaded, work):
    train_adapter(loaded, work, Bar())
    with pytest.raises(TrainingError, match="--overwrite"):
        train_adapter(loaded, work, Bar())
    train_adapter(loaded, replace(work, overwrite=True), Bar())


def test_what_cannot_be_trained_says_why(loaded, work, tmp_path):
    with pytest.raises(TrainingError, match="max_lora_rank=16"):
        train_adapter(loaded, replace(work, recipe=replace(work.recipe, rank=32)), Bar())
    with pytest.raises(TrainingError, match=r"holds no config\.json"):
        train_adapter(loaded, replace(work, base=tmp_path), Bar())
    other = tmp_path / "held.jsonl"
    other.write_text('{"text": "w1", "label": "swim"}\n')
    with pytest.raises(RowError, match="no rows of swim"):
        train_adapter(loaded, replace(work, held_out=other), Bar())
    work.data.write_text(json.dumps({"text": "w1 " * 5000, "label": "fly"}) + "\n")
    with pytest.raises(TrainingError, match="longer than"):
        train_adapter(loaded, replace(work, held_out=0.0), Bar())


def test_missing_tools_are_named(loaded, work, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(TrainingError, match="needs peft: install"):
        train_adapter(loaded, work, Bar())
