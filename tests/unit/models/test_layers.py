"""Linear layers from the headers of safetensors files, for each kind of weights that is served."""

import pytest
import torch
from safetensors.torch import save_file

from models.layers import linear_layers

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
BESIDE = {
    "model.embed_tokens.weight": torch.zeros(32, 4),
    "lm_head.weight": torch.zeros(32, 4),
    "model.norm.weight": torch.zeros(4),
    "model.layers.0.self_attn.q_norm.weight": torch.zeros(4),
    f"{Q}.bias": torch.zeros(6),
}


def test_plain_weights(tmp_path):
    save_file({**BESIDE, f"{Q}.weight": torch.zeros(6, 4, dtype=torch.bfloat16)}, tmp_path / "m.safetensors", {"format": "pt"})

    assert linear_layers(tmp_path) == {Q: (6, 4)}


def test_int8_weights(tmp_path):
    int8 = {f"{Q}.weight": torch.zeros(6, 4, dtype=torch.int8), f"{Q}.weight_scale": torch.zeros(6, 1)}
    save_file({**BESIDE, **int8}, tmp_path / "m.safetensors")

    assert linear_layers(tmp_path) == {Q: (6, 4)}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_packed_int4_weights_have_the_shape_that_they_note(tmp_path, dtype):
    packed = {
        f"{DOWN}.weight_packed": torch.zeros(4, 16, dtype=torch.int32),
        f"{DOWN}.weight_scale": torch.ones(4, 1),
        f"{DOWN}.weight_shape": torch.tensor([4, 128], dtype=dtype),
        f"{Q}.weight_packed": torch.zeros(6, 8, dtype=torch.int32),
        f"{Q}.weight_shape": torch.tensor([6, 64], dtype=dtype),
    }
    save_file({**BESIDE, **packed}, tmp_path / "m.safetensors")

    assert linear_layers(tmp_path) == {Q: (6, 64), DOWN: (4, 128)}


def test_layers_of_several_files(tmp_path):
    save_file({f"{Q}.weight": torch.zeros(6, 4)}, tmp_path / "m-1-of-2.safetensors")
    save_file({f"{DOWN}.weight": torch.zeros(4, 8)}, tmp_path / "m-2-of-2.safetensors")

    assert linear_layers(tmp_path) == {Q: (6, 4), DOWN: (4, 8)}
    assert linear_layers(tmp_path / "none") == {}


def test_a_packed_output_head_is_not_among_them(tmp_path):
    head = {"lm_head.weight_packed": torch.zeros(4, 2, dtype=torch.int32), "lm_head.weight_shape": torch.tensor([4, 16])}
    save_file(head, tmp_path / "m.safetensors")

    assert linear_layers(tmp_path) == {}
