"""The text of a box's Dockerfile: layers from what changes least to what changes most.

    system packages - Python environment - each model - each adapter and index - code

The environment is made of the lock alone. uv and strip, which make it, come from a stage of their own and stay there; a change
of code leaves every layer but the last as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Target = Literal["cpu", "cuda"]
Backend = Literal["docker", "buildah", "podman"]
Weights = Literal["image", "apart"]

UID = 1034
"""BentoML's own user in containers, `bentoml`."""
PORT = 3000
HOME = "/home/bentoml"
BENTO = f"{HOME}/bento"
MODELS = f"{BENTO}/models"
"""Where the model store is: a volume is mounted here when the weights are apart."""
STATE = f"{HOME}/state"
ENVIRONMENT = "/app/.venv"
WHEELS = "/run/wheels"
TOOLS = "/run/tools"
START_SECONDS = 300
"""How long a box may take to be ready before its health check counts."""

LEFT_OUT = frozenset({"intel-cmplr-lib-ur", "intel-openmp", "opencv-python-headless", "uv"})
"""Packages of the lock that no served box loads: vLLM takes PyTorch's OpenMP, OpenCV is for video, uv for `ekiben pack`."""

_SYSTEM = ("ca-certificates", "libgomp1", "libnuma1", "tini")
_KERNELS = ("g++", "gcc", "libc6-dev")  # Triton compiles its launchers when a kernel is first used
_BUILD = ("binutils", "python3-pip")
_MADE_BY_BUILD = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS")
_WRITABLE = {
    "XDG_CACHE_HOME": "/tmp/cache", "XDG_CONFIG_HOME": "/tmp/config", "VLLM_CACHE_ROOT": "/tmp/cache/vllm",
    "VLLM_CONFIG_ROOT": "/tmp/config/vllm", "HF_HOME": "/tmp/cache/huggingface", "FLASHINFER_WORKSPACE_BASE": "/tmp/cache",
    "TRITON_CACHE_DIR": "/tmp/cache/triton", "TORCHINDUCTOR_CACHE_DIR": "/tmp/cache/inductor",
}  # fmt: skip
_NAME = re.compile(r"^([A-Za-z0-9._-]+)==")


