"""Settings of one process, from EKIBEN_* environment variables: the only reader of the environment."""

from __future__ import annotations

import os  # noqa: TID251  here it is read
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[1]


class Settings(BaseSettings):
    """What differs from one machine to the next; everything else stands in bundle.yaml."""

    model_config = SettingsConfigDict(env_prefix="EKIBEN_", frozen=True, extra="ignore")

    bundle: Path = Field(default=ROOT / "bundle.yaml", description="the bundle file")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="what the engine runs on")
    engine_port: int = Field(default=8421, ge=1, le=65535, description="port of the engine")
    engine_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="bearer token of the engine: one that is started asks for it, the gateway sends it",
    )
    engine_host: str = Field(
        default="127.0.0.1", min_length=1, description="where `ekiben engine serve` listens; others than loopback need engine_key"
    )
    engine_drain_seconds: int = Field(
        default=0, ge=0, description="what `ekiben engine serve` gives answers under way at a SIGTERM; 0: they are cut"
    )
    criu: Path | None = Field(
        default=None, description="the criu that makes and restores snapshots (default: that on the PATH, or /opt/criu/criu)"
    )
    engine_url: str | None = Field(default=None, description="an engine that runs elsewhere; none is started then")
    engine_sleeps: bool = Field(
        default=False, description="engine_url is something that holds requests and starts the engine: it is never polled"
    )
    engine_wake_seconds: float = Field(
        default=300.0, gt=0, le=3600, description="how long a request waits for an engine that sleeps, its start included"
    )
    keepalive_seconds: float = Field(
        default=10.0, gt=0, description="a stream whose answer has not begun for so long gets a comment, and one each time again"
    )
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, description="longest request body, in bytes")
    max_file_bytes: int = Field(default=32 * 1024 * 1024, ge=1024, description="longest file that is handed in, in bytes")
    max_files: int = Field(default=1000, ge=1, description="files that a tenant may have")
    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "ekiben",
        description="what `ekiben model tune` measured on this machine, and snapshots of its engine",
    )
    admin_token: SecretStr | None = Field(
        default=None, min_length=16, description="bearer token of the admin API; without one the admin API is off"
    )
    guard_key: SecretStr | None = Field(
        default=None, min_length=16, description="makes the hashes and canaries of guards; the same for every replica"
    )
    state_dir: Path = Field(
        default_factory=lambda: Path.home() / ".local" / "state" / "ekiben",
        description="which adapter versions are served, and documents that callers added; replicas that share it agree",
    )
    database_url: SecretStr | None = Field(
        default=None, description="keys and spend: sqlite:///FILE or postgresql://USER@HOST/NAME (default: a file in state_dir)"
    )
    redis_url: SecretStr | None = Field(
        default=None, description="limits and cached answers of all replicas: redis://HOST:6379; without it each has its own"
    )
    audit_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="seals the audit trail: who does not have it cannot forge a line; else it is hashed",
    )
    audit_text_key: SecretStr | None = Field(
        default=None, min_length=16, description="encrypts texts in the audit trail; without it none are kept"
    )
    alert_webhook: SecretStr | None = Field(default=None, description="URL to which alerts of budgets are posted, as JSON")
    engine_grace_seconds: float = Field(
        default=30.0, ge=0, description="how long the engine beside the gateway may be away before /livez fails"
    )

    @field_validator("engine_key")
    @classmethod
    def _in_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key and not all("!" <= character <= "~" for character in key.get_secret_value()):
            raise ValueError("letters, digits and signs alone, without a space or an end of line: it travels in a header")
        return key

    @field_validator("engine_url")
    @classmethod
    def _over_http(cls, url: str | None) -> str | None:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("a URL that begins with http:// or https:// is wanted")
        return url

    @field_validator("engine_host")
    @classmethod
    def _guarded(cls, host: str, info: ValidationInfo) -> str:
        if "engine_key" in info.data and info.data["engine_key"] is None and not _loopback(host):
            raise ValueError("other machines could reach the engine there: set EKIBEN_ENGINE_KEY too, or listen on 127.0.0.1")
        return host

    @field_validator("engine_sleeps")
    @classmethod
    def _elsewhere(cls, sleeps: bool, info: ValidationInfo) -> bool:  # noqa: FBT001  pydantic calls it so
        if sleeps and info.data.get("engine_url") is None:
            raise ValueError("an engine that sleeps runs behind something that wakes it: set EKIBEN_ENGINE_URL to that")
        return sleeps

    @field_validator("redis_url", "alert_webhook")
    @classmethod
    def _of_a_server(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        schemes = ("http://", "https://") if info.field_name == "alert_webhook" else ("redis://", "rediss://", "unix://")
        if url and not url.get_secret_value().startswith(schemes):
            raise ValueError(f"a URL that begins with {' or '.join(schemes)} is wanted")
        return url

    @property
    def lock(self) -> Path:
        """`bundle.lock`, beside the bundle file."""
        return self.bundle.with_suffix(".lock")

    @property
    def snapshots(self) -> Path:
        """The folder of the snapshots of warmed engines."""
        return self.cache_dir / "snapshots"

    @property
    def hash_key(self) -> bytes | None:
        """`guard_key` as the guards take it."""
        return self.guard_key.get_secret_value().encode() if self.guard_key else None

    def registry(self, bundle: str) -> Path:
        """The file that says which adapter versions of a bundle are served."""
        return self.state_dir / bundle / "adapters.json"

    def uploads(self, bundle: str, collection: str) -> Path:
        """The folder of the documents that callers added to a collection."""
        return self.state_dir / bundle / "uploads" / collection

    def files(self, bundle: str) -> Path:
        """The folder of the files that callers handed in."""
        return self.state_dir / bundle / "files"

    def audit(self, bundle: str) -> Path:
        """The folder of a bundle's audit trail."""
        return self.state_dir / bundle / "audit"

    @property
    def database(self) -> str:
        """URL of the database of keys and spend."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.state_dir / 'ekiben.db'}"

    @property
    def engine_token(self) -> str | None:
        """`engine_key` as the engine takes it."""
        return self.engine_key.get_secret_value() if self.engine_key else None

    @property
    def engine(self) -> str:
        """Base URL of the engine."""
        return (self.engine_url or f"http://127.0.0.1:{self.engine_port}").rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def environment(name: str) -> str | None:
    """Return a variable that bundle.yaml names."""
    return os.environ.get(name)


class SettingsError(ValueError):
    """A variable of the environment that cannot be used; the message names it, and never its value: that may be a secret."""


def load_settings() -> Settings:
    """Read the settings now; nothing is read at import. Raises SettingsError."""
    try:
        return Settings()  # pyright: ignore[reportCallIssue]  every field has a default
    except ValidationError as error:
        told = (f"EKIBEN_{str(one['loc'][0]).upper()}: {_short(one['type'], one['msg'])}" for one in error.errors())
        raise SettingsError("; ".join(told)) from None


def _short(kind: str, message: str) -> str:
    # Pydantic speaks of items where a secret's characters are meant.
    return "at least 16 characters are needed" if kind == "too_short" else message.removeprefix("Value error, ")
