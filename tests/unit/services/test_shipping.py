"""What a release renders and finds again, over a registry that is a dictionary."""

from contextlib import nullcontext

import pytest
import yaml

from services import shipping
from services.journal import Released, ReleaseError
from services.registry import Place
from services.shipping import Options, Shipping
from tests.deploying import box

TAG = "ekiben:0123456789abcdef"
WEIGHTS = "localhost/ekiben-weights:feed"
ONE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
RESULTS = {"image": f"localhost/{TAG}", "weights": WEIGHTS, "weights_digest": OTHER, "digest": ONE}
VOLUME = {"source": "image-volume", "image": "registry.example.com/team/ekiben-weights:old"}


class Quiet:
    def step(self, text):
        pass

    def note(self, text):
        pass


@pytest.fixture
def registry(monkeypatch):
    """Repository and version -> digest."""
    kept = {}
    monkeypatch.setattr(Place, "digest", lambda self, version: kept.get(f"{self.repository}:{version}"))
    return kept


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """Make a Shipping; bundle and lock of its Bento are the tests' box."""
    for name in ("load_bundle", "read_lock", "find_target"):
        monkeypatch.setattr(shipping, name, lambda *_, **__: type("Loaded", (), {"bundle": None}))
    monkeypatch.setattr(shipping, "box_of", lambda *_: box())
    monkeypatch.setattr(shipping, "bento_path", lambda _tag: tmp_path)

    def make(to="registry.example.com/team/ekiben", how="apart", **told):
        file = tmp_path / "env.yaml"
        secrets = {"engine_key": {"name": "e", "key": "k"}}
        file.write_text(yaml.safe_dump({"image": "pulled.example.com/box:0", "secrets": secrets, **told}))
        return Shipping(TAG, Options(to=to, env=str(file), weights=how, output=str(tmp_path / "out")), None)

    return make


def volumes(made):
    pod = next(yaml.safe_load_all(made.files["engine.yaml"]))["spec"]["template"]["spec"]
    return [volume for volume in pod["volumes"] if volume["name"] == "weights"]


@pytest.mark.parametrize("told", [{}, {"weights": VOLUME}])
def test_weights_that_are_apart_are_mounted_as_they_were_pushed(shipped, told):
    made, _ = shipped(**told)._rendering(RESULTS)

    assert [volume["image"]["reference"] for volume in volumes(made)] == [
        f"registry.example.com/team/ekiben-weights:feed@{OTHER}"
    ]


@pytest.mark.parametrize("to", ["", "oci:/kept"])
def test_where_no_registry_has_them_they_are_named_beside_the_box(shipped, to):
    made, image = shipped(to=to)._rendering(RESULTS)

    assert image == "pulled.example.com/box:0123456789abcdef"
    assert [volume["image"]["reference"] for volume in volumes(made)] == ["pulled.example.com/ekiben-weights:feed"]


def test_a_claim_that_is_named_stays(shipped):
    made, _ = shipped(weights={"source": "pvc", "claim": "models"})._rendering(RESULTS)

    assert volumes(made)[0]["persistentVolumeClaim"]["claimName"] == "models"


def test_weights_in_the_image_are_not_mounted(shipped):
    made, _ = shipped(how="image")._rendering({"image": TAG, "digest": ONE})

    assert volumes(made) == []


def test_a_source_that_would_leave_pods_without_weights_is_refused_before_an_image_is_made(shipped, monkeypatch):
    monkeypatch.setattr(shipping, "verify", lambda *_: [])
    monkeypatch.setattr(shipping, "opened", nullcontext)

    with pytest.raises(ReleaseError, match=r"weights\.source is image, and with --weights apart"):
        shipped(weights={"source": "image"})._verify({}, Quiet())
    assert shipped()._verify({}, Quiet()) == {}


@pytest.mark.parametrize(
    ("lost", "names"),
    [
        (None, ["find", "render"]),
        ("registry.example.com/team/ekiben-weights:feed", ["verify", "containerize", "push", "render"]),
        ("registry.example.com/team/ekiben:0123456789abcdef", ["verify", "containerize", "push", "render"]),
    ],
)
def test_a_release_is_there_when_its_weights_are_too(shipped, registry, lost, names):
    registry |= {
        "registry.example.com/team/ekiben:0123456789abcdef": ONE, "registry.example.com/team/ekiben-weights:feed": OTHER,
    }  # fmt: skip
    released = Released(bento=TAG, schema="0001", options={}, results=RESULTS)
    if lost:
        registry[lost] = "sha256:" + "3" * 64

    assert [step.name for step in shipped().steps_back(released)] == names


def test_what_would_end_a_release_is_known_before_it(shipped, monkeypatch):
    class Away:
        def missing(self):
            return "podman is not installed"

    monkeypatch.setattr(shipping, "manifest_digest", lambda _folder: ONE)
    monkeypatch.setattr(shipping, "missing", lambda: "skopeo is not installed")
    ship = shipped(weights={"source": "image"})
    ship._images = Away()
    told = ship.lacking()

    assert told[:2] == ["podman is not installed", "skopeo is not installed"]
    assert "weights.source is image" in told[2]


def test_problems_of_an_environment_file_are_a_line_each(shipped):
    with pytest.raises(ReleaseError) as caught:
        shipped(namespace="Not a name", host="-")

    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("url", ["https://user:token@index.example/simple", "https://token@index.example/simple"])
def test_a_password_among_the_options_is_refused_and_not_repeated(url):
    with pytest.raises(ReleaseError, match="--wheels") as caught:
        Options(opt=f"network=host\nbuild-arg=PIP_INDEX_URL={url}")

    assert "--opt build-arg=PIP_INDEX_URL" in str(caught.value)
    assert "token" not in str(caught.value)
    assert Options(opt="build-arg=PIP_INDEX_URL=https://index.example/simple").opt
