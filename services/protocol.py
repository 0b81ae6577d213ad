"""OpenAI's wire format: requests as pydantic models, SSE frames, and what an answer says of its making."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from services.errors import InvalidRequest
from services.parameters import SamplingParameters

DONE = b"data: [DONE]\n\n"
MAX_QUERY = 8_000  # characters; twice what a search reads


class TextPart(BaseModel):
    """One text part of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One chat message; fields that clients send back from earlier answers are tolerated and dropped."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None

    @property
    def characters(self) -> int:
        """How long its text is."""
        if isinstance(self.content, str):
            return len(self.content)
        return len("\n".join(part.text for part in self.content or ()))

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            msg = "content is missing"
            raise ValueError(msg)
        return self


class FunctionCall(BaseModel):
    """A call of a function, as the model wrote it."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A tool call inside an assistant's message."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = Field(default=None, exclude=True)


class _Request(SamplingParameters):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=16)
    # Accepted and not used: they mean nothing to an engine of one's own.
    user: str | None = Field(default=None, exclude=True)
    metadata: dict[str, str] | None = Field(default=None, exclude=True)
    store: Literal[False] | None = Field(default=None, exclude=True)
    service_tier: str | None = Field(default=None, exclude=True)
    safety_identifier: str | None = Field(default=None, exclude=True)
    prompt_cache_key: str | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            msg = "stream_options is allowed only with stream=true"
            raise ValueError(msg)
        return self

    @property
    def answers(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    def payload(self, defaults: SamplingParameters) -> dict[str, Any]:
        """Return what goes to the engine: the request's own values over the route's defaults."""
        return defaults.model_dump(exclude_none=True) | self.model_dump(exclude_none=True, exclude={"model"})


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None

    def payload(self, defaults: SamplingParameters) -> dict[str, Any]:
        """As the base's; `max_completion_tokens` of a request overrides a route's `max_tokens`."""
        if self.max_completion_tokens is not None:
            defaults = defaults.model_copy(update={"max_tokens": None})
        return super().payload(defaults)


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | list[int]
        | Annotated[list[list[int]], Field(min_length=1, max_length=64)]
    )
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    response_format: dict[str, Any] | None = None

    @property
    def answers(self) -> int:
        """How many answers are asked for: `n` to each prompt."""
        several = isinstance(self.prompt, list) and bool(self.prompt) and not isinstance(self.prompt[0], int)
        return (len(self.prompt) if several else 1) * (self.n or 1)


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings. `input_type` tells a question from a document, where the model knows the difference."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field(min_length=1)
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=256)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    input_type: Literal["query", "passage"] = "query"
    user: str | None = None


class SearchRequest(BaseModel):
    """POST /v1/rag/search: what a route's collection holds about a query."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field(min_length=1)
    query: str = Field(min_length=1, max_length=MAX_QUERY)
    top_k: int | None = Field(default=None, ge=1, le=50)
    user: str | None = None


LONGEST_DOCUMENT = 1_000_000
"""Characters of a document that is handed in."""


class NewDocument(BaseModel):
    """A document of a caller's own. `labels` say which roles of his tenant may find it; none: all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = Field(pattern=r"^[\w][\w.@ -]{0,127}$")
    text: str = Field(min_length=1, max_length=LONGEST_DOCUMENT, pattern=r"\S")
    title: str = Field(default="", max_length=500)
    labels: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(default=[], max_length=64)
    language: Literal["", "en", "zh"] = ""
    date: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")


class DocumentsRequest(BaseModel):
    """POST /v1/rag/documents: documents for the collection that a route answers from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field(min_length=1)
    documents: list[NewDocument] = Field(min_length=1, max_length=64)


class VectorStoreSearchRequest(BaseModel):
    """POST /v1/vector_stores/{route}/search, OpenAI's form of the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    query: str = Field(min_length=1, max_length=MAX_QUERY)
    max_num_results: int = Field(default=10, ge=1, le=50)


class FileAttributes(BaseModel):
    """What a file is attached with: `labels` are roles between commas."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    labels: str = Field(default="", max_length=512)
    title: str = Field(default="", max_length=500)
    language: Literal["", "en", "zh"] = ""
    date: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")

    @property
    def labelled(self) -> tuple[str, ...]:
        """The labels, each once."""
        return tuple(sorted({label.strip() for label in self.labels.split(",") if label.strip()}))


class _Chunking(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["auto"]  # the collection's chunk_characters


class VectorStoreFileRequest(BaseModel):
    """POST /v1/vector_stores/{route}/files: a file for the collection that a route answers from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file_id: str = Field(min_length=1, max_length=64)
    attributes: FileAttributes = FileAttributes()
    chunking_strategy: _Chunking | None = None


R = TypeVar("R", bound=BaseModel)


def parse(kind: type[R], body: bytes) -> R:
    """Parse a request's body; raises InvalidRequest that names the field."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON in UTF-8: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        param = _param(first["loc"])
        if first["type"] == "extra_forbidden":
            message, code = f"Unrecognized request argument supplied: {param}", "unknown_parameter"
        elif first["type"] == "missing":
            message, code = f"Missing required parameter: {param}", "missing_required_parameter"
        else:
            message, code = (
                f"Invalid value for {param or 'the request'}: {first['msg'].removeprefix('Value error, ')}",
                "invalid_value",
            )
        raise InvalidRequest(message, param=param or None, code=code) from None


def _param(where: tuple[int | str, ...]) -> str:
    """OpenAI writes messages[0].content; the names of pydantic's union branches are left out."""
    out = ""
    for part in where:
        if isinstance(part, int):
            out += f"[{part}]"
        elif part.isidentifier() and not part[0].isupper() and part not in {"str", "int", "list"}:
            out += f".{part}" if out else part
    return out


def frame(event: dict[str, Any]) -> bytes:
    """Return one SSE frame."""
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def plain_text(message: dict[str, Any]) -> str:
    """Return the text of a chat message."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or [])
