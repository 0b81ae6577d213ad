"""A tiny model of random weights, really quantized by every recipe in the quantization environment."""

import hashlib
import json

import pytest
from safetensors import safe_open

from models.making import TEXTS, ModelError, ModelRecipe, make_model
from services.recipes import RECIPES
from services.settings import ROOT

REQUIREMENTS = ROOT / "requirements" / "quantize.txt"
ENVIRONMENT = ROOT / ".venv-quantize"
STAMP = ENVIRONMENT / ".lock-digest"
HIDDEN, INTERMEDIATE = 64, 192

pytestmark = pytest.mark.skipif(
    not STAMP.is_file() or STAMP.read_text() != hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest(),
    reason="the quantization environment is not installed; `ekiben model make` installs it",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Llama of two layers whose sizes only groups of 64 and 32 divide, and a tokenizer of its own."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("models")
    bytes_only = ByteLevelBPETokenizer()
    bytes_only.train_from_iterator([TEXTS.read_text()], vocab_size=400, special_tokens=["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only._tokenizer, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(root / "tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(root / "tiny")
    return root


def make(root, recipe, target, *, bound=1.0, calibration=None):
    notes, steps = [], []
    made = ModelRecipe(
        source="path:tiny", sha256=None, recipe=recipe, max_nll_increase=bound, root=root, requirements=REQUIREMENTS,
        environment=ENVIRONMENT, calibrated=RECIPES[recipe].calibrated, calibration=calibration,
    )  # fmt: skip
    make_model(made, target, lambda done, total: steps.append((done, total)), notes.append)
    return notes, steps


def tensors(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping


DOWN = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("recipe", "weights", "scales"),
    [
        ("none", "weight", None),
        ("w8a8", "weight", (HIDDEN, 1)),
        ("fp8", "weight", (HIDDEN, 1)),
        ("w4a16-gptq", "weight_packed", (HIDDEN, INTERMEDIATE // 64)),
        ("w4a16-awq", "weight_packed", (HIDDEN, INTERMEDIATE // 64)),
    ],
)
def test_each_recipe_makes_a_judged_model(tiny, tmp_path, recipe, weights, scales):
    calibration = None
    if recipe == "w4a16-awq":
        calibration = tmp_path / "mine.jsonl"
        calibration.write_text("\n".join(json.dumps({"text": f"Text {number} of mine. " * 9}) for number in range(8)))
    target = tmp_path / "out"
    notes, steps = make(tiny, recipe, target, calibration=calibration)

    found = tensors(target)
    assert f"{DOWN}.{weights}" in found
    assert found.get(f"{DOWN}.weight_scale") == scales
    assert "model.embed_tokens.weight" in found
    card = json.loads((target / "ekiben_model.json").read_text())
    assert card["recipe"] == recipe
    assert all(0 < value < 10 for value in card["nll"].values())
    assert steps[0][0] == 0
    assert steps[-1][0] == steps[-1][1]
    assert any("8 texts" in note for note in notes) == (calibration is not None)
    config = json.loads((target / "config.json").read_text())
    assert ("quantization_config" in config) == (recipe != "none")


def test_a_model_that_got_worse_than_allowed_is_not_kept(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"worse than allowed: .* -> .* take another recipe or allow more"):
        make(tiny, "w8a8", tmp_path / "out", bound=-1.0)

    assert not (tmp_path / "out").exists()
