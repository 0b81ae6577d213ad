"""The gate: an adapter that does not fit is refused, with the file, the field and the remedy."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from adapters import gate
from adapters.gate import BaseModel, check_adapter
from adapters.manifest import CONFIG, MANIFEST, WEIGHTS, AdapterError, Manifest, digest_file, write_manifest

SOURCE = "pypi:base==1"
RANK = 2
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
LINEARS = {Q: (6, 4), DOWN: (4, 8)}
BASE = BaseModel(SOURCE, LINEARS)


def tensors(dtype=torch.float32, linears=None):
    generator = torch.Generator().manual_seed(3)
    made = {}
    for layer, (out, inputs) in (linears or LINEARS).items():
        made[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator).mul(0.1).to(dtype)
        made[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(out, RANK, generator=generator).mul(0.1).to(dtype)
    return made


def a(layer):
    return f"base_model.model.{layer}.lora_A.weight"


def b(layer):
    return f"base_model.model.{layer}.lora_B.weight"


def sign(folder, **changes):
    """Write the manifest for the weights as they are."""
    facts = {"name": "a", "base_source": SOURCE, "dataset": "d", "system_prompt": "s", "sha256": digest_file(folder / WEIGHTS)}
    write_manifest(folder, Manifest(**{**facts, **changes}))


def save(folder, weights):
    save_file(weights, folder / WEIGHTS)
    sign(folder)


def configure(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "adapter"
    made.mkdir()
    (made / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "bias": "none"}))
    (made / "README.md").write_text("# A")
    save(made, tensors())
    return made


def check(folder, base=BASE, max_lora_rank=16):
    return check_adapter(folder, base=base, max_lora_rank=max_lora_rank)


def refused(folder, says, **kwargs):
    with pytest.raises(AdapterError, match=says) as caught:
        check(folder, **kwargs)
    assert str(folder) in str(caught.value)  # the file is named


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_that_fits(folder, dtype):
    save(folder, tensors(dtype))

    assert check(folder).name == "a"
    assert check(folder, BaseModel(SOURCE)).base_source == SOURCE  # before the base is packed


def test_bf16_is_read_as_the_numbers_that_it_stands_for(folder):
    values = tensors(torch.bfloat16)
    save_file(values, folder / WEIGHTS)
    read = gate._read_tensors(folder / WEIGHTS)

    assert all(torch.equal(torch.from_numpy(read[name]), tensor.float()) for name, tensor in values.items())


# Files


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "scheduler.PTH", "x/data.pkl", "a.pickle", "b.ckpt"])
def test_a_pickle_is_refused_unread(folder, name, monkeypatch):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x80\x04garbage that no unpickler reads")
    path.chmod(0)
    opened = []
    for method in ("open", "read_bytes", "read_text"):
        monkeypatch.setattr(f"pathlib.Path.{method}", lambda self, *_a, **_k: opened.append(self))
    refused(folder, r"is a pickle, which can run code, and was not read; save the weights as safetensors")

    assert opened == []  # neither it nor anything else: files come first


@pytest.mark.parametrize("name", ["run.py", "libx.so", "weights.gguf", "noending", "x/run.sh"])
def test_an_unknown_kind_of_file_is_refused(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    refused(folder, f"{name} does not belong to an adapter; remove it")


@pytest.mark.parametrize("name", [WEIGHTS, "notes.md", "more"])
def test_a_link_that_leads_out_is_refused(folder, tmp_path, name):
    outside = tmp_path / "outside"
    if name == "more":
        outside.mkdir()
    else:
        outside.write_text("secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    refused(folder, f"{name} leads out of the adapter's folder; put the file itself there")


def test_a_link_within_the_folder_passes(folder):
    (folder / "card.md").symlink_to(folder / "README.md")

    assert check(folder)


def test_a_link_to_nothing_is_refused(folder):
    (folder / "card.md").symlink_to(folder / "gone.md")
    refused(folder, r"card\.md")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_missing_files(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name} is missing: an adapter folder holds")


def test_no_folder(folder):
    refused(folder / "README.md", "is not a folder; name the folder that holds")
    refused(folder / "gone", "is not a folder")


def test_too_large(folder, monkeypatch):
    total = sum(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(gate, "MAX_BYTES", total)
    assert check(folder)
    monkeypatch.setattr(gate, "MAX_BYTES", total - 1)
    refused(folder, f"holds {total} bytes, more than {total - 1}; train with a smaller rank")


# Manifest and digest


def test_a_wrong_field_of_the_manifest_is_named(folder):
    (folder / MANIFEST).write_text('{"name": "a"}')
    refused(folder, r"ekiben\.json: base_source: Field required")


def test_another_base(folder):
    refused(folder, r"ekiben\.json: base_source: made for base 'pypi:base==1', but .* 'pypi:other==1'; train it on this base",
            base=BaseModel("pypi:other==1", LINEARS))  # fmt: skip


def test_altered_weights(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    refused(folder, r"adapter_model\.safetensors: sha256 is .*altered or cut short")


@pytest.mark.parametrize("kept", [0, 4, 60, -1, -9])
def test_truncated_weights_with_a_digest_of_their_own(folder, kept):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])
    sign(folder)
    refused(folder, r"not a whole safetensors file \(.*copy or save it again")


def test_bytes_after_the_weights(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"more")
    sign(folder)
    refused(folder, "not a whole safetensors file")


# Settings


@pytest.mark.parametrize("content", ["", "[]", "{}", '"r"', "3", '{"r": 2', b"\xff"])
def test_settings_that_cannot_be_read(folder, content):
    (folder / CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, r"adapter_config\.json: cannot be read as PEFT's settings")


@pytest.mark.parametrize("rank", [None, 0, -1, 2.0, "2"])
def test_no_rank(folder, rank):
    configure(folder, r=rank)
    refused(folder, r"adapter_config\.json: r: .* is no rank")


def test_a_rank_that_the_engine_does_not_serve(folder):
    configure(folder, r=32)
    refused(folder, r"adapter_config\.json: rank r=32 is over engine\.max_lora_rank=16; raise max_lora_rank")
    refused(folder, "max_lora_rank=1;", max_lora_rank=1)


@pytest.mark.parametrize("alpha", [None, 0, -1, math.inf, math.nan, "16"])
def test_no_alpha(folder, alpha):
    configure(folder, lora_alpha=alpha)
    refused(folder, r"adapter_config\.json: lora_alpha: .* must be a number above 0")


def test_a_scaling_that_runs_away(folder):
    save(folder, {name: tensor * 0.01 for name, tensor in tensors().items()})
    configure(folder, lora_alpha=64 * RANK)
    assert check(folder)
    configure(folder, lora_alpha=64 * RANK + 1)
    refused(folder, "lora_alpha: the weights would be multiplied by 6[45], more than 64; lower lora_alpha")


def test_rslora_divides_by_the_root_of_the_rank(folder):
    save(folder, {name: tensor * 0.01 for name, tensor in tensors().items()})
    configure(folder, lora_alpha=64 * math.sqrt(RANK) * 1.01)
    assert check(folder)
    configure(folder, use_rslora=True)
    refused(folder, "lora_alpha: the weights would be multiplied")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"), ("use_dora", True), ("modules_to_save", ["lm_head"]), ("bias", "all"), ("lora_bias", True),
        ("rank_pattern", {"q_proj": 4}), ("alpha_pattern", {"q_proj": 4}), ("fan_in_fan_out", True),
        ("trainable_token_indices", [1]), ("target_parameters", ["experts"]), ("use_qalora", True),
        ("alora_invocation_tokens", [1, 2]), ("layer_replication", [[0, 2]]),
    ],
)  # fmt: skip
def test_what_is_not_plain_lora_is_refused(folder, key, value):
    configure(folder, **{key: value})
    refused(folder, rf"adapter_config\.json: {key} is .*; vLLM serves plain LoRA only: train with {key}=")


# Tensors


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A", "base_model.model.model.embed_tokens.weight",
        "base_model.model.lm_head.weight", f"base_model.model.{Q}.lora_magnitude_vector", "lora_A.weight",
        f"base_model.model.{Q}.lora_B.bias",
    ],
)  # fmt: skip
def test_a_tensor_that_is_no_lora_weight(folder, name):
    save(folder, {**tensors(), name: torch.zeros(RANK, 4)})
    refused(folder, "not a LoRA weight of a linear layer; train without modules_to_save and embeddings")


@pytest.mark.parametrize("layer", ["lm_head", "model.embed_tokens", "model.layers.7.self_attn.q_proj"])
def test_a_layer_that_the_base_does_not_have(folder, layer):
    save(folder, tensors(linears={Q: LINEARS[Q], layer: (6, 4)}))
    refused(folder, rf"{layer}: the base has no such linear layer; target_modules may be: down_proj, q_proj$")


@pytest.mark.parametrize("side", ["A", "B"])
def test_half_a_pair(folder, side):
    weights = tensors()
    del weights[a(Q) if side == "B" else b(Q)]
    save(folder, weights)
    refused(folder, rf"{Q}: only lora_{side} is there; save the adapter with PEFT again")


def test_no_weights(folder):
    save(folder, {})
    refused(folder, "holds no weights; save the adapter with PEFT")


@pytest.mark.parametrize(
    ("name", "shape"),
    [(a(Q), (RANK + 1, 4)), (a(Q), (4, RANK)), (b(Q), (6, RANK + 1)), (a(Q), (RANK * 4,)), (b(Q), (1, 6, RANK))],
)
def test_shapes_that_are_not_of_the_rank(folder, name, shape):
    save(folder, {**tensors(), name: torch.zeros(shape)})
    refused(folder, rf"{Q}: shapes .* are not \(r, in\) and \(out, r\) with r=2 of adapter_config\.json")


@pytest.mark.parametrize("shape", [(6, 5), (7, 4), (4, 6)])
def test_a_layer_of_another_shape_than_the_bases(folder, shape):
    save(folder, tensors(linears={**LINEARS, Q: shape}))
    refused(folder, rf"{Q}: made for a layer of shape \({shape[0]}, {shape[1]}\), the base's is \(6, 4\)")


def test_an_empty_layer_is_refused_before_the_base_is_packed(folder):
    save(folder, {a(Q): torch.zeros(RANK, 0), b(Q): torch.zeros(6, RANK)})
    refused(folder, Q)  # by the base's shape
    with pytest.raises(AdapterError):
        check(folder, BaseModel(SOURCE))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_a_dtype_that_is_not_served(folder, dtype):
    save(folder, {**tensors(), a(Q): torch.zeros(RANK, 4).to(dtype)})
    refused(folder, rf"{a(Q)}: dtype \w+ is not served; save it as BF16, F16 or F32")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_no_numbers(folder, value, dtype):
    weights = tensors(dtype)
    weights[b(DOWN)][0, 1] = value
    save(folder, weights)
    refused(folder, rf"{b(DOWN)}: holds NaN or infinite values; train again with a lower learning rate")


def test_a_norm_that_runs_away(folder):
    weights = tensors()
    delta = 2.0 * weights[b(Q)] @ weights[a(Q)]
    rms = float(delta.square().mean().sqrt())
    save(folder, {**weights, b(Q): weights[b(Q)] * (0.499 / rms)})
    assert check(folder)
    save(folder, {**weights, b(Q): weights[b(Q)] * (0.52 / rms)})
    refused(folder, rf"{Q}: adds 0\.52 to the base's weights \(root mean square\), more than 0\.5")


def test_two_tensors_for_the_same_place_are_refused(folder):
    """Which of them is looked at, and which the engine takes, is chance."""
    weights = tensors()
    save(folder, {**weights, f"{Q}.lora_A.weight": weights[a(Q)].clone()})
    refused(folder, Q)


# Tokenizer


def tokenizer(folder, tokens, added=(), **config):
    folder.mkdir(exist_ok=True)
    content = {"model": {"vocab": {token: i for i, token in enumerate(tokens)}}, "added_tokens": [{"content": t} for t in added]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def base(tmp_path):
    return BaseModel(SOURCE, LINEARS, tokenizer(tmp_path / "base", ["a", "b"], ["<s>"], chat_template="{{ messages }}\n"))


def test_the_bases_own_tokenizer_beside_the_adapter_passes(folder, base):
    assert check(folder, base)
    tokenizer(folder, ["b", "a"], ["<s>"], chat_template="{{ messages }}")

    assert check(folder, base)


def test_added_tokens(folder, base):
    tokenizer(folder, ["a", "b"], ["<s>", "<tool>"], chat_template="{{ messages }}")
    refused(folder, r"its tokenizer adds <tool> to the base's; vLLM serves the base's tokens", base=base)
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({f"<{n}>": n for n in range(7)}))
    refused(folder, r"adds <0>, <1>, <2>, <3>, <4> \.\.\. to", base=base)


def test_a_vocabulary_in_pairs_as_unigram_has_it(folder, base):
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", -1.0], ["c", -2.0]]}}))
    refused(folder, "its tokenizer adds c to", base=base)


@pytest.mark.parametrize("content", ["{", "[]", '{"added_tokens": [{}]}', '{"added_tokens": [3]}'])
def test_a_tokenizer_that_cannot_be_read(folder, base, content):
    (folder / "tokenizer.json").write_text(content)
    refused(folder, "its tokenizer's files cannot be read", base=base)


def test_another_chat_template(folder, base):
    tokenizer(folder, ["a"], chat_template="{{ other }}")
    refused(folder, "chat_template differs from the base's, which is the one that is served", base=base)
    (folder / "chat_template.jinja").write_text("{{ messages }}")  # goes before the one in the settings
    assert check(folder, base)
    (folder / "chat_template.jinja").write_text("{{ other }}")
    refused(folder, "chat_template differs", base=base)


def test_a_chat_template_that_cannot_be_read(folder, base):
    (folder / "tokenizer_config.json").write_text("{")
    refused(folder, r"tokenizer_config\.json: cannot be read", base=base)


def test_a_chat_template_that_is_no_text(folder, base):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    refused(folder, "chat_template", base=base)


def test_a_name_that_vllm_does_not_take(folder):
    save(folder, {name.removesuffix(".weight"): tensor for name, tensor in tensors().items()})
    refused(folder, "not a LoRA weight of a linear layer")