@dataclass(frozen=True)
class Image:
    """What a Dockerfile is written of."""

    base: str
    models: Sequence[str] = ()
    """Folders below `models/` of the build's context, in the order of their layers; none where the weights are apart."""
    target: Target = "cpu"
    python: str = "3.11"
    builder: str | None = None
    """The image in which the environment is made; the base image unless told."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the Bento sets in its environment."""
    labels: Mapping[str, str] = field(default_factory=dict)
    offline: bool = False
    """Whether packages come from a folder of wheels at `WHEELS` and from nowhere else."""

    def dockerfile(self) -> str:
        """Return the text."""
        parts = [self._tools(), self._system(), self._environment(), self._running(), self._contents()]
        return "\n\n".join("\n".join(part) for part in parts) + "\n"

    def _tools(self) -> list[str]:
        pip = [
            "python3",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            "--no-deps",
            "--require-hashes",
            "--target",
            "/opt/uv",
        ]
        source = ["--no-index", "--find-links", WHEELS] if self.offline else []
        return [
            f"FROM {self.builder or self.base} AS tools",
            *([] if self.offline else [f"ARG {name}" for name in _MADE_BY_BUILD]),
            *_packages("command -v strip && python3 -m pip --version", _BUILD),
            "COPY environment/uv.txt /opt/uv.txt",
            "RUN " + " ".join([*pip, *source, "--requirement", "/opt/uv.txt"]),
        ]

    def _environment(self) -> list[str]:
        uv = [f"{TOOLS}/opt/uv/bin/uv"]
        install = [*uv, "pip", "install", "--quiet", "--no-cache", "--no-deps", "--require-hashes"]
        if self.offline:
            install += ["--no-index", "--find-links", WHEELS]
        elif self.target == "cpu":
            install += ["--torch-backend", "cpu"]
        trim = [f"{ENVIRONMENT}/bin/python", "/app/environment/trim.py", ENVIRONMENT, "--tools", TOOLS]
        return [
            *([] if self.offline else [f"ARG {name}" for name in _MADE_BY_BUILD]),
            "COPY environment /app/environment",
            # Mounted, and not copied out of a stage: a builder would read all of the environment again to know it as unchanged.
            f"RUN --mount=type=bind,from=tools,source=/,target={TOOLS} \\",
            "  "
            + _then(
                " ".join([*uv, "venv", "--quiet", "--no-cache", "--no-python-downloads", "--python", self.python, ENVIRONMENT]),
                " ".join([*install, "--python", ENVIRONMENT, "--requirement", "/app/environment/requirements.txt"]),
                " ".join(["PYTHONHASHSEED=0", *trim, *(["--headers"] if self.target == "cuda" else [])]),
            ),
        ]

    def _system(self) -> list[str]:
        system = _SYSTEM if self.target == "cpu" else (*_KERNELS, *_SYSTEM)
        return [
            f"FROM {self.base}",
            *_packages(f"dpkg -s {' '.join(system)}", system),
            "RUN "
            + _then(
                f"groupadd --gid {UID} bentoml",
                f"useradd --uid {UID} --gid {UID} --create-home --shell /usr/sbin/nologin bentoml",
                f"mkdir -p {MODELS} {STATE} {HOME}/bentos {HOME}/envs {HOME}/tmp",
                f"ln -s {MODELS} {HOME}/models",
                f"chown {UID}:{UID} {STATE}",
                f"chmod 1777 {STATE}",  # a tmpfs that is mounted here takes the mode over, and not the owner
            ),
        ]

    def _contents(self) -> list[str]:
        return [
            *(f"COPY {_exec('models/' + model, f'{MODELS}/{model}')}" for model in self.models),
            f"COPY data {BENTO}",
            f"COPY code {BENTO}",
            *_labels(self.labels),
        ]

    def _running(self) -> list[str]:
        variables = {
            "PATH": f"{ENVIRONMENT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "VIRTUAL_ENV": ENVIRONMENT, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "HOME": HOME,
            "BENTOML_HOME": HOME, "BENTO_PATH": BENTO, "BENTOML_CONTAINERIZED": "true", "BENTOML_DO_NOT_TRACK": "True",
            "EKIBEN_STATE_DIR": STATE, "EKIBEN_CACHE_DIR": f"{STATE}/cache", **_WRITABLE, **self.variables,
        }  # fmt: skip
        health = f'"http://127.0.0.1:${{PORT:-${{BENTOML_PORT:-{PORT}}}}}/readyz"'
        return [
            "ENV " + " \\\n    ".join(f"{name}={_quoted(value)}" for name, value in variables.items()),
            f"WORKDIR {BENTO}/src",
            f"EXPOSE {PORT}",
            f"USER {UID}:{UID}",
            "# A shell, because the port is a variable.",
            "# hadolint ignore=DL3025",
            f"HEALTHCHECK --interval=10s --timeout=8s --start-period={START_SECONDS}s --retries=3 \\",
            f"  CMD exec {ENVIRONMENT}/bin/python -IS {BENTO}/src/deploy/health.py {health}",
            f"ENTRYPOINT {_exec('/usr/bin/tini', '--', f'{BENTO}/env/docker/entrypoint.sh')}",
        ]


def weights(models: Sequence[str], labels: Mapping[str, str]) -> str:
    """Return the Dockerfile of an image that holds a model store and nothing else: an image volume for `MODELS`."""
    copies = [f"COPY {_exec('models/' + model, '/' + model)}" for model in models]
    return "\n".join(["FROM scratch", *copies, *_labels(labels)]) + "\n"


def requirements(lock: str) -> tuple[str, str]:
    """Return from a lock with hashes what the environment is made of, and the lines of uv, which makes it."""
    kept: list[str] = []
    uv: list[str] = []
    name = ""
    for line in lock.splitlines():
        if found := _NAME.match(line):
            name = found[1].lower()
        if name not in LEFT_OUT:
            kept.append(line)
        elif name == "uv":
            uv.append(line)
    return "\n".join(kept) + "\n", "\n".join(uv) + "\n"


def _packages(there: str, names: Sequence[str]) -> list[str]:
    """Install Debian packages, unless a command finds what they bring: then no network is needed."""
    return [
        "# The base image fixes the release; security updates within it are wanted.",
        "# hadolint ignore=DL3008",
        f"RUN {{ {there}; }} >/dev/null 2>&1 \\",
        f" || {{ apt-get update && apt-get install -y --no-install-recommends {' '.join(names)} \\",
        "  && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/ldconfig/aux-cache; }",
    ]


def _labels(labels: Mapping[str, str]) -> list[str]:
    told = " \\\n    ".join(f"{name}={_quoted(value)}" for name, value in sorted(labels.items()))
    return [f"LABEL {told}"] if told else []


def _then(*commands: str) -> str:
    return " \\\n && ".join(commands)


def _exec(*words: str) -> str:
    return json.dumps(words)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'
