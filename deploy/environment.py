"""The operator's environment file: what differs from one cluster to the next. Everything else is the box's own.

Secrets stand here by reference alone. Each field says what it is for; `ekiben deploy schema` prints them all.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator
from typing_extensions import TypedDict

from deploy.measured import Measured
from deploy.quantity import QUANTITY, Quantity

_NAME = r"^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$"
_IMAGE = r"^[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$"
_SECRET = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"  # noqa: S105  of its name
_KEY = r"^[-._a-zA-Z0-9]+$"
_VARIABLE, _SETTING = "^[A-Za-z_][A-Za-z0-9_]*$", "^EKIBEN_[A-Z_]+$"
_URL, _DIGEST = r"^https?://[^@\s]+$", "^[0-9a-f]{64}$"
_METRIC, _GATEWAY = r"^[a-z_:][a-z0-9_:]*$", r"^([a-z0-9-]+/)?[a-z0-9-]+$"
_HOST, _ADDRESS = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", r"^[0-9.]+:[0-9]+$"
_LONGEST_QUANTITY = 16
Name = Annotated[str, Field(pattern=_NAME, description="a name as Kubernetes wants it")]
Image = Annotated[
    str,
    Field(
        pattern=_IMAGE,
        examples=["registry.example.com/ekiben:0123456789abcdef"],
    ),
]
Labels = dict[str, str]
_PERIOD = 5
"""Seconds between two looks at a pod that starts."""
_LONGEST_WAKE = 3600


class Strict(BaseModel):
    """A section: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BadEnvironment(ValueError):
    """An environment file that cannot be used; `lines` says where, and what to write."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class SecretKey(Strict):
    """A key of a Secret that is in the namespace already."""

    name: str = Field(pattern=_SECRET, description="of the Secret")
    key: str = Field(pattern=_KEY, description="in the Secret")

    @model_validator(mode="before")
    @classmethod
    def _by_reference(cls, told: Any) -> Any:
        if isinstance(told, str):
            raise ValueError("a secret stands here by reference, {name: SECRET, key: KEY}, and never by its value")  # noqa: TRY004
        return told


class Secrets(Strict):
    """Settings that are secrets. In compose and on BentoCloud the variables of these names are taken instead."""

    engine_key: SecretKey | None = Field(
        default=None, description="EKIBEN_ENGINE_KEY: the gateway shows it to the engine; needed"
    )
    admin_token: SecretKey | None = Field(default=None, description="EKIBEN_ADMIN_TOKEN")
    guard_key: SecretKey | None = Field(default=None, description="EKIBEN_GUARD_KEY; the same for every gateway")
    audit_key: SecretKey | None = Field(default=None, description="EKIBEN_AUDIT_KEY")
    audit_text_key: SecretKey | None = Field(default=None, description="EKIBEN_AUDIT_TEXT_KEY")
    database_url: SecretKey | None = Field(default=None, description="EKIBEN_DATABASE_URL: postgresql://USER:PASSWORD@HOST/NAME")
    redis_url: SecretKey | None = Field(default=None, description="EKIBEN_REDIS_URL: redis://HOST:6379")
    alert_webhook: SecretKey | None = Field(default=None, description="EKIBEN_ALERT_WEBHOOK")
    variables: dict[Annotated[str, Field(pattern=_VARIABLE)], SecretKey] = Field(
        default_factory=dict,
        description="${VARIABLE}s that bundle.yaml names: keys of upstreams, passwords of stores (Qdrant, pgvector)",
    )

    def settings(self) -> dict[str, SecretKey]:
        """Return the reference of each EKIBEN_ variable that is given, but the engine's."""
        fields = [name for name in type(self).model_fields if name not in {"variables", "engine_key"}]
        return {f"EKIBEN_{name.upper()}": value for name in fields if (value := getattr(self, name))}


class Resources(Strict):
    """What a container is given."""

    cpu: Quantity = Field(description="processors asked for")
    memory: Quantity = Field(description="asked for, and its limit: a container that wants more is ended")


class GatewayReplicas(Strict):
    """How many gateways there are; they never go to zero."""

    min: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min}); raise it")
        return self


class EngineReplicas(GatewayReplicas):
    """How many engines there are; 0 is where they sleep until a request comes."""

    min: int = Field(default=0, ge=0)


