"""What the LoRA benchmark compares, and the adapters that it makes up."""

import json

import pytest
from safetensors.torch import load_file

from benchmarks.lora import Found, Side, summary
from benchmarks.random_lora import write_adapter
from services.measure import Measured

EAGER, COMPILED = Side(["--enforce-eager"], {}, lora=True), Side([], {}, lora=True)
PLAIN = Side(["--enforce-eager"], {}, lora=False)


def found(**rates):
    """An engine that gave so many tokens a second; of three rounds the middle one counts."""
    one = Found()
    for workload, rate in rates.items():
        for tokens in (rate, rate * 9, rate // 9):
            one.bursts[workload].append(Measured(1, tokens, 1, 1.0, (0.1,)))
    return one


@pytest.mark.parametrize(("ours", "ratio"), [(EAGER, 0.8), (COMPILED, 0.4)])
def test_ours_is_held_to_the_same_engine_without_lora(ours, ratio):
    sides = {"ours": ours, "stock": COMPILED, "plain-eager": PLAIN, "plain-compiled": Side([], {}, lora=False)}
    rates = {
        "ours": found(base=450, one=420, mixed=400), "stock": found(base=300, one=60, mixed=50),
        "plain-eager": found(base=500), "plain-compiled": found(base=1000),
    }  # fmt: skip
    ratios = summary(rates, sides)

    assert list(ratios)[:2] == ["mixed_vs_no_lora", "mixed_vs_stock_lora"]
    assert ratios["mixed_vs_no_lora"] == ratio
    assert ratios["mixed_vs_stock_lora"] == 8
    assert ratios["mixed_vs_no_lora_compiled"] == 0.4
    assert ratios["base_vs_stock_lora"] == 1.5


def test_an_engine_that_was_left_out_has_no_ratio():
    ratios = summary({"ours": found(base=1, one=1, mixed=1)}, {"ours": EAGER, "stock": COMPILED})

    assert set(ratios.values()) == {None}


def test_an_adapter_follows_from_its_seed_and_fits_the_model(tmp_path):
    config = {
        "num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_key_value_heads": 1,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    one, same, other = (
        load_file(write_adapter(tmp_path / name, model=tmp_path, seed=seed, rank=4) / "adapter_model.safetensors")
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    key = "base_model.model.model.layers.1.self_attn.k_proj.lora_"

    assert len(one) == 2 * 7 * 2
    assert one[f"{key}A.weight"].shape == (4, 24)
    assert one[f"{key}B.weight"].shape == (8, 4)
    assert all(one[name].equal(same[name]) for name in one)
    assert not any(one[name].equal(other[name]) for name in one)
