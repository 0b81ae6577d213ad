"""What is rendered hangs together: selectors find pods, ports are those that listen, names name what there is."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from deploy.environment import read_environment
from deploy.fitting import TARGETS
from deploy.helm import chart
from deploy.rendering import MARK, dump, render, write
from deploy.rules import rules
from services.settings import Settings, load_settings
from services.telemetry import Telemetry
from tests.deploying import CLUSTERS, LARGE, box, environment, fitted, objects, pick, pods

FACTS = box(ports=(443,))
BOTH = pytest.mark.parametrize("told", [environment(), environment(LARGE)], ids=["small", "large"])
OTHERS = {
    "VLLM_CACHE_ROOT", "FLASHINFER_WORKSPACE_BASE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
    "TWIN_KEY", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "QDRANT__SERVICE__API_KEY",
}  # fmt: skip


def made(target, told):
    return objects(target, told, FACTS)


def _variables(everything, name):
    template = next(template for owner, template in pods(everything) if owner["metadata"]["name"] == name)
    return {one["name"]: one.get("value") for one in template["spec"]["containers"][0]["env"]}


def find(content, key):
    """Every value of a key, however deep."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            yield from find(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from find(value, key)


@BOTH
@pytest.mark.parametrize("target", TARGETS)
def test_the_same_bytes_each_time(target, told):
    assert render(FACTS, fitted(target, told), target) == render(FACTS, fitted(target, told), target)


@BOTH
@pytest.mark.parametrize("target", CLUSTERS)
def test_every_selector_finds_pods_and_every_pod_is_selected_once(target, told):
    labelled = [(owner["metadata"]["name"], template["metadata"]["labels"]) for owner, template in pods(made(target, told))]
    theirs = {"serving.knative.dev/service", "serving.kserve.io/inferenceservice"}
    for one in made(target, told):
        spec = one.get("spec", {})
        selectors = [spec[key] for key in ("selector", "podSelector") if key in spec]
        for selector in selectors:
            wanted = selector.get("matchLabels", selector)
            if theirs & set(wanted):
                continue
            found = [name for name, labels in labelled if wanted.items() <= labels.items()]

            assert len(found) == 1, f"{one['kind']} {one['metadata']['name']}: {wanted} finds {found}"


@BOTH
@pytest.mark.parametrize("target", CLUSTERS)
def test_ports_of_services_and_probes_are_those_of_containers(target, told):
    everything = made(target, told)
    ports = {}
    for _, template in pods(everything):
        component = template["metadata"]["labels"]["app.kubernetes.io/component"]
        for container in template["spec"]["containers"]:
            ports[component] = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                if name in container:
                    asked = container[name]["httpGet"]["port"]
                    assert asked in {*ports[component], *ports[component].values()}
    for one in everything:
        if (one["apiVersion"], one["kind"]) == ("v1", "Service") and "selector" in one["spec"]:
            theirs = ports[one["spec"]["selector"]["app.kubernetes.io/component"]]
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= set(theirs)


@BOTH
@pytest.mark.parametrize("target", CLUSTERS)
def test_the_gateway_asks_a_service_that_there_is(target, told):
    everything = made(target, told)
    gateway = next(template for owner, template in pods(everything) if owner["metadata"]["name"].endswith("-gateway"))
    url = next(one["value"] for one in gateway["spec"]["containers"][0]["env"] if one["name"] == "EKIBEN_ENGINE_URL")
    host = re.match(r"http://([a-z0-9-]+)", url)[1]
    services = {one["metadata"]["name"] for one in everything if one["kind"] == "Service"}
    services |= {f"{one['metadata']['name']}-predictor" for one in everything if one["kind"] == "InferenceService"}

    assert host in services


@BOTH
@pytest.mark.parametrize("target", CLUSTERS)
def test_every_variable_is_a_setting(target, told):
    known = {f"EKIBEN_{name.upper()}" for name in Settings.model_fields} | OTHERS

    assert {one["name"] for listed in find(made(target, told), "env") for one in listed} <= known


SECRETS = {
    "EKIBEN_DATABASE_URL": "postgresql://a:b@pg/c",
    "EKIBEN_REDIS_URL": "redis://r:6379",
    "EKIBEN_ALERT_WEBHOOK": "https://a.example.com",
}


