"""`ekiben containerize`: an image of a Bento, built by one of BentoML's backends from a Dockerfile of our own.

BentoML's own Dockerfile copies code and weights in one layer; here each has its own. What is copied gets fixed modes and times,
so the same inputs give the same layers.
"""

from __future__ import annotations

import hashlib
import os  # noqa: TID251  to set times
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import bentoml
import yaml
from bentoml import container
from bentoml.exceptions import NotFound

from deploy.container import BENTO, WHEELS, Backend, Image, Target, Weights, requirements, weights
from services.bento import version_here
from services.bundle import load_bundle
from services.lock import Lock, read_lock
from services.manifest import CARRIED, BentoError, read_manifest
from services.settings import ROOT, environment
from services.store import stored_path
from services.target import find_target
from services.verification import file_problems, stored_problems

BACKENDS: tuple[str, ...] = get_args(Backend)
_SECONDS_TO_END = 20
_SHOWN = 5
_EPOCH = 315532800  # 1980, the first year that every archive can tell


class ContainerError(RuntimeError):
    """An image that cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Request:
    """What image is wanted."""

    tag: str
    names: Sequence[str] = ()
    backend: Backend = "docker"
    weights: Weights = "image"
    target: Target = "cpu"
    base: str | None = None
    builder: str | None = None
    wheels: Path | None = None
    options: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """An image that was built."""

    names: Sequence[str]
    seconds: float
    weights: str | None = None
    """The image of the model store, where the weights are apart."""


@dataclass(frozen=True)
class Packed:
    """A Bento, opened: its folder, what its models are, and what its Dockerfile says."""

    path: Path
    tag: str
    models: Sequence[str]
    image: Image

    @property
    def name(self) -> str:
        """The name of the image unless another is told."""
        return self.tag

    @property
    def folders(self) -> list[str]:
        """The folders of the models below a model store."""
        return [tag.replace(":", "/", 1) for tag in self.models]

    @property
    def weights_name(self) -> str:
        """The name of the image of its model store: a function of the tags in it."""
        digest = hashlib.sha256("\n".join(sorted(self.models)).encode()).hexdigest()[:16]
        return f"{self.tag.partition(':')[0]}-weights:{digest}"


def open_bento(request: Request) -> Packed:
    """Return the Bento that is wanted as an image; raises ContainerError, LockError, or BundleError where it does not fit."""
    try:
        bento = bentoml.bentos.get(request.tag)
    except NotFound:
        raise ContainerError(
            f"{request.tag} is not in the Bento store; run `ekiben bento build` (`bentoml list` shows what is)"
        ) from None
    path = Path(bento.path)
    source = path / "src"
    load_bundle(source / "bundle.yaml", packed=True, target=find_target(request.target))
    lock = read_lock(source / "bundle.lock")
    described = yaml.safe_load((path / "bento.yaml").read_text(encoding="utf-8"))
    told = described.get("image") or {}
    labels = {
        "org.opencontainers.image.title": bento.tag.name,
        "org.opencontainers.image.version": bento.tag.version or "",
        **request.labels,
    }
    image = Image(
        base=request.base or told.get("base_image") or "python:3.11-slim",
        models=[tag.replace(":", "/", 1) for tag in _ordered(lock)] if request.weights == "image" else [],
        target=request.target,
        python=told.get("python_version") or "3.11",
        builder=request.builder,
        variables=_variables(described.get("envs") or []),
        labels=labels,
        offline=request.wheels is not None,
    )
    return Packed(path, str(bento.tag), _ordered(lock), image)


def containerize(request: Request, tell: Callable[[str], None]) -> Built:
    """Build the image, and the one of the weights where they are apart; raises ContainerError.

    The names are given only to what was built whole; the build's folder is removed however it ends.
    """
    packed = open_bento(request)
    names = list(request.names) or [packed.name]
    _ready(request)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ekiben-image-") as folder:
        context = Path(folder)
        tell("collecting what goes in")
        stage(packed, request, context)
        apart = None
        if request.weights == "apart":
            apart = _beside(names[0], packed.weights_name)
            _build(request, context, context / "Dockerfile.weights", [apart], tell)
        _build(request, context, context / "Dockerfile", names, tell)
    return Built(names, time.monotonic() - began, apart)


def dockerfile(request: Request) -> str:
    """Return the Dockerfile alone."""
    return open_bento(request).image.dockerfile()


def stage(packed: Packed, request: Request, context: Path) -> None:
    """Lay out a build's context: `environment/`, `models/`, `data/` (trained weights among the code), `code/`, Dockerfiles.

    What was copied is compared with the manifest, and what goes on is the copy; raises ContainerError where it differs.
    """
    code = context / "code"
    shutil.copytree(packed.path, code, symlinks=True, ignore=_left_behind)
    for tag, folder in zip(packed.models, packed.folders, strict=True):
        shutil.copytree(stored_path(tag), context / "models" / folder)
    _same(packed, context)
    kept, uv = requirements(_lock_text(code / "src", request.target))
    if not uv.strip():
        raise ContainerError("the lock has no uv, which makes the image's environment; add it to requirements and `make lock`")
    made = context / "environment"
    made.mkdir()
    (context / "data").mkdir()
    (made / "requirements.txt").write_text(kept, encoding="utf-8")
    (made / "uv.txt").write_text(uv, encoding="utf-8")
    shutil.copyfile(code / "src" / "deploy" / "trim.py", made / "trim.py")
    shutil.rmtree(code / "src" / "requirements")
    for path in [*(code / "env").iterdir(), *(code / "env" / "docker").iterdir()]:
        if path.name not in {"docker", "entrypoint.sh"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for file in code.rglob("*.npz"):
        apart = context / "data" / file.relative_to(code)
        apart.parent.mkdir(parents=True, exist_ok=True)
        file.rename(apart)
    _compile(code / "src", packed.image.python)
    (context / "Dockerfile").write_text(packed.image.dockerfile(), encoding="utf-8")
    (context / "Dockerfile.weights").write_text(weights(packed.folders, packed.image.labels), encoding="utf-8")
    for path in [context, *context.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)
        _date(path)


def revision_here(tag: str) -> str | None:
    """Return the commit of this folder, when the Bento is what this folder makes and nothing in it is uncommitted."""
    git = shutil.which("git")
    if git is None or tag.rpartition(":")[2] != version_here():
        return None
    told = [[git, "-C", str(ROOT), "status", "--porcelain"], [git, "-C", str(ROOT), "rev-parse", "HEAD"]]
    changed, head = (subprocess.run(command, capture_output=True, text=True, check=False) for command in told)  # noqa: S603  no shell
    return head.stdout.strip() if head.returncode == 0 and not changed.stdout.strip() else None


def _ordered(lock: Lock) -> list[str]:
    """Return the tags in the order of their layers: what is largest and changes least first."""
    return [*lock.models(), *lock.finders(), *lock.adapters.values(), *lock.indexes.values()]


def _variables(envs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the variables that the Bento sets where it runs. One without a value is a secret, and comes when it runs."""
    return {
        env["name"]: str(env["value"])
        for env in envs
        if env.get("value") and env.get("stage") != "build" and not env["name"].startswith("UV_")
    }


