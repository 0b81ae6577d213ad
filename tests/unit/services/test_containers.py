"""What goes into an image's build, and what cannot be built."""

import os  # noqa: TID251  to stop this process
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest

from deploy.container import Image
from services import containers
from services.containers import ContainerError, Packed, Request, stage
from services.digests import file_digests, stored_files
from services.manifest import Manifest, PackedModel, bento_files
from tests.cards import card

LOCK = "aiohttp==3.14.5 \\\n    --hash=sha256:aa\nuv==0.13.9 \\\n    --hash=sha256:dd\n"


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A Bento of a few files, with a model in a store."""
    bento, model = tmp_path / "bento", tmp_path / "store" / "tiny" / "1"
    files = {
        "bento.yaml": "name: box\n", "README.md": "box\n",
        "env/docker/Dockerfile": "FROM x\n", "env/docker/entrypoint.sh": "exec\n",
        "env/python/requirements.txt": LOCK, "src/requirements/cpu.txt": LOCK, "src/deploy/trim.py": "pass\n",
        "src/services/api.py": "x = {'a', 'b', 'c'}\n", "src/guards/weights.npz": "weights",
    }  # fmt: skip
    for name, text in files.items():
        (bento / name).parent.mkdir(parents=True, exist_ok=True)
        (bento / name).write_text(text)
    model.mkdir(parents=True)
    (model / "model.safetensors").write_text("numbers")
    (model / "model.safetensors").chmod(0o600)
    (model / "model.yaml").write_text(card("tiny:1"))
    packed = PackedModel(
        tag="tiny:1", bytes=7, files=file_digests(model, stored_files(model)), source="path:m", revision="1", recipe="none"
    )
    files = file_digests(bento, bento_files(bento))
    Manifest(name="box", version="1", model=packed, python="3.11", packages={}, hashes=0, files=files).write(bento)
    (bento / "models" / "tiny" / "1").mkdir(parents=True)
    (bento / "models" / "tiny" / "1" / "x").write_text("an exported one's")
    monkeypatch.setattr(containers, "stored_path", lambda tag: tmp_path / "store" / tag.replace(":", "/"))
    return Packed(bento, "box:1", ["tiny:1"], Image("base:1", models=["tiny/1"]))


def staged(packed, folder):
    """Everything in a build's context, as a builder sees it."""
    folder.mkdir()
    stage(packed, Request(packed.tag), folder)
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mode,
            path.stat().st_mtime,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


def test_each_layer_gets_its_own_and_no_other_ones(packed, tmp_path):
    files = {name for name, (_, _, content) in staged(packed, tmp_path / "context").items() if content}
    version = f"cpython-{sys.version_info.major}{sys.version_info.minor}"

    assert files == {
        "Dockerfile", "Dockerfile.weights", "environment/requirements.txt", "environment/uv.txt", "environment/trim.py",
        "models/tiny/1/model.safetensors", "models/tiny/1/model.yaml", "data/src/guards/weights.npz",
        "code/bento.yaml", "code/README.md",
        "code/manifest.json",
        "code/env/docker/entrypoint.sh", "code/src/deploy/trim.py", "code/src/services/api.py",
        f"code/src/services/__pycache__/api.{version}.pyc", f"code/src/deploy/__pycache__/trim.{version}.pyc",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("altered", "told"),
    [
        ("bento/src/services/api.py", "src/services/api.py was changed"),
        ("bento/src/requirements/cpu.txt", "src/requirements/cpu.txt was changed"),
        ("bento/env/docker/entrypoint.sh", "env/docker/entrypoint.sh was changed"),
        ("bento/src/extra.py", "src/extra.py was added"),
        ("bento/hf-models/x", "hf-models/x was added"),
        ("store/tiny/1/model.safetensors", "model tiny:1: model.safetensors was changed"),
        ("store/tiny/1/__pycache__/x.pyc", "model tiny:1: __pycache__/x.pyc was added"),
    ],
)
def test_a_bento_that_was_altered_becomes_no_image(packed, tmp_path, altered, told):
    (tmp_path / altered).parent.mkdir(exist_ok=True)
    (tmp_path / altered).write_text("altered")
    (tmp_path / "context").mkdir()

    with pytest.raises(ContainerError, match=f"box:1 is not what its manifest says: {told};"):
        stage(packed, Request("box:1"), tmp_path / "context")