@BOTH
@pytest.mark.parametrize("target", CLUSTERS)
def test_the_settings_take_what_the_pods_are_given(monkeypatch, target, told):
    """Their values too: each container's variables, with something in the place of each secret."""
    read = []
    for _, template in pods(made(target, told)):
        container = template["spec"]["containers"][0]
        with monkeypatch.context() as patch:
            for one in container.get("env", []):
                patch.setenv(one["name"], one.get("value") or SECRETS.get(one["name"], "k" * 32))
            read.append((template["metadata"]["labels"]["app.kubernetes.io/component"], load_settings()))
    settings = dict(read)

    assert settings["gateway"].engine_sleeps
    # An answer that is not streamed has its head at its end.
    assert settings["gateway"].engine_wake_seconds == told.wake_seconds + told.longest_stream_seconds
    assert settings["engine"].engine_drain_seconds == told.longest_stream_seconds
    assert settings["engine"].engine_host == "0.0.0.0"
    assert settings["engine"].engine_token == settings["gateway"].engine_token == "k" * 32
    assert settings["gateway"].state_dir == Path("/home/bentoml/state")


def test_every_variable_of_compose_is_a_setting():
    known = {f"EKIBEN_{name.upper()}" for name in Settings.model_fields} | OTHERS
    content = yaml.safe_load(render(FACTS, fitted("compose", environment(LARGE)), "compose").files["compose.yaml"])
    told = {name for service in content["services"].values() for name in service.get("environment", {})}

    assert told <= known
    assert {"EKIBEN_ENGINE_URL", "EKIBEN_REDIS_URL", "EKIBEN_DATABASE_URL", "TWIN_KEY"} <= told


@BOTH
@pytest.mark.parametrize("target", TARGETS)
def test_secrets_are_references(target, told):
    """A variable whose name speaks of a secret never has a value."""
    for text in render(FACTS, fitted(target, told), target).files.values():
        for one in (env for document in yaml.safe_load_all(text) for listed in find(document, "env") for env in listed):
            if re.search("KEY|TOKEN|PASSWORD|WEBHOOK|DATABASE_URL|REDIS_URL", one["name"]):
                assert set(one) == {"name", "valueFrom"}, one
                assert set(one["valueFrom"]["secretKeyRef"]) == {"name", "key"}
        assert not re.search(r"(KEY|TOKEN|PASSWORD): (?!\$\{)\S", text)


@BOTH
@pytest.mark.parametrize("target", CLUSTERS)
def test_pods_have_no_rights(target, told):
    for owner, template in pods(made(target, told)):
        spec = template["spec"]
        account = owner["metadata"]["name"].endswith("-activator")
        assert spec["automountServiceAccountToken"] is account
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is rights["runAsNonRoot"] is True
            assert rights["allowPrivilegeEscalation"] is False
            assert (rights["runAsUser"], rights["capabilities"]) == (1034, {"drop": ["ALL"]})
            assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]


@BOTH
def test_the_activator_may_scale_one_deployment_and_nothing_else(told):
    everything = made("plain", told)
    name = told.name or "ekiben"
    role = pick(everything, "Role", f"{name}-activator")

    assert role["rules"] == [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments/scale"],
            "resourceNames": [f"{name}-engine"],
            "verbs": ["get", "patch"],
        }
    ]
    assert (
        f"{told.namespace}/{name}-engine"
        in pick(everything, "Deployment", f"{name}-activator")["spec"]["template"]["spec"]["containers"][0]["args"]
    )


@pytest.mark.parametrize("target", CLUSTERS)
def test_streams_outlast_their_pods(target):
    for least, start in ((0, 360), (1, 0)):
        told = environment(LARGE, engine={"replicas": {"min": least}})
        for owner, template in pods(made(target, told)):
            if owner["kind"] == "Deployment":
                # A request may have come just before, and wait for the engine's start first.
                assert template["spec"]["terminationGracePeriodSeconds"] == 900 + 30 + start