def _lock_text(source: Path, target: Target) -> str:
    lock = source / "requirements" / ("cpu.txt" if target == "cpu" else "gpu.txt")
    try:
        return lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ContainerError(
            f"the Bento has no requirements/{lock.name}: name it in bentofile.yaml's include list and build it again"
        ) from None


def _left_behind(folder: str, names: list[str]) -> set[str]:
    """Say what of a Bento is not copied as code: the models of an exported one, and bytecode, which is made anew."""
    return ({CARRIED} if (Path(folder) / "bento.yaml").exists() else set[str]()) & set(names) | ({"__pycache__"} & set(names))


def _same(packed: Packed, context: Path) -> None:
    """Raise ContainerError where what was copied is not what the Bento's manifest says."""
    try:
        manifest = read_manifest(context / "code")
    except BentoError as error:
        raise ContainerError(f"{packed.tag} has no manifest that can be read; build it by `ekiben bento build`") from error
    problems = file_problems(manifest, context / "code")
    if manifest.tag != packed.tag:
        problems.append(f"its manifest is of {manifest.tag}")
    listed = manifest.stored()
    if set(packed.models) != {stored.tag for stored in listed.values()}:
        problems.append("bundle.lock names other models than the manifest")
    for what, stored in listed.items():
        folder = context / "models" / stored.tag.replace(":", "/", 1)
        if folder.is_dir():
            problems += [f"{what} {stored.tag}: {line}" for line in stored_problems(stored, folder)]
    if problems:
        raise ContainerError(
            f"{packed.tag} is not what its manifest says: {'; '.join(problems[:_SHOWN])}; `ekiben bento verify {packed.tag}`"
        )


