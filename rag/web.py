"""Documents from web servers: only from hosts in a list, bounded in size and time, and never by way of a private address."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from rag.decoding import Unreadable

MAX_REDIRECTS = 5
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK = 200
_KINDS = {
    "text/html": ".html", "application/xhtml+xml": ".html", "text/markdown": ".md", "text/plain": ".txt", "text/csv": ".csv",
    "application/pdf": ".pdf", "application/jsonl": ".jsonl", "application/x-ndjson": ".jsonl",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """What a server gave: the bytes, their kind as a file's suffix, and the encoding that it told, or nothing."""

    data: bytes
    kind: str
    declared: str


@dataclass(frozen=True)
class Web:
    """Fetches from the hosts in `allow`: names (also `*.example.com`), `name:port`, addresses, networks (10.2.0.0/16).

    A name without a port stands for ports 80 and 443. Names must lead to public addresses, unless the address is in the
    list too. `seconds` and `max_bytes` bound a page with all its redirects. The environment's proxies are not used.
    """

    allow: Sequence[str]
    max_bytes: int
    seconds: float = 30.0

    def fetch(self, url: str) -> Page:
        """Return a page; raises Unreadable."""
        try:
            return asyncio.run(self._fetch(URL(url)))
        except TimeoutError as error:
            raise Unreadable(f"not fetched within {self.seconds:g} s") from error
        except Unreadable:
            raise
        except (ClientError, OSError, ValueError) as error:  # ValueError: a URL that is none
            raise Unreadable(f"not fetched: {type(error).__name__}: {error}") from error

    def refusal(self, url: URL) -> str | None:
        """Return why a URL may not be asked, or None; where a name leads is checked when it is asked."""
        if url.scheme not in _PORTS or not url.host:
            return f"{url} is no http or https URL"
        if url.user is not None or url.password is not None:
            return "names and passwords do not belong into a URL"
        listed = any(self._fits(entry, url) for entry in self.allow)
        return None if listed else f"host {url.host} (port {url.port}) is not in allow_hosts; add it if it is to be trusted"

    async def _fetch(self, url: URL) -> Page:
        connector = TCPConnector(resolver=_Resolver(self), use_dns_cache=False)
        timeout = ClientTimeout(total=self.seconds)
        agent = {"user-agent": "ekiben"}
        async with (
            asyncio.timeout(self.seconds),
            ClientSession(connector=connector, timeout=timeout, cookie_jar=DummyCookieJar(), headers=agent) as session,
        ):
            for _ in range(MAX_REDIRECTS + 1):
                if reason := self.refusal(url):
                    raise Unreadable(reason)
                async with session.get(url, allow_redirects=False) as response:
                    if response.status in _REDIRECTS and "location" in response.headers:
                        following = url.join(URL(response.headers["location"]))
                        if (url.scheme, following.scheme) == ("https", "http"):
                            raise Unreadable(f"redirected from https to {following}; name that if it is to be trusted")
                        url = following
                        continue
                    if response.status != _OK:
                        raise Unreadable(f"not fetched: the server answers {response.status}")
                    return await self._page(url, response)
        raise Unreadable(f"redirected more than {MAX_REDIRECTS} times")

    async def _page(self, url: URL, response: Any) -> Page:
        data = bytearray()
        async for piece in response.content.iter_chunked(64 * 1024):
            data += piece
            if len(data) > self.max_bytes:
                raise Unreadable(f"over {self.max_bytes // 2**20} MiB")
        suffix = PurePosixPath(url.path).suffix.lower()
        kind = _KINDS.get(response.content_type, suffix)
        if kind == ".txt" and suffix in {".md", ".csv", ".tsv", ".jsonl"}:  # servers know few kinds
            kind = suffix
        return Page(bytes(data), kind, response.charset or "")

    def _fits(self, entry: str, url: URL) -> bool:
        address = _address(url.host or "")
        if address is not None:
            network, port = _network(entry)
            return network is not None and address in network and url.port in ([port] if port else _PORTS.values())
        name, _, port = entry.lower().partition(":")
        host = (url.host or "").lower().rstrip(".")
        known = host.endswith(name[1:]) if name.startswith("*.") else host == name
        return known and (str(url.port) == port if port else url.port == _PORTS[url.scheme])

    def reaches(self, address: str) -> bool:
        """Whether a name may lead to this address: it is public, or in the list."""
        found = _address(address)
        if found is None:
            return False
        networks = [network for network, _ in map(_network, self.allow) if network is not None]
        return (found.is_global and not found.is_multicast) or any(found in network for network in networks)


class _Resolver(AbstractResolver):
    """Names to addresses; the connection is made to the very address that was looked at."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._system = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        """Return the addresses that may be asked; raises Unreadable where there is none."""
        found = await self._system.resolve(host, port, family)
        allowed = [one for one in found if self._web.reaches(one["host"])]
        if not allowed:
            raise Unreadable(
                f"{host} leads to a private address ({found[0]['host']}); add the address to allow_hosts if it is meant"
            )
        return allowed

    async def close(self) -> None:
        """Nothing is held."""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def _network(entry: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network | None, int | None]:
    bare, _, port = entry.rpartition(":") if entry.count(":") == 1 else (entry, "", "")
    try:
        return ipaddress.ip_network(bare.strip("[]"), strict=False), int(port) if port else None
    except ValueError:
        return None, None
