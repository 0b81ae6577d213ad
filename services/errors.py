"""What can go wrong, and the one map from it to HTTP and OpenAI's error JSON.

EkibenError
├── InvalidRequest          400
│   └── ContentRefused      400  a guard refused it
├── Unauthorized            401  no key or token, a wrong one, or one that has expired
├── Forbidden               403  the caller's roles, or his key, do not allow it
├── UnknownModel            404  no such route, or its adapter is not loaded
├── UnknownDocument         404  no such document of the caller's tenant
├── UnknownKey              404  no API key of that id
├── AdapterRefused          409  the gate, or there is no slot
├── KeyRefused              409  an API key that has ended
├── BodyTooLarge            413
├── RateLimited             429  a limit of the caller's key, tenant or route
├── BudgetExceeded          429  of a key or a tenant, for a day or a month
├── EngineRefused           4xx  the engine's own verdict on the request
└── Unavailable             503
    ├── EngineUnavailable   503  not up, or lost
    ├── Overloaded          503  it has more work than it can do
    ├── GuardUnavailable    503  a detector failed: nothing passes unguarded
    ├── KeysUnavailable     503  the database of API keys is away: nobody unknown passes
    ├── AuditUnavailable    503  the audit trail cannot be written: nothing is answered unrecorded
    └── BudgetUnavailable   503  what was spent is not known now: nothing is spent
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class EkibenError(Exception):
    """Base of every error that a caller may see; `message` is safe to show and holds no text of the request."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after: int | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        return {"retry-after": str(self.retry_after)} if self.retry_after is not None else {}


class InvalidRequest(EkibenError):
    """The request is not of the API's form."""

    status = 400
    type = "invalid_request_error"


class ContentRefused(InvalidRequest):
    """A guard refused the content."""

    code = "content_filter"


class UnknownModel(EkibenError):
    """No route bears that name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class UnknownDocument(EkibenError):
    """The caller's tenant has no document of that id."""

    status = 404
    type = "invalid_request_error"
    code = "document_not_found"


class Forbidden(EkibenError):
    """The caller's roles, or his key, do not allow it."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class Unauthorized(EkibenError):
    """No key or token, a wrong one, or one that has expired."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        """Return the challenge that HTTP asks for."""
        return {**super().headers(), "www-authenticate": "Bearer"}


class UnknownKey(EkibenError):
    """There is no API key of that id."""

    status = 404
    type = "invalid_request_error"
    code = "key_not_found"


class KeyRefused(EkibenError):
    """An API key that has ended cannot be changed so."""

    status = 409
    type = "invalid_request_error"
    code = "key_refused"


class AdapterRefused(EkibenError):
    """An adapter that may not be served, or a change of adapters that cannot be made."""

    status = 409
    type = "invalid_request_error"
    code = "adapter_refused"


class BodyTooLarge(EkibenError):
    """The body is over the size cap."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimited(EkibenError):
    """A limit is reached; without `retry_after` the request alone is more than it, and trying again is of no use."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, retry_after: float | None = None, limits: Mapping[str, str] | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))
        self._limits = dict(limits or {})

    def headers(self) -> dict[str, str]:
        """Return Retry-After and the x-ratelimit-* headers; OpenAI's clients heed x-should-retry."""
        return {**self._limits, **(super().headers() if self.retry_after is not None else {"x-should-retry": "false"})}


class BudgetExceeded(EkibenError):
    """The budget of a key or a tenant is spent until its day or month is over."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        """Return Retry-After, and what keeps OpenAI's clients from trying again at once."""
        return {**super().headers(), "x-should-retry": "false"}


class EngineRefused(EkibenError):
    """The engine found the request wrong; its status is passed on where it is a 4xx."""

    type = "invalid_request_error"

    def __init__(
        self, message: str, *, status: int, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status, self.retry_after = status, retry_after


class Unavailable(EkibenError):
    """Try again later."""

    status = 503
    type = "server_error"
    retry_after = 5


class EngineUnavailable(Unavailable):
    """The engine is not up, or was lost on the way."""

    code = "engine_unavailable"


class Overloaded(Unavailable):
    """The engine has more work than it can do; this request was not begun."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class GuardUnavailable(Unavailable):
    """A detector failed."""

    code = "guard_unavailable"


class KeysUnavailable(Unavailable):
    """API keys cannot be looked up."""

    code = "keys_unavailable"


class RetrievalUnavailable(Unavailable):
    """The documents could not be searched."""

    code = "retrieval_unavailable"


class AuditUnavailable(Unavailable):
    """The audit trail cannot be written."""

    code = "audit_unavailable"


class BudgetUnavailable(Unavailable):
    """What was spent cannot be looked up."""

    code = "budget_unavailable"
