"""What is rendered would be taken by an API server: built-in kinds in strict schemas, custom ones by their CRDs and CEL rules."""

import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest
import yaml

from deploy.rendering import render, write
from tests.deploying import CLUSTERS, LARGE, box, environment, fitted, objects, pick
from tests.manifests import CRDS, GATEWAY_API, problems

needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason=f"no CRDs at {CRDS}: custom resources are not checked")
GPUS = {"recipe": "fp8", "cpus": {}, "variables": ("TWIN_KEY",), "ports": (443,)}
CASES = {
    "small": (environment(), box()),
    "awake": (environment(engine={"replicas": {"min": 1, "max": 1}}), box()),
    "large": (environment(LARGE), box(**GPUS)),
    "image volume": (environment(weights={"source": "image-volume", "image": "r.example.com/weights:1"}), box()),
    "claims": (environment(weights={"source": "pvc", "claim": "models"}, state={"claim": "state"}), box()),
}


@needs_crds
@pytest.mark.parametrize("target", CLUSTERS)
@pytest.mark.parametrize("case", CASES)
def test_an_api_server_would_take_it(target, case):
    told, facts = CASES[case]
    made = objects(target, told, facts)

    assert len(made) > 5
    assert {f"{one['kind']} {one['metadata']['name']}": found for one in made if (found := problems(one))} == {}


@needs_crds
@pytest.mark.parametrize("target", CLUSTERS)
def test_a_canary_would_be_taken(target):
    told = environment(LARGE, canary={"percent": 10, "stable": "support-engine-aaaaaaaaaa"}, ingress={"gateway": "edge/public"})
    made = [one for one in objects(target, told, box(**GPUS)) if one["apiVersion"] != GATEWAY_API]

    assert {f"{one['kind']} {one['metadata']['name']}": found for one in made if (found := problems(one))} == {}


@needs_crds
@pytest.mark.parametrize(
    ("target", "kind", "change", "told"),
    [
        ("keda", "InterceptorRoute", lambda spec: spec["target"].update(portName="http"), "exactly one of"),
        ("keda", "ScaledObject", lambda spec: spec.update(maxReplicas=3), "maxReplicas"),
        ("knative", "Service", lambda spec: spec["template"]["spec"].update(timeoutSeconds="long"), "is not of type"),
        ("kserve", "InferenceService", lambda spec: spec["predictor"].update(minReplica=0), "minReplica"),
        ("plain", "Deployment", lambda spec: spec["template"]["spec"].update(restartPolice="Always"), "restartPolice"),
    ],
)
def test_the_judges_see_mistakes(target, kind, change, told):
    made = [one for one in objects(target) if one["kind"] == kind and not (kind == "Service" and one["apiVersion"] == "v1")]
    change(made[0]["spec"])

    assert told in " ".join(problems(made[0]))


def test_compose_is_of_its_schema():
    packed = pytest.importorskip("check_jsonschema", reason="check-jsonschema is a dev dependency: compose files are not checked")
    jsonschema = pytest.importorskip("jsonschema")
    path = resources.files(packed) / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))
    for told, facts in (CASES["small"], CASES["awake"], CASES["large"], CASES["claims"]):
        made = render(facts, fitted("compose", told), "compose").files

        assert [error.message for error in validator.iter_errors(yaml.safe_load(made["compose.yaml"]))] == []
    broken = yaml.safe_load(made["compose.yaml"])
    broken["services"]["gateway"]["readonly"] = True

    assert [error.message for error in validator.iter_errors(broken)] != []


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
def test_bentoml_takes_the_file_for_bentocloud():
    """BentoML's own classes, with unknown keys refused as they are not by default."""
    from attrs import fields_dict
    from bentoml._internal.cloud.schemas.modelschemas import DeploymentServiceConfig, DeploymentStrategy
    from bentoml._internal.cloud.schemas.schemasv2 import CreateDeploymentSchema, DeploymentVersionSchema
    from bentoml._internal.utils.cattr import bentoml_cattr

    cloud = {"secrets": ["llm"], "gateway_instance": "cpu.4", "engine_instance": "gpu.l4.1", "cluster": "aws"}
    told = environment(LARGE, bentocloud=cloud, canary={"percent": 10, "stable": "ekiben:aaaaaaaaaaaaaaaa"})
    content = yaml.safe_load(render(box(**GPUS), told, "bentocloud").files["bentocloud.yaml"])
    made = bentoml_cattr.structure(content, CreateDeploymentSchema)

    assert set(content) - {"cluster"} <= set(fields_dict(CreateDeploymentSchema))
    for service in content["services"].values():
        assert set(service) <= set(fields_dict(DeploymentServiceConfig))
        assert service["deployment_strategy"] in {one.value for one in DeploymentStrategy}
    assert made.services["engine"].scaling.min_replicas == 0
    assert made.services["engine"].cold_start_timeout == 360
    assert made.services["ekiben"].scaling.min_replicas == 2
    canary = content["canary"]["versions"]["canary"]
    assert set(canary) <= set(fields_dict(DeploymentVersionSchema))
    assert (made.bento, canary["bento"], canary["weight"]) == ("ekiben:aaaaaaaaaaaaaaaa", "ekiben:0123456789abcdef", 10)


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: apt-get install prometheus; rules are not checked by it")
def test_promtool_takes_rules_and_configuration(tmp_path):
    write(render(box(), environment(), "compose").files, tmp_path)
    rules = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False)

    assert rules.returncode == 0, rules.stderr + rules.stdout
    assert "9 rules found" in rules.stdout


def test_the_services_are_those_of_the_bento():
    gateway = (Path(__file__).resolve().parents[2] / "services" / "gateway.py").read_text(encoding="utf-8")
    named = set(re.findall(r'^@bentoml.service\(\n? *name="(\w+)"', gateway, re.MULTILINE))
    facts = box(services=("engine", "embedder", "finder"))
    content = yaml.safe_load(render(facts, environment(), "bentocloud").files["bentocloud.yaml"])

    assert set(content["services"]) == named | {"ekiben"}


def test_the_knative_service_is_the_clusters_own():
    made = pick(objects("knative"), "Service", "ekiben-engine")

    assert made["metadata"]["labels"]["networking.knative.dev/visibility"] == "cluster-local"
