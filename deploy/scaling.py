"""How an upstream is started on Kubernetes: by the scale of its Deployment.

Takes a service account that may `get` and `patch` `deployments/scale` of this one name, and nothing else. Nothing is kept: the
scale is read before it is changed, so who else scales it (an operator, an HPA, which rests at zero) is not fought.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import aiohttp

from deploy.lifecycle import StartFailed, StopFailed

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Workload:
    """The Deployment that is scaled."""

    namespace: str
    name: str

    @property
    def path(self) -> str:
        """Return the path of its scale subresource."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.name}/scale"

    def __str__(self) -> str:
        return f"Deployment {self.name} in the namespace {self.namespace}"


class _ApiRefused(Exception):
    """The API server did not do it."""


class ScaleStarter:
    """The upstream is a workload of a cluster; it is scaled from 0 to `replicas` and back.

    `api` is the API server's URL. `account` has `token`, read again for each call since it is changed from time to time, and
    `ca.crt`; a folder without them is for a proxy that authenticates by itself. `stop_seconds` bounds the wait for zero.
    """

    def __init__(
        self, workload: Workload, api: str, *, replicas: int = 1, account: Path = ACCOUNT, stop_seconds: float = 60.0
    ) -> None:
        self._workload, self._api, self._replicas = workload, api.rstrip("/"), replicas
        self._account, self._stop_seconds = account, stop_seconds

    @property
    def leaves_running(self) -> bool:
        """Return True: a scale above zero is left as it is."""
        return True

    async def running(self) -> bool | None:
        """Whether its scale is above zero; raises StartFailed."""
        try:
            return _wanted(await self._call("GET")) > 0
        except _ApiRefused as error:
            raise StartFailed(str(error)) from error

    async def start(self) -> None:
        """Scale it up if its scale is zero; raises StartFailed."""
        try:
            if _wanted(await self._call("GET")) == 0:
                await self._call("PATCH", self._replicas)
        except _ApiRefused as error:
            raise StartFailed(str(error)) from error

    async def stop(self) -> None:
        """Scale it to zero and wait until no replica counts any more; raises StopFailed."""
        try:
            await self._call("PATCH", 0)
            async with asyncio.timeout(self._stop_seconds):
                while _present(await self._call("GET")) > 0:  # noqa: ASYNC110  the state of another process
                    await asyncio.sleep(_POLL_SECONDS)
        except _ApiRefused as error:
            raise StopFailed(str(error)) from error
        except TimeoutError as error:
            raise StopFailed(f"{self._workload} still had replicas after {self._stop_seconds:g} s") from error

    async def ended(self) -> str:
        """Never return: the cluster replaces what ends."""
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self) -> None:
        """Leave it as it is: the next activator finds it running, and stops it when it is idle."""

    async def _call(self, method: Literal["GET", "PATCH"], replicas: int | None = None) -> Any:
        headers, body = {"Accept": "application/json"}, None
        if replicas is not None:
            headers["Content-Type"], body = "application/merge-patch+json", f'{{"spec":{{"replicas":{replicas}}}}}'
        try:
            certificates, token = self._account / "ca.crt", self._account / "token"
            if token.exists():
                headers["Authorization"] = f"Bearer {token.read_text().strip()}"
            context = ssl.create_default_context(cafile=certificates if certificates.exists() else None)
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), timeout=_TIMEOUT) as session,
                session.request(method, self._api + self._workload.path, headers=headers, data=body) as response,
            ):
                if response.status != HTTPStatus.OK:
                    raise _ApiRefused(self._why(method, response.status, await response.text()))
                return await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _ApiRefused(f"the API server at {self._api} cannot be asked: {str(error) or type(error).__name__}") from error

    def _why(self, method: str, status: int, said: str) -> str:
        if status == HTTPStatus.FORBIDDEN:
            return (
                f"the service account may not {method} the scale of {self._workload}; "
                f"give it a Role with the verbs get and patch on deployments/scale"
            )
        if status == HTTPStatus.NOT_FOUND:
            return f"there is no {self._workload}"
        return f"the API server answered {status} for the scale of {self._workload}: {said.strip()[:300]}"


def _wanted(scale: Any) -> int:
    return int((scale.get("spec") or {}).get("replicas") or 0)


def _present(scale: Any) -> int:
    return int((scale.get("status") or {}).get("replicas") or 0)
