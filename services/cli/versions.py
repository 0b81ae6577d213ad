"""`ekiben adapter add|list|load|unload|promote|rollback|remove`: the life of an adapter's versions.

`add`, `list` and `remove` work on the model store of this machine. The others ask the admin API of a box that serves; what
they change holds on every replica that shares its state, also after a restart.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from services.cli.console import Bar, BundleOption, JsonOption, fail, load, out, reported
from services.settings import load_settings

app = typer.Typer()
UrlOption = Annotated[str, typer.Option("--url", help="The box that serves.")]
BOX = "http://127.0.0.1:3000"
Versioned = Annotated[str, typer.Argument(help="NAME@VERSION, as `ekiben adapter list` prints it.")]
Alias = Annotated[str, typer.Option("--alias", help="The name that routes use: live, or one of yours, such as canary.")]


@app.command("add")
def adapter_add(folder: Annotated[Path, typer.Argument(help="The adapter's folder.")], bundle: BundleOption = None) -> None:
    """Check an adapter, try it in an engine, and put this version of it into the model store; prints NAME@VERSION.

    Nothing that serves changes: `ekiben adapter load` or `promote` does that.
    """
    loaded = load(bundle)
    from adapters.manifest import read_manifest
    from services.lock import read_lock
    from services.packing import pack_adapters

    with reported(), Bar() as bar:
        lock = read_lock((bundle or load_settings().bundle).with_suffix(".lock"))
        name = read_manifest(folder).name
        if name not in loaded.bundle.adapters:
            fail(f"the bundle has no adapter named {name!r}; there is: {', '.join(loaded.bundle.adapters) or 'none'}")
        tags = pack_adapters(loaded, lock.model, {name: folder}, bar)
    out.print(f"{name}@{tags[name].rpartition(':')[2]}", markup=False)


@app.command("list")
def adapter_list(bundle: BundleOption = None, as_json: JsonOption = False) -> None:  # noqa: FBT002  typer's way
    """List the versions in the model store, what stands behind each alias, and what the boxes of this machine are to hold."""
    loaded = load(bundle)
    from adapters.registry import RegistryFile
    from services.lock import read_lock
    from services.store import stored_versions

    settings = load_settings()
    with reported():
        lock = read_lock((bundle or settings.bundle).with_suffix(".lock"))
        state = RegistryFile(settings.registry(lock.name)).read()
    rows: list[dict[str, Any]] = []
    for name in loaded.bundle.adapters:
        for version, created in stored_versions(lock.adapter_tag(name, "").rstrip(":")):
            held = next((one for one in state.loaded if (one.name, one.version) == (name, version)), None)
            rows.append({
                "adapter": f"{name}@{version}", "added": created, "packed": lock.adapters[name].endswith(version),
                "aliases": state.aliases_of(name, version), "loaded": held is not None, "pinned": bool(held and held.pinned),
            })  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for head in ("adapter", "added", "packed", "aliases", "loaded", "pinned"):
        table.add_column(head, no_wrap=True, overflow="ignore")
    for row in rows:
        marks = ("yes" if row[key] else "-" for key in ("loaded", "pinned"))
        table.add_row(row["adapter"], row["added"], "yes" if row["packed"] else "-", ", ".join(row["aliases"]) or "-", *marks)
    out.print(table)


@app.command("load")
def adapter_load(
    adapter: Versioned,
    url: UrlOption = BOX,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict it to make room for another.")] = False,  # noqa: FBT002
) -> None:
    """Load a version into a box that serves, beside what it holds. Needs EKIBEN_ADMIN_TOKEN.

    When all slots are taken, the version that was used least recently makes room, unless it is pinned or an alias stands for it.
    """
    _ask(url, "load", {"adapter": adapter, "pin": pin})


@app.command("unload")
def adapter_unload(adapter: Versioned, url: UrlOption = BOX) -> None:
    """Let a box let go of a version: what it is answering it finishes; later requests get a 404. Needs EKIBEN_ADMIN_TOKEN."""
    _ask(url, "unload", {"adapter": adapter})


@app.command("promote")
def adapter_promote(adapter: Versioned, alias: Alias = "live", url: UrlOption = BOX) -> None:
    """Load a version if need be, then let an alias stand for it, from one request to the next. Needs EKIBEN_ADMIN_TOKEN."""
    _ask(url, "promote", {"adapter": adapter, "alias": alias})


@app.command("rollback")
def adapter_rollback(
    name: Annotated[str, typer.Argument(help="The adapter's name.")], alias: Alias = "live", url: UrlOption = BOX
) -> None:
    """Let an alias stand for what it stood for before. Needs EKIBEN_ADMIN_TOKEN."""
    _ask(url, "rollback", {"adapter": name, "alias": alias})


@app.command("remove")
def adapter_remove(adapter: Versioned, bundle: BundleOption = None) -> None:
    """Delete a version from the model store; refused while it is packed, loaded, or an alias stands for it."""
    load(bundle)
    from adapters.registry import Reference, RegistryFile
    from services.lock import read_lock
    from services.store import delete, is_stored

    settings = load_settings()
    with reported():
        name, version = Reference.parse(adapter)
        lock = read_lock((bundle or settings.bundle).with_suffix(".lock"))
        state = RegistryFile(settings.registry(lock.name)).read()
        tag = lock.adapter_tag(name, version)
        if tag in lock.adapters.values():
            fail(f"{adapter} is what the bundle was packed with; pack another version first")
        if state.holds(name, version) or state.aliases_of(name, version):
            fail(f"{adapter} is loaded, or an alias stands for it; `ekiben adapter unload` or `promote` another first")
        if not is_stored(tag):
            fail(f"{adapter} is not in the model store; `ekiben adapter list` prints what is")
        delete(tag)
    out.print(f"removed {adapter}", markup=False)


def _ask(url: str, change: str, body: dict[str, Any]) -> None:
    token = load_settings().admin_token
    if token is None:
        fail("set EKIBEN_ADMIN_TOKEN to the token that the box was started with")
    status, answer = asyncio.run(_post(f"{url.rstrip('/')}/admin/adapters/{change}", body, token.get_secret_value()))
    if status is None:
        fail(f"nothing answers at {url}: {answer['error']['message']}")
    if "error" in answer:
        fail(answer["error"]["message"])
    out.print(f"{change}: {answer['adapter']}", markup=False)


async def _post(url: str, body: dict[str, Any], token: str) -> tuple[int | None, dict[str, Any]]:
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=180)) as session,
            session.post(url, json=body, headers={"authorization": f"Bearer {token}"}) as response,
        ):
            return response.status, await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return None, {"error": {"message": str(error) or type(error).__name__}}