@pytest.mark.parametrize("target", CLUSTERS)
def test_the_start_has_the_time_that_was_measured(target):
    engine = [
        one
        for owner, template in pods(made(target, environment(LARGE)))
        for one in template["spec"]["containers"]
        if "gpu" in str(one["resources"])
    ]
    probe = engine[0]["startupProbe"]

    assert probe["periodSeconds"] * probe["failureThreshold"] == 240
    # Requests wait for it meanwhile.
    assert probe["periodSeconds"] == engine[0]["readinessProbe"]["periodSeconds"] == 1
    assert engine[0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_replicas_belong_to_whoever_scales():
    for target in ("plain", "keda"):
        everything = made(target, environment(LARGE))
        for name in ("support-gateway", "support-engine"):
            assert "replicas" not in pick(everything, "Deployment", name)["spec"]
    steady = made("plain", environment(engine={"replicas": {"min": 2, "max": 2}}))

    assert pick(steady, "Deployment", "ekiben-engine")["spec"]["replicas"] == 2
    assert not [one for one in steady if "activator" in one["metadata"]["name"]]


def test_an_engine_is_reached_from_what_stands_before_it_alone():
    policy = pick(made("plain", environment()), "NetworkPolicy", "ekiben-engine")["spec"]
    peers = policy["ingress"][0]["from"]

    assert peers == [
        {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "ekiben", "app.kubernetes.io/component": "activator"}}}
    ]
    assert policy["egress"] == [{"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}]


def test_the_gateway_may_go_to_the_servers_that_are_named():
    policy = pick(made("plain", environment(LARGE)), "NetworkPolicy", "support-gateway")["spec"]

    assert [port["port"] for port in policy["egress"][2]["ports"]] == [443, 5432, 6379]


def test_keda_scales_by_requests_held_and_by_the_queue():
    everything = made("keda", environment(LARGE))
    triggers = pick(everything, "ScaledObject", "support-engine")["spec"]["triggers"]
    route = pick(everything, "InterceptorRoute", "support-engine")["spec"]

    assert [one["type"] for one in triggers] == ["external-push", "prometheus"]
    assert "vllm:num_requests_waiting" in triggers[1]["metadata"]["query"]
    assert route["scalingMetric"]["concurrency"]["targetValue"] == 33
    # The interceptor is one for all namespaces.
    assert route["rules"][0]["hosts"] == ["support-engine-proxy.llm"]
    assert _variables(everything, "support-gateway")["EKIBEN_ENGINE_URL"] == "http://support-engine-proxy.llm:8080"


@pytest.mark.parametrize("target", ["knative", "kserve"])
def test_knative_targets_hold_to_the_saturation(target):
    everything = made(target, environment(LARGE))
    text = json.dumps(everything)

    assert '"containerConcurrency": 48' in text
    assert ('"autoscaling.knative.dev/target": "33"' in text) or ('"scaleTarget": 33' in text)


def test_a_knative_canary_has_its_share():
    told = environment(canary={"percent": 10, "stable": "ekiben-engine-aaaaaaaaaa"})
    service = next(one for one in made("knative", told) if one["apiVersion"] == "serving.knative.dev/v1")

    assert service["spec"]["traffic"] == [
        {"revisionName": "ekiben-engine-aaaaaaaaaa", "percent": 90},
        {"revisionName": service["spec"]["template"]["metadata"]["name"], "percent": 10, "tag": "canary"},
    ]


def test_a_revision_has_another_name_for_other_content_and_none_without_a_canary():
    """Knative's webhook refuses a change under a name that there was."""

    def name(**more):
        made = objects("knative", environment(**more), FACTS)
        return next(one for one in made if one["apiVersion"] == "serving.knative.dev/v1")["spec"]["template"]["metadata"].get(
            "name"
        )

    canary = {"canary": {"percent": 10, "stable": "ekiben-engine-aaaaaaaaaa"}}
    names = {name(**canary), name(**canary, engine={"idle_seconds": 1200}), name(**canary, longest_stream_seconds=700)}

    assert name() is None
    assert name(**canary) == name(**canary)
    assert all(re.fullmatch("ekiben-engine-0123456789-[0-9a-f]{8}", one) for one in names)
    assert len(names) == 3


def test_knative_lets_an_answer_begin_at_its_end():
    spec = next(one for one in made("knative", environment()) if one["apiVersion"] == "serving.knative.dev/v1")["spec"][
        "template"
    ]

    assert spec["spec"]["responseStartTimeoutSeconds"] == spec["spec"]["timeoutSeconds"] == 180 + 600


@pytest.mark.parametrize("target", ["plain", "keda"])
def test_a_canary_is_a_release_beside_the_stable_one(target):
    told = environment(LARGE, canary={"percent": 10}, ingress={"gateway": "edge/public"})
    everything = made(target, told)
    route = pick(everything, "HTTPRoute", "support-gateway")["spec"]
    others = [one for one in everything if one["kind"] not in {"HTTPRoute", "PersistentVolumeClaim"}]

    assert [(one["name"], one["weight"]) for one in route["rules"][0]["backendRefs"]] == [
        ("support-gateway", 90),
        ("support-canary-gateway", 10),
    ]
    assert route["parentRefs"] == [{"namespace": "edge", "name": "public"}]
    assert all(one["metadata"]["name"].startswith("support-canary-") for one in others)
    assert {"support-state"} == {
        volume["persistentVolumeClaim"]["claimName"]
        for listed in find(others, "volumes")
        for volume in listed
        if volume["name"] == "state"
    }


def test_weights_come_from_where_they_are_said_to_be():
    def volume(**told):
        everything = made("plain", environment(weights=told))
        spec = pick(everything, "Deployment", "ekiben-engine")["spec"]["template"]["spec"]
        mounts = {one["name"]: one for one in spec["containers"][0]["volumeMounts"]}
        return next((one for one in spec["volumes"] if one["name"] == "weights"), None), mounts.get("weights"), everything

    assert volume(source="image")[:2] == (None, None)
    image, mount, _ = volume(source="image-volume", image="r.example.com/w:1")
    assert (image["image"]["reference"], mount["readOnly"]) == ("r.example.com/w:1", True)
    claim, mount, _ = volume(source="pvc", claim="models")
    assert (claim["persistentVolumeClaim"]["claimName"], mount["mountPath"]) == ("models", "/home/bentoml/bento/models")
    claim, _, everything = volume(
        source="download", size="1Gi", download={"url": "https://a.example.com/w.tar", "sha256": "ab" * 32}
    )
    job = next(one for one in everything if one["kind"] == "Job")
    assert (
        claim["persistentVolumeClaim"]["claimName"]
        == pick(everything, "PersistentVolumeClaim", "ekiben-weights-0123456789")["metadata"]["name"]
    )
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][2:4] == ["deploy.download", "https://a.example.com/w.tar"]


def test_a_job_that_changes_has_another_name():
    """An API server takes no change of a Job: the image is in its spec."""
    brought = {"source": "download", "size": "1Gi", "download": {"url": "https://a.example.com/w.tar", "sha256": "ab" * 32}}

    def job(**more):
        return next(one for one in made("plain", environment(weights=brought, **more)) if one["kind"] == "Job")

    first, again, other = job(), job(), job(image="registry.example.com/ekiben:2")

    assert first == again
    assert first["spec"]["template"] != other["spec"]["template"]
    assert first["metadata"]["name"] != other["metadata"]["name"]
    assert re.fullmatch("ekiben-weights-[0-9a-f]{8}", first["metadata"]["name"])
    assert first["spec"]["ttlSecondsAfterFinished"] == 86400


@pytest.mark.parametrize(("url", "port"), [("http://minio.minio:9000/w.tar", 9000), ("http://a/w", 80), ("https://a/w", 443)])
def test_the_download_may_go_to_its_server_and_to_further_ports(url, port):
    told = environment(
        weights={"source": "download", "size": "1Gi", "download": {"url": url, "sha256": "ab" * 32}},
        network={"egress_ports": [8443]},
    )
    everything = made("plain", told)

    def ports(component):
        return [one["port"] for one in pick(everything, "NetworkPolicy", f"ekiben-{component}")["spec"]["egress"][-1]["ports"]]

    assert ports("weights") == sorted([port, 8443])
    assert ports("activator") == [443, 6443, 8443]


def test_what_is_compiled_is_kept_where_it_may_be_loaded_from():
    """Both roots are read-only, and compose's /tmp is mounted noexec."""
    compose = yaml.safe_load(render(FACTS, environment(), "compose").files["compose.yaml"])["services"]["engine"]
    for told, mounts in (
        (_variables(made("plain", environment()), "ekiben-engine"), ["/home/bentoml/state"]),
        (compose["environment"], [one.split(":")[1] for one in compose["volumes"]]),
    ):
        for name in ("FLASHINFER_WORKSPACE_BASE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT"):
            assert any(told[name].startswith(f"{mount}/") for mount in mounts), name


def _compose(told):
    return {name: yaml.safe_load(text) for name, text in render(FACTS, told, "compose").files.items()}


def test_compose_mounts_volumes_that_it_names():
    for told in (environment(), environment(weights={"source": "pvc", "claim": "models"})):
        content = _compose(told)["compose.yaml"]
        mounted = {one.split(":")[0] for service in content["services"].values() for one in service.get("volumes", [])}

        assert {one for one in mounted if not one.startswith("./")} == set(content["volumes"])
    assert content["volumes"]["weights"] == {"external": True, "name": "models"}
    assert "weights:/home/bentoml/bento/models:ro" in content["services"]["engine"]["volumes"]


@pytest.mark.parametrize(("least", "path"), [(0, "/activator/metrics"), (1, None)])
def test_composes_prometheus_asks_what_there_is(least, path):
    made = _compose(environment(engine={"replicas": {"min": least, "max": 1}}))
    jobs = {one["job_name"]: one for one in made["prometheus.yml"]["scrape_configs"]}
    behind = jobs.pop("engine" if least else "activator")

    assert list(jobs) == ["gateway"]
    assert behind.get("metrics_path") == path
    assert (made["compose.yaml"]["services"]["engine"]["command"][3] == "activate") is (path is not None)


def test_the_example_lets_nginx_wait_as_long_as_an_answer_may_take():
    told = read_environment(Path(__file__).resolve().parents[3] / "examples" / "cluster.env.yaml")
    nginx = "nginx.ingress.kubernetes.io/proxy"

    assert int(told.ingress.annotations[f"{nginx}-read-timeout"]) >= told.answer_seconds
    assert told.ingress.annotations[f"{nginx}-body-size"] == f"{Settings().max_file_bytes // 2**20 + 1}m"


def test_alerts_ask_for_metrics_that_there_are():
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    names = {one._name for one in vars(telemetry).values() if hasattr(one, "_labelnames")}
    asked = {
        re.sub("_(total|bucket)$", "", name)
        for group in rules(box(), first_token_seconds=3)
        for rule in group["rules"]
        for name in re.findall(r"\bllm_\w+", rule["expr"])
    }

    assert asked <= names
    assert len(asked) > 4


@pytest.mark.parametrize("version", ["1234567890123456", "123456789012e456", "0x12345678901234", "y", "0123456789abcdef"])
def test_texts_that_other_readers_of_yaml_take_for_numbers_are_quoted(version):
    assert dump({"version": version}) == f"version: '{version}'\n"


def test_files_are_written_whole_and_leftovers_of_ours_go(tmp_path):
    folder = tmp_path / "out"
    write(render(FACTS, environment(LARGE), "plain").files, folder)
    (folder / "own.yaml").write_text("a: 1\n", encoding="utf-8")
    write(render(FACTS, environment(secrets=LARGE["secrets"], engine={"replicas": {"min": 1, "max": 1}}), "plain").files, folder)

    assert sorted(file.name for file in folder.iterdir()) == ["engine.yaml", "gateway.yaml", "network.yaml", "own.yaml"]
    assert all(Path(folder, name).read_text(encoding="utf-8").startswith(MARK) for name in ("engine.yaml", "gateway.yaml"))


def _rendered(folder, target="plain", **more):
    return write(render(FACTS, environment(**more), target).files, folder)


def test_what_is_no_longer_rendered_is_told_with_how_it_goes(tmp_path):
    """An activator that stays scales the engine to zero for good: nobody asks by way of it any more."""
    assert _rendered(tmp_path, namespace="llm", state={"size": "1Gi"}) == []
    assert _rendered(tmp_path, namespace="llm", state={"size": "1Gi"}) == []
    gone = _rendered(tmp_path, namespace="llm", state={"claim": "own"}, engine={"replicas": {"min": 1, "max": 1}})

    assert gone == [
        "kubectl delete deployment.apps/ekiben-activator -n llm",
        # Of a file that is still there.
        "kubectl delete networkpolicy.networking.k8s.io/ekiben-activator -n llm",
        "kubectl delete role.rbac.authorization.k8s.io/ekiben-activator -n llm",
        "kubectl delete rolebinding.rbac.authorization.k8s.io/ekiben-activator -n llm",
        "kubectl delete service/ekiben-activator -n llm",
        "kubectl delete serviceaccount/ekiben-activator -n llm",
        "kubectl delete persistentvolumeclaim/ekiben-state -n llm  # with all that it holds",
    ]


def test_another_target_leaves_a_service_of_the_same_name(tmp_path):
    _rendered(tmp_path)
    gone = _rendered(tmp_path, target="knative")

    assert "kubectl delete deployment.apps/ekiben-engine -n default" in gone
    assert "kubectl delete service/ekiben-engine -n default" in gone
    assert not [one for one in gone if "serving.knative.dev" in one or "ekiben-gateway" in one]


def test_a_canary_takes_nothing_from_the_stable_release_and_its_end_takes_the_canary(tmp_path):
    edge = {"host": "a.example.com", "ingress": {"gateway": "edge"}}
    edge["secrets"] = {"database_url": {"name": "ekiben", "key": "url"}}
    _rendered(tmp_path, **edge)

    assert _rendered(tmp_path, **edge, canary={"percent": 10}) == []
    gone = _rendered(tmp_path, **edge)
    assert "kubectl delete deployment.apps/ekiben-canary-engine -n default" in gone
    assert all("/ekiben-canary-" in one for one in gone)


def test_of_a_chart_helm_takes_away_what_is_gone(tmp_path):
    write(chart(FACTS, environment(), "plain").files, tmp_path)

    assert write(chart(FACTS, environment(engine={"replicas": {"min": 1, "max": 1}}), "plain").files, tmp_path) == []
    assert not (tmp_path / "templates" / "activator.yaml").exists()
