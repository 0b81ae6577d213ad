"""What is said beside what is rendered: what must be there before, and what comes after."""

import re
from pathlib import Path

import pytest
import yaml

from deploy.environment import read_environment
from deploy.fitting import DoesNotFit
from deploy.helm import chart
from deploy.rendering import NotOurs, foreign, render, write
from tests.deploying import CLUSTERS, LARGE, box, environment

ROOT = Path(__file__).resolve().parents[3]
FACTS = box(ports=(443,))


def told(target, env=None, facts=FACTS):
    return "\n".join(render(facts, env or environment(), target).notes)


@pytest.mark.parametrize("target", CLUSTERS)
def test_every_secret_that_is_referred_to_is_named(target):
    made = render(FACTS, environment(LARGE), target)
    text = "\n".join(made.files.values())
    referred = {
        (reference["name"], reference["key"])
        for document in yaml.safe_load_all("---\n".join(made.files.values()))
        for reference in _references(document)
    }

    assert ("ekiben", "engine-key") in referred
    assert all(any(f"Secret {name} in llm must have the key {key} " in line for line in made.notes) for name, key in referred)
    assert "support-gateway" in text
    assert any("Secret registry in llm" in line for line in made.notes)
    assert any("Secret llm-tls in llm" in line for line in made.notes)


def _references(content):
    if isinstance(content, dict):
        yield from [content["secretKeyRef"]] if "secretKeyRef" in content else []
        content = list(content.values())
    for one in content if isinstance(content, list) else []:
        yield from _references(one)


@pytest.mark.parametrize("target", CLUSTERS)
def test_every_kind_that_the_cluster_must_learn_is_named(target):
    made = render(FACTS, environment(LARGE, ingress={"gateway": "edge/public"}), target)
    objects = [one for text in made.files.values() for one in yaml.safe_load_all(text)]
    own = {"v1", "apps/v1", "batch/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1"}
    kinds = {one["kind"] for one in objects if one["apiVersion"] not in own}

    assert {"HTTPRoute", "ServiceMonitor", "PodMonitor", "PrometheusRule"} <= kinds
    assert [kind for kind in kinds if not any(re.search(rf"\b{kind}\b", line) for line in made.notes)] == []


def test_claims_are_told():
    large = told("plain", environment(LARGE))
    small = told("plain", environment(state={"claim": "mine"}, weights={"source": "pvc", "claim": "models"}))

    assert "claim support-state is made: the cluster's default storage class must give ReadWriteMany volumes" in large
    assert "claim compiled must be there" in large
    assert "claim mine must be there, for the state" in small
    assert "claim models must be there, for the weights" in small
    assert "API keys and spend go with the pod" in told("plain")


def test_the_time_that_an_ingress_must_wait_follows_from_the_environment():
    assert "must wait 1260 s" in told("plain", environment(LARGE))
    assert "must wait 900 s" in told("plain", environment(LARGE, engine={"replicas": {"min": 1}}))
    assert "must wait" not in told("plain")


def test_the_first_key_is_told_where_one_is_needed():
    assert "kubectl -n default exec deployment/ekiben-gateway -c gateway -- python -m services.cli keys create" in told("keda")
    assert "docker compose exec gateway python -m services.cli keys create" in told("compose")
    assert "keys create" not in told("plain", facts=box(open_to_all=True))


def test_the_charts_notes_follow_its_release():
    text = chart(box(variables=("TWIN_KEY",), ports=(443,)), environment(LARGE), "plain").files["templates/NOTES.txt"]

    assert "namespace {{ .Release.Namespace }} must be there" in text
    assert "deployment/{{ .Release.Name }}-gateway" in text
    assert "Secret {{ .Values.secrets.engine_key.name }} in {{ .Release.Namespace }}" in text
    assert "@@" not in text


def test_compose_has_an_example_of_what_it_wants():
    files = render(FACTS, environment(LARGE, weights={"source": "pvc", "claim": "models", "download": None}), "compose").files
    wanted = set(re.findall(r"\$\{(\w+):\?", files["compose.yaml"]))
    given = {line.rstrip("=") for line in files[".env.example"].splitlines() if not line.startswith("#")}

    assert wanted == given
    assert {"EKIBEN_ENGINE_KEY", "POSTGRES_PASSWORD", "TWIN_KEY"} <= given


@pytest.mark.parametrize(
    ("cloud", "message"), [({"secrets": []}, "bentocloud.secrets: is missing"), ({"engine_url": None}, "bentocloud.engine_url")]
)
def test_bentocloud_without_secrets_or_engine_is_refused(cloud, message):
    with pytest.raises(DoesNotFit) as caught:
        render(box(), environment(LARGE, bentocloud=cloud), "bentocloud")

    assert [message in line for line in caught.value.lines] == [True]


def test_bentocloud_gets_the_engines_url_and_what_it_does_not_take_is_told():
    made = render(box(), environment(LARGE), "bentocloud")
    envs = yaml.safe_load(made.files["bentocloud.yaml"])["envs"]

    assert {"name": "EKIBEN_ENGINE_URL", "value": "https://engine.example.com"} in envs
    assert any("does not take" in line and "image, namespace, host" in line for line in made.advice)


@pytest.mark.parametrize(
    ("image", "noted"),
    [("r.example.com/a", True), ("r.example.com:5000/a", True), ("r.example.com/a:1", False), (f"a@sha256:{'0' * 64}", False)],
)
def test_an_image_without_a_version_is_noted(image, noted):
    assert any("neither tag nor digest" in line for line in render(box(), environment(image=image), "plain").advice) is noted


def test_what_is_not_ours_is_not_written_over(tmp_path):
    files = render(FACTS, environment(), "plain").files
    (tmp_path / "engine.yaml").write_text("mine: true\n")
    (tmp_path / "old.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(NotOurs) as caught:
        write(files, tmp_path)

    assert "engine.yaml" in caught.value.strerror
    assert (tmp_path / "engine.yaml").read_text() == "mine: true\n"
    assert not (tmp_path / "gateway.yaml").exists()
    write(files, tmp_path, force=True)
    assert foreign(files, tmp_path) == []
    assert (tmp_path / "old.yaml").read_bytes() == b"\xff\xfe"


def test_all_of_a_chart_is_ours(tmp_path):
    files = chart(FACTS, environment(), "plain").files
    write(files, tmp_path)

    assert foreign(dict.fromkeys(files, "other"), tmp_path) == []


def test_the_quick_start_gives_all_that_the_example_wants():
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    start = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1]
    told = read_environment(ROOT / "examples" / "cluster.env.yaml")
    notes = render(FACTS, told, "plain").notes
    wanted = {found for line in notes for found in re.findall(r"must have the key (\S+)", line)}

    assert set(re.findall(r"--from-literal=([a-z-]+)=", start)) == wanted
    assert f"create namespace {told.namespace}\n" in start
    assert f"create secret tls {told.ingress.tls_secret} " in start
    for line in notes:
        if "kubectl -n" in line:
            assert line[line.index("kubectl") :] in start
