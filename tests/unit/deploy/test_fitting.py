import pytest

from deploy.fitting import TARGETS, DoesNotFit, check
from deploy.measured import Measured, Place
from deploy.rendering import render
from tests.deploying import CLUSTERS, LARGE, SMALL, box, environment, merged, objects

GIB = 2**30


def refused(target="plain", facts=None, **more):
    with pytest.raises(DoesNotFit) as caught:
        check(facts or box(), environment(**more), target)
    return caught.value.lines


@pytest.mark.parametrize("target", TARGETS)
def test_a_box_that_fits_is_taken(target):
    assert isinstance(check(box(), environment(), target), list)


@pytest.mark.parametrize(
    ("facts", "more", "told"),
    [
        ({"recipe": "fp8", "cpus": {}}, {}, "the recipe fp8 is for GPUs"),
        ({"cpus": {"amd64": ()}}, {"engine": {"architecture": "arm64"}}, "arm64 cannot run the recipe w8a8; amd64 can"),
        ({"recipe": "w4a16-gptq", "cpus": {"amd64": ("avx512f",)}}, {}, "cpu-cpuid.AVX512F"),
        ({"name": "My_Box"}, {}, "name: 'My_Box' cannot begin"),
        ({}, {"name": "a" * 37}, "up to 36 characters"),
        ({"gpus": 2}, {"engine": {"gpu": {"count": 1}}}, "takes 2"),
        ({"weights_bytes": 30 * GIB},
         {"engine": {"gpu": {"count": 1, "memory": "24Gi"}, "resources": {"cpu": "8", "memory": "64Gi"}}}, "larger GPUs"),
        ({"weights_bytes": 6 * GIB}, {}, "engine.resources.memory: 6Gi, and this bundle's engine wants 8.5 GiB"),
        ({"cache_bytes": 8 * GIB}, {}, "8.0 GiB of KV cache"),
        ({}, {"gateway": {"resources": {"cpu": "1", "memory": "512Mi"}}}, "a gateway wants 0.7 GiB"),
        ({"weights_bytes": 2 * GIB},
         {"weights": {"source": "pvc", "claim": "w", "size": "1Gi"}}, "weights.size: 1Gi, and the weights are 2.0 GiB"),
        ({}, {"secrets": None}, "secrets.engine_key: is missing"),
        ({"variables": ("TWIN_KEY",)}, {}, "asks for TWIN_KEY"),
        ({"sealed_texts": True}, {}, "secrets.audit_text_key"),
        ({}, {"gateway": {"replicas": {"max": 2}}}, "secrets.database_url"),
        ({"keeps_state": ("the audit trail",)}, {}, "keeps the audit trail there"),
        ({}, {"engine": {"replicas": {"max": 3}}}, "give engine.queue_metric"),
        ({}, {"engine": {"idle_seconds": 10}}, "spend its time starting"),
        ({"open_to_all": True},
         {"gateway": {"replicas": {"max": 2}}, "state": {"size": "1Gi", "access": "ReadWriteOnce"}}, "state.access"),
        ({}, {"canary": {"percent": 5}}, "weights of an HTTPRoute"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_to_change(facts, more, told):
    assert told in "\n".join(refused("plain", box(**facts), **more))


@pytest.mark.parametrize(
    "weights",
    [
        {"source": "image-volume", "image": "r.example.com/w:1"},
        {"source": "download", "size": "1Gi", "download": {"url": "https://a.example.com/w", "sha256": "ab" * 32}},
    ],
)
def test_compose_has_no_weights_that_a_cluster_brings(weights):
    assert f"compose has no {weights['source']}" in "\n".join(refused("compose", weights=weights))


def test_kserve_needs_a_longer_start_of_the_clusters_own():
    def advice(target, **more):
        return "\n".join(check(box(), environment(**more), target))

    told = "revision-response-start-timeout-seconds must be 780 or more"
    assert told in advice("kserve")
    assert told not in advice("knative")
    assert "response-start" not in advice("kserve", engine={"cold_start_seconds": 20}, longest_stream_seconds=240)


@pytest.mark.parametrize(
    ("target", "told"), [("compose", "compose has none"), ("knative", "canary.stable"), ("bentocloud", "canary.stable")]
)
def test_canaries_need_what_divides_requests(target, told):
    assert told in "\n".join(refused(target, canary={"percent": 5}))


@pytest.mark.parametrize("target", CLUSTERS)
def test_the_longest_name_leaves_room(target):
    told = environment(LARGE, name="a" * 36, canary={"percent": 5, "stable": "x"}, ingress={"gateway": "public"})

    assert max(len(one["metadata"]["name"]) for one in objects(target, told)) <= 63


def test_all_problems_are_told_at_once():
    lines = refused(facts=box(recipe="fp8", cpus={}, variables=("A",)), engine={"replicas": {"max": 2}}, secrets=None)

    assert len(lines) == 4


def test_nothing_is_rendered_of_what_does_not_fit():
    with pytest.raises(DoesNotFit):
        render(box(recipe="fp8", cpus={}), environment(), "plain")


@pytest.mark.parametrize("target", CLUSTERS)
def test_a_gpu_takes_what_processors_cannot(target):
    told = environment(merged(SMALL, {"engine": {"gpu": {"count": 1}}}))

    assert check(box(recipe="fp8", cpus={}), told, target) is not None


def test_knative_is_told_its_clusters_settings():
    advice = "\n".join(check(box(variables=("TWIN_KEY",)), environment(LARGE, engine={"gpu": {"count": 1}}), "knative"))

    assert "max-revision-timeout-seconds must be 1260 or more" in advice
    assert "kubernetes.podspec-persistent-volume-claim" in advice


def test_the_concurrency_is_a_share_of_the_saturation():
    assert (box().concurrency(), box().concurrency(10), box(saturation=1).concurrency()) == (44, 7, 1)


def measured(**engine):
    place = Place(device="cpu", cores=2)
    found = Measured(cold_start_seconds=31, saturation=16, engine={"model": "small:1", **engine}, place=place)
    return environment(engine={"measured": "m.json"}).hearing(found)


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_measured_of_another_engine_is_told(target):
    advice = check(box(engine={"model": "small:1", "max_num_seqs": 64}), measured(max_num_seqs=8), target)

    [line] = [line for line in advice if line.startswith("engine.measured")]
    assert "m.json is of another engine (max_num_seqs 8, now 64): run `ekiben deploy measure` again" in line


def test_what_was_measured_of_this_engine_is_not():
    assert not [line for line in check(box(engine={"model": "small:1"}), measured(), "plain") if "engine.measured" in line]


def test_only_the_two_figures_are_rendered():
    facts = box(engine={"model": "small:1"})
    figures = environment(engine={"measured": "m.json"}).hearing(Measured(cold_start_seconds=31, saturation=16))

    assert render(facts, measured(), "knative").files == render(facts, figures, "knative").files
    assert render(facts, measured(), "knative").files != render(facts, environment(), "knative").files