class Toleration(TypedDict, total=False):
    """A taint of nodes that is put up with."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportGeneralTypeIssues]  pydantic's way for a TypedDict
    key: str
    operator: Literal["Exists", "Equal"]
    value: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Nodes(Strict):
    """Where pods may be placed."""

    node_selector: Labels = Field(default_factory=dict, description="labels that a node must have")
    tolerations: tuple[Toleration, ...] = ()
    spread: str = Field(default="topology.kubernetes.io/zone", description="label of nodes over which replicas are spread")


class Gateway(Nodes):
    """The gateway: requests, guards, retrieval, keys. No GPU."""

    replicas: GatewayReplicas = GatewayReplicas()
    resources: Resources = Resources(cpu="500m", memory="2Gi")
    cpu_percent: int = Field(
        default=70, ge=1, le=100, description="share of the processors asked for at which another is started"
    )


class Gpu(Strict):
    """GPUs of one engine."""

    count: int = Field(ge=1)
    resource: str = Field(default="nvidia.com/gpu", description="as the device plugin calls them")
    memory: Quantity | None = Field(default=None, description="of one of them; what does not fit is refused then")


class Engine(Nodes):
    """The engine: vLLM."""

    replicas: EngineReplicas = EngineReplicas()
    resources: Resources = Resources(cpu="2", memory="6Gi")
    gpu: Gpu | None = Field(default=None, description="left out: it runs on processors")
    architecture: Literal["amd64", "arm64"] = "amd64"
    measured: Path | None = Field(
        default=None, description="JSON file of a load test with cold_start_seconds and saturation, from this file's "
                                  "folder; `ekiben deploy measure` "
        "writes one; it is heard before the fields below",
    )  # fmt: skip
    cold_start_seconds: float = Field(default=60, gt=0, description="from its start to its first answer, as measured")
    provision_seconds: float = Field(default=0, ge=0, description="what a node and the image's pull may take before")
    saturation: int | None = Field(default=None, ge=1, description="requests at once that saturate one engine, as measured")
    concurrency: int | None = Field(
        default=None, ge=1, description="requests at an engine beyond which another is started; left out: 0.7 of the saturation"
    )
    idle_seconds: int = Field(default=600, ge=10, description="without a request, before it goes to sleep")
    queue_metric: str | None = Field(
        default=None, pattern=_METRIC,
        description="plain, more than one engine: the custom metric of waiting requests a pod, as the cluster's metrics "
                    "adapter names it",
    )  # fmt: skip
    compile_cache: str | None = Field(
        default=None, description="claim that keeps what was compiled; left out: it is compiled anew at each start"
    )


class Download(Strict):
    """An archive (.tar, .tar.gz) of the model store's folders, brought to the claim once."""

    url: str = Field(pattern=_URL, description="without a password: a store of the cluster, or a public one")
    sha256: str = Field(pattern=_DIGEST, description="of the archive; anything else is refused")


class Weights(Strict):
    """Where models, adapters and indexes come from."""

    source: Literal["image", "pvc", "image-volume", "download"] = Field(
        default="image", description="image: they are in the box's image; pvc: a claim holds them; image-volume: an image "
                                     "of their own, "
        "mounted (Kubernetes 1.33 and later); download: a job fills the claim",
    )  # fmt: skip
    claim: Name | None = Field(default=None, description="pvc: one that is there; download: left out, one is made")
    size: Quantity | None = Field(default=None, description="of the claim; weights that do not fit are refused")
    storage_class: str | None = Field(default=None, description="of a claim that is made")
    access: Literal["ReadWriteMany", "ReadWriteOnce"] = Field(default="ReadWriteMany", description="of a claim that is made")
    image: Image | None = Field(default=None, description="image-volume: the image that holds them")
    download: Download | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs = {"image": None, "pvc": "claim", "image-volume": "image", "download": "download"}[self.source]
        if needs and getattr(self, needs) is None:
            raise ValueError(f"source: {self.source} needs {needs}")
        if self.source == "download" and self.claim is None and self.size is None:
            raise ValueError("source: download needs claim (one that is there) or size (of one to make)")
        if self.download and self.source != "download":
            raise ValueError("download is for source: download; write that, or leave download out")
        return self


class State(Strict):
    """The gateway's state folder: adapter versions, uploads, the audit trail, and SQLite where no database is named."""

    claim: Name | None = Field(default=None, description="one that is there")
    size: Quantity | None = Field(default=None, description="of a claim that is made; without either, state goes with the pod")
    storage_class: str | None = None
    access: Literal["ReadWriteMany", "ReadWriteOnce"] = Field(
        default="ReadWriteMany",
        description="of a claim that is made; several gateways, and a rolling update over nodes, need ReadWriteMany",
    )

    @property
    def kept(self) -> bool:
        """Whether state outlives its pod."""
        return bool(self.claim or self.size)


class Ingress(Strict):
    """How callers from outside come to the gateway."""

    class_name: str | None = Field(default=None, description="of an Ingress; left out: the cluster's default")
    tls_secret: str | None = Field(default=None, description="Secret with the certificate")
    annotations: Labels = Field(default_factory=dict, description="of the Ingress, for its controller")
    gateway: str | None = Field(
        default=None, pattern=_GATEWAY, description="[NAMESPACE/]NAME of a Gateway (Gateway API): an "
            "HTTPRoute is made "
        "in the Ingress's place; canaries of plain and keda need it",
    )  # fmt: skip
    namespaces: tuple[Name, ...] = Field(
        default=("ingress-nginx",), description="of the ingress controller: from there alone the gateway is reached"
    )


