"""The demo box as a container, built once for all tests: without a network, on a base image of Debian's packages.

What it needs and the machine lacks makes every test here skip, and say what to install.
"""

import hashlib
import json
import os  # noqa: TID251  podman's configuration, and a BentoML folder of the tests' own
import shutil
import sys
from pathlib import Path

import pytest

from tests.containers.tools import BASE, BUILDER, HERE, IMAGE, ROOT, Container, podman, run


@pytest.fixture(scope="session", autouse=True)
def _tools():
    missing = [tool for tool in ("podman", "buildah", "runc", "mmdebstrap") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"CONTAINERS ARE NOT TESTED: {', '.join(missing) or 'root'} is missing; run `make container-tools` as root")
    os.environ["CONTAINERS_CONF"] = str(HERE / "containers.conf")


@pytest.fixture(scope="session")
def wheels():
    """The wheels of the lock, in a folder that the next run finds again, from another clone too."""
    folder = Path.home() / ".cache" / "ekiben-tests" / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    lock = ROOT / "requirements" / "cpu.txt"
    if not (done := folder / f"{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}.whole").exists():
        run(_pip(), "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", lock, "-d", folder, timeout=1200)
        done.touch()
    return folder


def _pip():
    """A Python that has pip: the environment of the project has none."""
    return next(
        python
        for python in ("/usr/bin/python3", shutil.which("python3"))
        if not run(python, "-m", "pip", "--version", check=False).returncode
    )


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A BentoML folder over the models of the user's own, with the demo's Bento in it."""
    store = Path(os.environ.get("BENTOML_HOME", Path.home() / "bentoml"))
    folder = tmp_path_factory.mktemp("bentoml")
    ekiben("pack")
    (folder / "models").symlink_to(store / "models")
    ekiben("bento", "build", home=folder)
    return folder


def ekiben(*arguments, home=None, check=True, **environment):
    """Run the `ekiben` command."""
    if home is not None:
        environment["BENTOML_HOME"] = str(home)
    return run(
        sys.executable, "-m", "services.cli", *arguments, check=check, timeout=1200, BENTOML_DO_NOT_TRACK="True", **environment
    )


@pytest.fixture(scope="session")
def bases():
    """The two base images."""
    run(HERE / "base.sh", BASE, BUILDER)
    yield BASE, BUILDER
    podman("rmi", "--force", BASE, BUILDER, check=False)


@pytest.fixture(scope="session")
def containerize(home, bases, wheels):
    """Build an image without a network, and remove it at the end."""
    made = []

    def build(*arguments, name=IMAGE, home=home, check=True):
        done = ekiben(
            "containerize", "--backend", "buildah", "-t", name, "--base-image", bases[0], "--build-image", bases[1],
            "--wheels", wheels, "--opt", "isolation=oci", "--opt", "runtime=runc", "--json", *arguments, home=home, check=check,
        )  # fmt: skip
        if done.returncode == 0:
            made.append(name)
            return json.loads(done.stdout)
        return done

    yield build
    for name in made:
        podman("rmi", "--force", name, check=False)
    podman("image", "prune", "--force", check=False)


@pytest.fixture(scope="session")
def image(containerize):
    containerize()
    return IMAGE


@pytest.fixture(scope="session")
def box(image):
    served = Container(image)
    try:
        yield served.wait_ready()
    finally:
        served.remove()
