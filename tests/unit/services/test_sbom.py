"""The bill of materials: valid CycloneDX 1.6, the same for the same Bento, and with everything that is in it."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from services.manifest import Manifest, PackedAdapter, PackedFinder, PackedIndex, PackedModel, Pin
from services.sbom import installed_license, package_url, sbom

DIGEST = "sha256:" + "d" * 64
MANIFEST = Manifest(
    name="box", version="v1", python="3.11", packages={"a": "1"}, hashes=1, files={}, prompts={"p": "1"}, policies={"d": "2"},
    model=PackedModel(
        tag="m:1", bytes=1, files={"w": "a" * 64}, source="hf:org/m@" + "0" * 40, revision="0" * 40, recipe="w8a8",
        sha256="b" * 64,
    ),
    draft=PackedModel(tag="dr:1", bytes=1, files={"w": "a" * 64}, source="path:draft", revision="1", recipe="none"),
    adapters={
        "ad": PackedAdapter(
            tag="ad:1", bytes=1, files={"w": "c" * 64}, base="pypi:m==1", rank=8, dataset="rows, CC-BY", accuracy=0.9,
            license="apache-2.0",
        )
    },
    indexes={"h": PackedIndex(tag="ix:1", bytes=1, files={}, rows="e" * 64, embedder="e5", chunks=3, documents=1)},
    names=PackedFinder(tag="nm:1", bytes=1, files={}, source="pypi:n==1", license="MIT"),
)  # fmt: skip
PINS = [Pin("Under_Score", "1.0", ["sha256:" + "f" * 64, "sha512:" + "f" * 128]), Pin("torch", "2.13.0+cpu", [])]


def bill(digest=DIGEST, license_of=lambda _name, _version: None):
    return sbom(MANIFEST, digest, PINS, license_of)


@pytest.mark.parametrize("told", [None, ("MIT OR Apache-2.0", True), ("BSD License", False)])
def test_it_is_valid(told):
    text = bill(license_of=lambda _name, _version: told)

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_validator_would_find_a_mistake():
    broken = {**json.loads(bill()), "surprise": 1}

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_it_follows_from_the_bento():
    assert bill() == bill()
    assert json.loads(bill())["serialNumber"] != json.loads(bill("sha256:" + "0" * 64))["serialNumber"]
    assert "timestamp" not in bill()


def test_everything_is_in_it():
    made = json.loads(bill())
    parts = {part["bom-ref"]: part for part in made["components"]}

    assert {ref: part["type"] for ref, part in parts.items()} == {
        "m:1": "machine-learning-model", "dr:1": "machine-learning-model", "nm:1": "machine-learning-model",
        "ad:1": "machine-learning-model", "ix:1": "data",
        "pkg:pypi/under-score@1.0": "library", "pkg:pypi/torch@2.13.0%2Bcpu": "library",
    }  # fmt: skip
    assert set(made["dependencies"][0]["dependsOn"]) == set(parts)
    assert parts["m:1"]["pedigree"]["ancestors"][0]["purl"] == "pkg:huggingface/org/m@" + "0" * 40
    assert parts["m:1"]["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert parts["ad:1"]["licenses"] == [{"license": {"name": "apache-2.0"}}]
    assert [one["alg"] for one in parts["pkg:pypi/under-score@1.0"]["externalReferences"][0]["hashes"]] == ["SHA-256", "SHA-512"]
    assert {"name": "ekiben:policy:d", "value": "2"} in made["metadata"]["component"]["properties"]


def test_a_licence_is_that_of_the_installed_version():
    from importlib.metadata import version

    assert installed_license("pytest", version("pytest")) == ("MIT", True)
    assert installed_license("pytest", "0.0.1") is None
    assert installed_license("no-such-package", "1") is None


def test_package_urls_are_escaped():
    assert package_url("pypi", "a", "1+b") == "pkg:pypi/a@1%2Bb"
