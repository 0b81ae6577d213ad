"""Manifests judged as an API server would: built-in kinds by strict schemas, others by their CRDs, their CEL rules included."""

import functools
from pathlib import Path

import pytest
import yaml

CRDS = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "crds"
GATEWAY_API = "gateway.networking.k8s.io/v1"
"""Its CRD is not among those that are at hand."""


def problems(manifest):
    """What an API server would refuse, a line each."""
    group = manifest["apiVersion"].partition("/")[0]
    if "." in group and not group.endswith(".k8s.io"):
        return _custom(manifest)
    return _built_in(manifest)


def _built_in(manifest):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is a dev dependency")
    try:
        kubernetes_validate.validate(manifest, "1.35", strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def _custom(manifest):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is a dev dependency")
    schema = crd(manifest["apiVersion"], manifest["kind"])
    found = [
        f"{'.'.join(map(str, one.path))}: {one.message}"
        for one in jsonschema.Draft202012Validator(strict(schema)).iter_errors(manifest)
    ]
    return [*found, *_broken_rules(schema, manifest, "")]


@functools.cache
def _crds():
    if not CRDS.is_dir():
        pytest.skip(f"no CRDs at {CRDS}: manifests of KEDA, Knative, KServe and Prometheus Operator are not checked")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = [
        one for file in sorted(CRDS.glob("*.yaml")) for one in yaml.load_all(file.read_text(encoding="utf-8"), loader) if one
    ]
    return {
        (f"{one['spec']['group']}/{version['name']}", one["spec"]["names"]["kind"]): version["schema"]["openAPIV3Schema"]
        for one in documents
        for version in one["spec"]["versions"]
        if version["served"]
    }


def crd(api, kind):
    return _crds()[api, kind]


def strict(schema):
    """A structural schema as JSON schema that refuses unknown fields."""
    if not isinstance(schema, dict):
        return schema
    made = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in {"format", "default", "nullable"}
    }
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if "properties" in schema:
        made["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    elif (
        schema.get("type") == "object"
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        made.pop("additionalProperties", None)
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = strict(schema["items"])
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def _broken_rules(schema, value, where):
    broken = [
        f"{where or 'it'}: {one.get('message', one['rule'])}"
        for one in schema.get("x-kubernetes-validations", ())
        if "oldSelf" not in one["rule"] and not _holds(one["rule"], value)
    ]
    if isinstance(value, dict):
        for name, inner in value.items():
            below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(below, dict):
                broken += _broken_rules(below, inner, f"{where}.{name}".strip("."))
    if isinstance(value, list) and "items" in schema:
        for place, inner in enumerate(value):
            broken += _broken_rules(schema["items"], inner, f"{where}[{place}]")
    return broken


def _holds(rule, value):
    celpy = pytest.importorskip("celpy", reason="cel-python is a dev dependency")
    from celpy.adapter import json_to_cel

    return bool(_program(celpy, rule).evaluate({"self": json_to_cel(value)}))


@functools.cache
def _program(celpy, rule):
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