class Monitoring(Strict):
    """Prometheus Operator's ServiceMonitor, PodMonitor and PrometheusRule."""

    enabled: bool = False
    labels: Labels = Field(default_factory=dict, description="by which the operator finds them, such as release: prometheus")
    namespace: Name = Field(default="monitoring", description="of Prometheus: from there metrics are read")
    prometheus: str | None = Field(
        default=None, pattern=_URL, description="URL of Prometheus, for KEDA's trigger on the engine's queue"
    )
    first_token_seconds: float = Field(default=10, gt=0, description="95th percentile of the time to the first token that alerts")


class Network(Strict):
    """NetworkPolicies. They hold where the cluster's network enforces them."""

    enabled: bool = True
    egress_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(
        default=(),
        description="to which the gateway may connect anywhere, beside DNS and the servers that bundle and secrets name",
    )
    keda: Name = Field(default="keda", description="namespace of KEDA and its HTTP add-on")
    knative: tuple[Name, ...] = Field(
        default=("knative-serving", "kourier-system"), description="namespaces of Knative and its ingress"
    )


class Canary(Strict):
    """Another version that answers a share of the requests."""

    percent: int = Field(ge=1, le=99, description="of the requests, for this image")
    stable: str | None = Field(
        default=None, description="what answers the rest; knative: the name of the earlier revision; bentocloud: the "
                                  "earlier Bento's tag; "
        "left out elsewhere: plain and keda leave what is deployed as it is, kserve knows its earlier revision",
    )  # fmt: skip


class Compose(Strict):
    """Only for compose: one machine, with its stores."""

    address: str = Field(default="127.0.0.1:3000", pattern=_ADDRESS, description="of this machine, where the box is published")
    redis: Image = "redis:7.4-alpine"
    postgres: Image = Field(default="pgvector/pgvector:pg17", description="PostgreSQL with pgvector")
    qdrant: Image = "qdrant/qdrant:v1.15.4"
    prometheus: Image = "prom/prometheus:v3.5.0"


class BentoCloud(Strict):
    """Only for BentoCloud."""

    cluster: str | None = None
    gateway_instance: str = Field(default="cpu.2", description="instance type")
    engine_instance: str = Field(default="cpu.4", description="instance type")
    secrets: tuple[str, ...] = Field(default=(), description="BentoCloud's secrets, of type env, that hold the variables")
    engine_url: str | None = Field(
        default=None, pattern=_URL, description="of the engine's deployment, for the gateway: EKIBEN_ENGINE_URL"
    )


class Environment(Strict):
    """Where and how a box is served."""

    image: Image = Field(description="the box's image, as it was pushed")
    name: Name | None = Field(default=None, description="of everything that is made; left out: the bundle's name")
    namespace: Name = "default"
    host: str | None = Field(
        default=None,
        pattern=_HOST,
        description="name by which callers reach it; left out: no Ingress",
    )
    pull_secrets: tuple[str, ...] = Field(default=(), description="Secrets for the registry")
    longest_stream_seconds: int = Field(default=600, ge=10, description="the longest answer; a pod is given more to end")
    settings: dict[Annotated[str, Field(pattern=_SETTING)], str] = Field(
        default_factory=dict, description="further EKIBEN_ settings of the gateway that are no secrets"
    )
    gateway: Gateway = Gateway()
    engine: Engine = Engine()
    weights: Weights = Weights()
    state: State = State()
    secrets: Secrets = Secrets()
    ingress: Ingress = Ingress()
    monitoring: Monitoring = Monitoring()
    network: Network = Network()
    canary: Canary | None = Field(default=None, description="left out: this image answers everything")
    compose: Compose = Compose()
    bentocloud: BentoCloud = BentoCloud()
    _measurement: Measured | None = PrivateAttr(default=None)

    @field_validator("settings")
    @classmethod
    def _no_secrets(cls, told: dict[str, str]) -> dict[str, str]:
        secret = {f"EKIBEN_{name.upper()}" for name in Secrets.model_fields}
        if surplus := sorted(secret & set(told)):
            raise ValueError(f"{', '.join(surplus)} is a secret; name it by reference under secrets")
        return told

    @model_validator(mode="after")
    def _awake_in_time(self) -> Self:
        if self.wake_seconds > _LONGEST_WAKE:
            raise ValueError(
                f"an engine that may take {self.wake_seconds} s to wake is too slow to sleep (up to {_LONGEST_WAKE} s): shorten "
                "engine.cold_start_seconds (a compile cache, weights in the image) or engine.provision_seconds"
            )
        return self

    @property
    def start_seconds(self) -> int:
        """How long an engine may take to start before it is ended and started anew: three cold starts, a minute at least."""
        return max(math.ceil(3 * self.engine.cold_start_seconds / _PERIOD) * _PERIOD, 60)

    @property
    def wake_seconds(self) -> int:
        """How long a request waits for an engine that sleeps."""
        return self.start_seconds + math.ceil(self.engine.provision_seconds)

    @property
    def answer_seconds(self) -> int:
        """How long an answer may take with the engine's start: one that is not streamed has its head at its end."""
        return min(self.wake_seconds + self.longest_stream_seconds, _LONGEST_WAKE)

    @property
    def drain_seconds(self) -> int:
        """What a pod is given to end: the start that a request waits for, the longest stream, what comes before and after."""
        return self.longest_stream_seconds + 30 + (self.wake_seconds if self.sleeps else 0)

    @property
    def measurement(self) -> Measured | None:
        """What the file named by engine.measured holds, where this was read from a file that names one."""
        return self._measurement

    def hearing(self, measured: Measured) -> Self:
        """Return this with what was measured in the place of the engine's own fields."""
        figures = measured.model_dump(include={"cold_start_seconds", "saturation"}, exclude_none=True)
        copy = self.model_copy(update={"engine": self.engine.model_copy(update=figures)})
        copy._measurement = measured  # noqa: SLF001  our own
        return copy

    @property
    def sleeps(self) -> bool:
        """Whether the engine may be at zero."""
        return self.engine.replicas.min == 0


