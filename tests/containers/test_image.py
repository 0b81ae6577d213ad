"""The image: its size, its layers, what is in it and what is not."""

import hashlib
import json
import os  # noqa: TID251  a build in a process of its own
import re
import shutil
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from deploy.container import LEFT_OUT
from tests.containers.tools import IMAGE, ROOT, Container, podman, run

CODE_BYTES, IMAGE_BYTES = 8_000_000, 2_600_000_000  # uncompressed; code is pushed as a third of that


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


def another(folder, home, name, change):
    """A BentoML folder with the Bento, in which `change` was made of one of its files."""
    [version] = [path for path in (home / "bentos" / "ekiben").iterdir() if path.is_dir()]
    folder.mkdir()
    (folder / "models").symlink_to((home / "models").resolve())
    shutil.copytree(home / "bentos", folder / "bentos")
    file = folder / "bentos" / "ekiben" / version.name / "src" / name
    file.chmod(0o644)
    file.write_text(change(file.read_text()))
    # What differs from its manifest becomes no image.
    manifest = folder / "bentos" / "ekiben" / version.name / "manifest.json"
    told = json.loads(manifest.read_text())
    told["files"][f"src/{name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(told))
    return folder, f"ekiben:{version.name}"


@pytest.fixture(scope="session")
def small(home, tmp_path_factory):
    """The Bento with an environment of a few packages: an image that is built in seconds, and does not serve."""

    def few(lock):
        packages = re.split(r"\n(?=\S)", lock)
        return "\n".join(one for one in packages if re.match("(certifi|idna|numpy|uv)==", one)) + "\n"

    return another(tmp_path_factory.mktemp("small") / "home", home, "requirements/cpu.txt", few)


def test_a_change_of_code_is_one_small_layer(image, containerize, home, tmp_path):
    """Everything before the code is found again: the environment, each model, each adapter."""
    changed, tag = another(tmp_path / "home", home, "services/api.py", lambda code: code + "\n# changed\n")
    containerize(tag, name=f"{IMAGE}-changed", home=changed)
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


def test_the_same_bento_has_the_same_layers(image, containerize):
    containerize(name=f"{IMAGE}-again")

    assert inspect(f"{IMAGE}-again")["RootFS"]["Layers"] == inspect(image)["RootFS"]["Layers"]


def test_built_again_without_any_cache_the_layers_are_the_same(containerize, small):
    """But for that of Debian's packages and the user, in which dates are."""
    home, tag = small
    layers = []
    for name in ("localhost/ekiben-test-small:1", "localhost/ekiben-test-small:2"):
        containerize(tag, "--opt", "no-cache", name=name, home=home)
        layers.append(inspect(name)["RootFS"]["Layers"])
    copied = len(json.loads((ROOT / "bundle.lock").read_text())["adapters"]) + 3 + 2  # models, data and code

    assert layers[0][-copied:] == layers[1][-copied:]
    assert len(layers[0]) > copied
    assert layers[0] == layers[1]


def installing():
    """Whether the environment of an image is being made: its tools are mounted there."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return any(word.startswith("/run/tools") for line in lines for word in line)


def test_a_build_that_is_interrupted_leaves_nothing(bases, wheels, small, tmp_path):
    """Ended in the middle of the environment's layer, as by Ctrl-C or a runner that gives up."""
    home, tag = small
    name, containers = "localhost/ekiben-test-ended:1", run("buildah", "containers", "--quiet").stdout
    command = [
        sys.executable, "-m", "services.cli", "containerize", tag, "--backend", "buildah", "-t", name, "--base-image", bases[0],
        "--build-image", bases[1], "--wheels", wheels, "--opt", "isolation=oci", "--opt", "runtime=runc", "--opt", "no-cache",
    ]  # fmt: skip
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as building:
        while building.poll() is None and not installing():
            time.sleep(0.1)
        building.terminate()
        said = building.communicate(timeout=60)[1]

    assert building.returncode == 1
    assert "interrupted; no image was made" in said
    assert run("podman", "image", "exists", name, check=False).returncode == 1
    assert run("buildah", "containers", "--quiet").stdout == containers
    assert list(tmp_path.iterdir()) == []


def test_weights_apart_are_an_image_to_mount(image, containerize):
    """The box without weights answers with those that are mounted."""
    name = "localhost/ekiben-test-apart:1"
    weights = containerize("--weights", "apart", name=name)["weights"]
    box = Container(name, "--mount", f"type=image,source={weights},destination=/home/bentoml/bento/models")
    try:
        asked = {"model": "travel-intents", "messages": [{"role": "user", "content": "how do i say thank you in italian"}]}
        answer = httpx.post(f"{box.wait_ready().url}/v1/chat/completions", json=asked, timeout=60, headers=box.headers).json()
    finally:
        box.remove()
        podman("rmi", "--force", weights)

    assert answer["choices"][0]["message"]["content"] == "translate"
    assert inspect(name)["Size"] < inspect(image)["Size"] - 200_000_000


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