def test_a_bento_without_its_own_manifest_becomes_no_image(packed, tmp_path):
    with pytest.raises(ContainerError, match="its manifest is of box:1"):
        stage(replace(packed, tag="box:2"), Request("box:2"), tmp_path / "first")
    (packed.path / "manifest.json").unlink()
    with pytest.raises(ContainerError, match="`ekiben bento build`"):
        stage(packed, Request("box:1"), tmp_path / "second")


def test_bytecode_beside_the_code_is_left_and_made_anew(packed, tmp_path):
    first = staged(packed, tmp_path / "first")
    planted = (
        packed.path / "src" / "services" / "__pycache__" / f"api.cpython-{sys.version_info.major}{sys.version_info.minor}.pyc"
    )
    planted.parent.mkdir()
    planted.write_bytes(b"another program")

    assert staged(packed, tmp_path / "second") == first


def test_the_same_bento_is_staged_in_the_same_bytes_times_and_modes(packed, tmp_path):
    first = staged(packed, tmp_path / "first")
    time.sleep(0.02)
    for path in packed.path.rglob("*"):
        path.touch()
    second = staged(packed, tmp_path / "second")

    assert first == second
    assert {oct(mode & 0o777) for mode, _, _ in first.values()} == {"0o644", "0o755"}


def test_weights_have_a_name_that_is_a_function_of_their_tags(packed):
    other = Packed(packed.path, "box:2", ["tiny:2"], packed.image)

    assert packed.weights_name == Packed(packed.path, "box:2", ["tiny:1"], packed.image).weights_name
    assert packed.weights_name != other.weights_name
    assert packed.weights_name.startswith("box-weights:")


def refused(request):
    with pytest.raises(ContainerError) as caught:
        containers._ready(request)
    return str(caught.value)


def test_what_is_missing_is_told_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(containers.shutil, "which", lambda name: "/usr/bin/podman" if name == "podman" else None)

    assert refused(Request("box:1", backend="docker")) == "docker is not installed; take --backend podman"
    assert "holds no wheels" in refused(Request("box:1", backend="podman", wheels=tmp_path))
    monkeypatch.setattr(containers.shutil, "which", lambda name: None)
    assert "make container-tools" in refused(Request("box:1", backend="docker"))


def test_docker_cannot_mount_wheels(monkeypatch, tmp_path):
    monkeypatch.setattr(containers.shutil, "which", lambda name: f"/usr/bin/{name}")

    assert "--backend buildah" in refused(Request("box:1", backend="docker", wheels=tmp_path))


def test_a_bento_without_the_targets_lock_is_told(packed, tmp_path):
    with pytest.raises(ContainerError, match=r"no requirements/gpu\.txt"):
        stage(packed, Request("box:1", target="cuda"), tmp_path / "context")


def test_a_builder_that_fails_has_the_last_word():
    said = []

    assert (
        containers._run(
            [sys.executable, "-c", "print('STEP 1', flush=True); raise SystemExit('Error: no such image')"], said.append
        )
        == "Error: no such image"
    )
    assert said == ["STEP 1", "Error: no such image"]
    assert containers._run([sys.executable, "-c", "print('built')"], said.append) is None


def test_told_to_stop_it_stops_the_builder(tmp_path):
    """A SIGTERM to the command reaches the builder, which then removes what it began."""
    mark = tmp_path / "cleaned"
    program = f"""
import signal, sys, time
def clean(*_):
    open({str(mark)!r}, "w").close()
    sys.exit(1)
signal.signal(signal.SIGTERM, clean)
print("began", flush=True)
time.sleep(60)
"""

    def stop(line):
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()

    with pytest.raises(KeyboardInterrupt):
        containers._run([sys.executable, "-c", program], stop)
    assert mark.exists()


def test_variables_of_the_bento_are_those_that_are_no_secrets():
    envs = [
        {"name": "TOKEN", "value": None}, {"name": "EMPTY", "value": ""}, {"name": "UV_TORCH_BACKEND", "value": "cpu"},
        {"name": "BUILT", "value": "1", "stage": "build"}, {"name": "COLOUR", "value": "red", "stage": "all"},
    ]  # fmt: skip

    assert containers._variables(envs) == {"COLOUR": "red"}


@pytest.mark.parametrize(("name", "beside"), [("reg:5000/team/box:1", "reg:5000/team/w:2"), ("box:1", "w:2")])
def test_weights_go_beside_the_image(name, beside):
    assert containers._beside(name, "w:2") == beside
