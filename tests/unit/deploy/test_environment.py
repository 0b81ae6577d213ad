import json

import pytest
import yaml

from deploy.environment import WANTED, BadEnvironment, Environment, json_schema, read_environment
from deploy.quantity import amount
from tests.deploying import LARGE, SMALL, environment, merged


def read(tmp_path, told):
    path = tmp_path / "env.yaml"
    path.write_text(told if isinstance(told, str) else json.dumps(told), encoding="utf-8")
    return read_environment(path)


def refused(tmp_path, told):
    with pytest.raises(BadEnvironment) as caught:
        read(tmp_path, told)
    return caught.value.lines


@pytest.mark.parametrize("told", [SMALL, LARGE], ids=["small", "large"])
def test_a_file_is_read(tmp_path, told):
    assert read(tmp_path, told) == Environment.model_validate(told)


@pytest.mark.parametrize(
    ("more", "where", "message"),
    [
        ({"image": None}, "image", "is missing"),
        ({"image": "Registry/Ekiben"}, "image", "no image, such as registry.example.com/team/ekiben:1.0"),
        ({"gatewey": {}}, "gatewey", "unknown key"),
        ({"engine": {"replicas": {"min": 3, "max": 2}}}, "engine.replicas", "raise it"),
        ({"engine": {"resources": {"cpu": "2", "memory": "1Gb"}}}, "engine.resources.memory", "'1Gb' is no quantity, such as"),
        ({"weights": {"source": "pvc"}}, "weights", "needs claim"),
        ({"weights": {"source": "image-volume"}}, "weights", "needs image"),
        ({"weights": {"source": "download", "download": {"url": "https://a.b/c", "sha256": "0" * 64}}}, "weights", "size"),
        ({"weights": {"download": {"url": "https://u:p@a.b/c", "sha256": "0" * 64}}}, "weights.download.url", "no URL such as"),
        ({"settings": {"EKIBEN_ADMIN_TOKEN": "t" * 16}}, "settings", "is a secret"),
        ({"settings": {"PATH": "/"}}, "settings.PATH: ", "they begin with EKIBEN_"),
        ({"canary": {"percent": 100}}, "canary.percent", "less than or equal to 99"),
        ({"engine": {"tolerations": [{"kye": "a"}]}}, "engine.tolerations.0.kye", "unknown key"),
        ({"engine": {"cold_start_seconds": 1300}}, "", "too slow to sleep"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(tmp_path, more, where, message):
    lines = refused(tmp_path, merged(SMALL, more))

    assert any(line.startswith(f"env.yaml: {where}") and message in line for line in lines), lines


def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(tmp_path):
    lines = refused(tmp_path, merged(SMALL, {"secrets": {"engine_key": "hunter2-hunter2", "redis_url": "redis://:hunter2@r"}}))

    assert len(lines) == 2
    assert all("by reference" in line and "hunter2" not in line for line in lines)


@pytest.mark.parametrize(("text", "message"), [("- a", "a mapping"), ("a: [", "not YAML"), ("", "a mapping")])
def test_what_is_no_mapping_is_refused(tmp_path, text, message):
    assert message in refused(tmp_path, text)[0]


def test_a_bundle_is_not_taken_for_an_environment(tmp_path):
    assert refused(tmp_path, {"name": "a", "model": {}, "routes": {}}) == [
        f"{tmp_path / 'env.yaml'}: is a bundle; the environment file is another, such as examples/cluster.env.yaml"
    ]


def test_no_message_has_a_regular_expression():
    def patterns(content):
        if isinstance(content, dict):
            yield from [content["pattern"]] if isinstance(content.get("pattern"), str) else []
            # Names of mappings' keys, as pydantic writes them.
            yield from content.get("patternProperties", {})
            content = list(content.values())
        for one in content if isinstance(content, list) else []:
            yield from patterns(one)

    assert set(patterns(json.loads(json_schema()))) == set(WANTED)


def test_a_long_value_in_the_place_of_a_quantity_is_not_repeated(tmp_path):
    lines = refused(tmp_path, merged(SMALL, {"engine": {"resources": {"cpu": "1", "memory": "hunter2-hunter2-hunter2"}}}))

    assert lines == ["env.yaml: engine.resources.memory: this is no quantity, such as 500m or 6Gi"]


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(BadEnvironment, match="cannot be read"):
        read_environment(tmp_path / "none.yaml")


def test_what_a_load_test_measured_is_heard_first(tmp_path):
    (tmp_path / "measured.json").write_text('{"cold_start_seconds": 31.5, "saturation": 40, "else": 1}', encoding="utf-8")
    told = read(tmp_path, merged(SMALL, {"engine": {"measured": "measured.json", "cold_start_seconds": 99}}))

    assert (told.engine.cold_start_seconds, told.engine.saturation) == (31.5, 40)
    assert told.model_copy(update={"name": "other"}).measurement is not None


@pytest.mark.parametrize("content", [None, "{", '{"saturation": 0}'])
def test_a_bad_measurement_is_told(tmp_path, content):
    if content:
        (tmp_path / "measured.json").write_text(content, encoding="utf-8")

    assert "engine.measured" in refused(tmp_path, merged(SMALL, {"engine": {"measured": "measured.json"}}))[0]


@pytest.mark.parametrize(("cold", "start"), [(1, 60), (20, 60), (21, 65), (80, 240)])
def test_deadlines_follow_the_measured_cold_start(cold, start):
    told = environment(engine={"cold_start_seconds": cold, "provision_seconds": 100})

    assert (told.start_seconds, told.wake_seconds) == (start, start + 100)


def test_numbers_are_quantities():
    assert environment(engine={"resources": {"cpu": 2, "memory": "6Gi"}}).engine.resources.cpu == "2"


@pytest.mark.parametrize(
    ("text", "value"), [("500m", "0.5"), ("2", "2"), ("1k", "1000"), ("1Ki", "1024"), ("6Gi", str(6 * 2**30)), ("1.5M", "1.5E+6")]
)
def test_quantities_are_read(text, value):
    from decimal import Decimal

    assert amount(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "1Gx", "Gi", "1.2.3", "-1", "1 Gi"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match="no quantity"):
        amount(text)


def test_every_field_is_documented():
    schema = json.loads(json_schema())
    sections = [schema, *schema["$defs"].values()]
    named = [(section["title"], name, field) for section in sections for name, field in section["properties"].items()]
    told = [f"{title}.{name}" for title, name, field in named if not field.get("description") and "$ref" not in field]

    assert set(told) <= {
        "State.storage_class",
        "Environment.namespace", "GatewayReplicas.min", "GatewayReplicas.max", "EngineReplicas.min",
        "EngineReplicas.max", "BentoCloud.cluster", "Network.enabled", "Monitoring.enabled", "Engine.architecture", "Gpu.count",
        "Nodes.tolerations", "Gateway.tolerations", "Engine.tolerations", "Weights.download", "Compose.redis", "Compose.qdrant",
        "Compose.prometheus", "Toleration.key", "Toleration.operator", "Toleration.value", "Toleration.effect",
    }  # fmt: skip


def test_the_schema_takes_the_files():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json_schema())

    for told in (SMALL, LARGE):
        assert list(jsonschema.Draft202012Validator(schema).iter_errors(yaml.safe_load(yaml.safe_dump(told)))) == []