def _compile(source: Path, python: str) -> None:
    """Write the bytecode of the code, for a root that is read only; another Python than the image's could not."""
    if python != f"{sys.version_info.major}.{sys.version_info.minor}":
        return
    # A seed, because the order of a frozen set in bytecode follows the hashes of its strings.
    compiler = ["env", "PYTHONHASHSEED=0", sys.executable, "-m", "compileall", "-q", "-j", "1"]
    command = [*compiler, "--invalidation-mode", "unchecked-hash", "-s", str(source), "-p", f"{BENTO}/src", str(source)]
    subprocess.run(command, check=True)  # noqa: S603  no shell


def _date(path: Path) -> None:
    os.utime(path, (_EPOCH, _EPOCH), follow_symlinks=False)


def _beside(name: str, image: str) -> str:
    """Return the name of an image beside another: in the same registry and folder."""
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{image}"


def _ready(request: Request) -> None:
    """Raise ContainerError where the backend cannot build what is wanted."""
    there = [name for name in BACKENDS if shutil.which(name)]
    if request.backend not in there:
        others = f"take --backend {there[0]}" if there else "`make container-tools` installs podman and buildah on Debian"
        raise ContainerError(f"{request.backend} is not installed; {others}")
    if request.wheels is None:
        return
    if request.backend == "docker":
        raise ContainerError("docker cannot mount a folder of wheels into a build; take --backend buildah or podman")
    if not any(request.wheels.glob("*.whl")):
        raise ContainerError(
            f"{request.wheels} holds no wheels; fill it with `pip download --no-deps -r requirements/cpu.txt -d {request.wheels}`"
        )


def _build(request: Request, context: Path, file: Path, names: Sequence[str], tell: Callable[[str], None]) -> None:
    builder = container.get_backend(request.backend)
    options = [f"--file={file}", *(f"--tag={name}" for name in names)]
    if request.backend == "docker":
        variables = {"DOCKER_BUILDKIT": environment("DOCKER_BUILDKIT") or "1"}
        options.append(f"--build-arg=SOURCE_DATE_EPOCH={_EPOCH}")
    else:
        # Docker's format: OCI's has no health check.
        variables = {"BUILDAH_FORMAT": "docker"}
        options += ["--layers", "--force-rm", "--format=docker", f"--timestamp={_EPOCH}"]
    if request.wheels:
        options += ["--network=none", f"--volume={request.wheels.resolve()}:{WHEELS}:ro"]
    options += [f"--{option}" for option in request.options]
    command = [
        "env",
        *(f"{name}={value}" for name, value in variables.items()),
        builder.binary,
        *builder.build_cmd,
        *options,
        str(context),
    ]
    said = _run(command, tell)
    if said is not None:
        raise ContainerError(f"{request.backend} could not build the image: {said}")


def _run(command: Sequence[str], tell: Callable[[str], None]) -> str | None:
    """Run a builder; return its last word when it fails. Ended with us: a builder that is told to stop removes what it began."""
    last = ""
    with subprocess.Popen(  # noqa: S603  no shell
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as running:
        try:
            with _interruptible():
                for line in running.stdout or ():
                    if told := line.strip():
                        tell(told)
                        last = told
                return last if running.wait() else None
        except BaseException:
            running.terminate()
            with suppress(subprocess.TimeoutExpired):
                running.wait(_SECONDS_TO_END)
            running.kill()
            raise


@contextmanager
def _interruptible() -> Generator[None]:
    """Let a SIGTERM unwind like Ctrl-C."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
