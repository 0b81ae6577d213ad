"""The image: its size, its layers, what is in it and what is not."""

import json
import re
import shutil

import pytest

from deploy.container import LEFT_OUT
from tests.containers.tools import IMAGE, ROOT, podman, run

CODE_BYTES, IMAGE_BYTES = 5_000_000, 2_600_000_000


def inspect(name):
    return json.loads(podman("image", "inspect", name))[0]


def sizes(name):
    """The uncompressed bytes of each layer, the last first."""
    return [entry["size"] for entry in json.loads(podman("history", "--format", "json", name)) if entry["size"]]


def inside(image, command):
    return run(
        "podman", "run", "--rm", "--network", "none", "--no-healthcheck", "--entrypoint", "/bin/sh", image, "-c", command
    ).stdout


def test_it_is_small(image):
    assert inspect(image)["Size"] <= IMAGE_BYTES


def test_it_says_what_it_is_and_how_it_runs(image):
    described = inspect(image)
    config = described["Config"]

    assert config["Labels"]["org.opencontainers.image.title"] == "ekiben"
    assert re.fullmatch(r"[0-9a-f]{16}", config["Labels"]["org.opencontainers.image.version"])
    assert config["User"] == "1034:1034"
    assert config["Entrypoint"][0] == "/usr/bin/tini"
    assert "/readyz" in described["Healthcheck"]["Test"][1]
    assert not [told for told in config["Env"] if re.search(r"TOKEN|KEY|SECRET|INDEX", told)]


def test_nothing_is_in_it_that_a_box_does_not_need(image):
    packages = inside(image, "ls /app/.venv/lib/python3.*/site-packages").split()
    tools = inside(image, "for tool in gcc g++ make git pip uv strip; do command -v $tool; done; true")

    assert "vllm" in packages
    assert not {name.lower() for name in packages} & {"triton", "torchvision", "torchaudio", "cv2", "ruff", "pytest", *LEFT_OUT}
    assert tools == ""


def test_a_change_of_code_is_one_small_layer(image, containerize, home, tmp_path):
    """Everything before the code is found again: the environment, each model, each adapter."""
    version = inspect(image)["Config"]["Labels"]["org.opencontainers.image.version"]
    changed = tmp_path / "home"
    changed.mkdir()
    (changed / "models").symlink_to((home / "models").resolve())
    shutil.copytree(home / "bentos", changed / "bentos")
    code = changed / "bentos" / "ekiben" / version / "src" / "services" / "api.py"
    code.chmod(0o644)
    code.write_text(code.read_text() + "\n# changed\n")
    containerize(f"ekiben:{version}", name=f"{IMAGE}-changed", home=changed)
    before, after = inspect(image)["RootFS"]["Layers"], inspect(f"{IMAGE}-changed")["RootFS"]["Layers"]

    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1]
    assert sizes(f"{IMAGE}-changed")[0] <= CODE_BYTES


def test_each_model_and_adapter_is_a_layer(image):
    models = [
        entry["CreatedBy"]
        for entry in json.loads(podman("history", "--format", "json", image))
        if "/models/" in entry["CreatedBy"]
    ]
    copied = [line for line in models if "COPY" in line]

    assert len(copied) == len(json.loads((ROOT / "bundle.lock").read_text())["adapters"]) + 3  # the model, the index, the names


def test_the_same_bento_is_the_same_image(image, containerize):
    containerize(name=f"{IMAGE}-again")

    assert inspect(f"{IMAGE}-again")["Id"] == inspect(image)["Id"]


def test_weights_apart_are_an_image_to_mount(image, containerize):
    """Built anew, the layers of the weights are the same."""
    built = containerize("--weights", "apart", name="localhost/ekiben-test-apart:1")
    before = inspect(built["weights"])["RootFS"]["Layers"]
    podman("rmi", built["weights"])
    again = containerize("--weights", "apart", name="localhost/ekiben-test-apart:1")
    listed = run(
        "podman", "run", "--rm", "--network", "none", "--no-healthcheck", "--entrypoint", "/bin/ls",
        "--mount", f"type=image,source={built['weights']},destination=/home/bentoml/bento/models",
        "localhost/ekiben-test-apart:1", "/home/bentoml/models",
    ).stdout.split()  # fmt: skip

    assert again["weights"] == built["weights"]
    assert inspect(built["weights"])["RootFS"]["Layers"] == before
    assert "smollm2-135m-instruct" in listed
    assert inspect("localhost/ekiben-test-apart:1")["Size"] < inspect(image)["Size"] - 200_000_000
    podman("rmi", "--force", built["weights"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ekiben:0000000000000000"], "not in the Bento store; run `ekiben bento build`"),
        (["--base-image", "localhost:1/no-such:1"], "buildah could not build the image"),
        (["--wheels", "/nowhere"], "holds no wheels"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(containerize, image, arguments, told):
    name = "localhost/ekiben-test-none:1"
    done = containerize(*arguments, name=name, check=False)

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert told in last
    assert "Traceback" not in done.stderr
    assert run("podman", "image", "exists", name, check=False).returncode == 1