def read_environment(path: Path) -> Environment:
    """Read an environment file; raises BadEnvironment."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadEnvironment([f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})"]) from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        raise BadEnvironment([f"{path}:{where.line + 1 if where else 1}: not YAML"]) from None
    if isinstance(content, dict) and "image" not in content and {"model", "routes"} <= set(content):
        raise BadEnvironment([f"{path}: is a bundle; the environment file is another, such as examples/cluster.env.yaml"])
    if not isinstance(content, dict):
        raise BadEnvironment([f"{path}: a mapping is wanted, with image at least; `ekiben deploy schema` prints the fields"])
    try:
        environment = Environment.model_validate(content)
        return _measured(environment, path.parent)
    except ValidationError as error:
        raise BadEnvironment([f"{path.name}: {_told(one)}" for one in error.errors()]) from None


def json_schema() -> str:
    """Return the JSON schema of the environment file."""
    return json.dumps(Environment.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


WANTED = {
    QUANTITY: "no quantity, such as 500m or 6Gi",
    _NAME: "no name as Kubernetes wants it: a-z, 0-9 and -, up to 52 characters",
    _IMAGE: "no image, such as registry.example.com/team/ekiben:1.0: small letters, and no scheme before it",
    _SECRET: "no name of a Secret: a-z, 0-9, - and .",
    _KEY: "no key of a Secret: letters, digits, -, _ and .",
    _VARIABLE: "no name of a variable: letters, digits and _",
    _SETTING: "no setting of the project: they begin with EKIBEN_",
    _URL: "no URL such as https://models.example.com/a, without a password",
    _DIGEST: "no SHA-256: 64 hex digits, as sha256sum prints them",
    _METRIC: "no name of a metric: a-z, 0-9, _ and :",
    _GATEWAY: "no [NAMESPACE/]NAME of a Gateway: a-z, 0-9 and -",
    _HOST: "no host name, such as llm.example.com, without a scheme",
    _ADDRESS: "no ADDRESS:PORT, such as 127.0.0.1:3000",
}
"""What is said of a value that does not match; a regular expression tells a reader little."""


def _measured(environment: Environment, folder: Path) -> Environment:
    if (path := environment.engine.measured) is None:
        return environment
    try:
        found = Measured.model_validate_json((folder / path).read_bytes())
    except OSError as error:
        raise BadEnvironment([f"engine.measured: {path} cannot be read ({error.strerror})"]) from None
    except ValidationError:
        raise BadEnvironment(
            [f"engine.measured: {path} is no JSON with cold_start_seconds and saturation; `ekiben deploy measure` writes one"]
        ) from None
    return environment.hearing(found)


def _told(error: Any) -> str:
    # The value is left out, but of a quantity: it may be a secret in the wrong place.
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    kind, message = error["type"], re.sub("^Value error, ", "", error["msg"])
    if kind == "extra_forbidden":
        message = "unknown key; `ekiben deploy schema` prints those there are"
    elif kind == "missing":
        message = "is missing"
    elif kind == "string_pattern_mismatch":
        pattern, value = error["ctx"]["pattern"], error["input"]
        given = repr(value) if pattern == QUANTITY and len(value) <= _LONGEST_QUANTITY else "this"
        message = f"{given} is {WANTED[pattern]}"
    return f"{where}: {message}" if where else message
