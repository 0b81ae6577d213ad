"""`ekiben bento`: the Bento built, looked at, verified, compared."""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.console import Bar, DeviceOption, JsonOption, err, fail, load, out, reported

app = typer.Typer(help="The Bento.", no_args_is_help=True)
Which = Annotated[
    str | None,
    typer.Argument(help="A tag, a version, a Bento's folder, or an exported .bento file (default: what this folder makes)."),
]


@app.command("version")
def bento_version() -> None:
    """Print the version of the Bento that this folder makes: a function of the files that are packed."""
    from services.bento import version_here

    with reported():
        sys.stdout.write(version_here() + "\n")


@app.command("build")
def bento_build(device: DeviceOption = None) -> None:
    """Build the Bento, with a version and with bytes that follow from its inputs.

    The same files over the same models give the same Bento, wherever and whenever it is built; one that is in the store
    already is left alone. manifest.json in it lists everything with digests. An interrupted build leaves nothing in the store.
    """
    from services.bento import build
    from services.target import find_target

    load(None, device, folders=False)
    with reported(), Bar() as bar:
        tag = build(bar, find_target(device) if device else None)
    if tag is None:
        err.print("it is in the store already", markup=False)
    sys.stdout.write(f"{tag or _here()}\n")


@app.command("list")
def bento_list(as_json: JsonOption = False) -> None:  # noqa: FBT002  typer's way
    """List this bundle's Bentos in the store, and which of them this folder makes."""
    from services.bento import tag_here
    from services.manifest import BentoError, read_manifest
    from services.store import bento_path, bento_versions

    with reported():
        here = tag_here()
        name = here.partition(":")[0]
        rows: list[dict[str, Any]] = []
        for version in bento_versions(name):
            tag = f"{name}:{version}"
            try:
                model = read_manifest(bento_path(tag)).model.tag
            except BentoError:
                model = None
            rows.append({"tag": tag, "model": model, "here": tag == here})
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    if not rows:
        err.print(f"the store has no Bento of {name}; `ekiben bento build` makes one", markup=False)
        return
    told = [[row["tag"], row["model"] or "not from `ekiben bento build`", "this folder's" if row["here"] else ""] for row in rows]
    _print([["bento", "model", ""], *told])


@app.command("inspect")
def bento_inspect(which: Which = None, as_json: JsonOption = False) -> None:  # noqa: FBT002  typer's way
    """Print what is in a Bento: model, adapters, indexes, prompts, policies, packages. --json prints its manifest."""
    from services.manifest import PackedAdapter, PackedIndex, PackedModel, manifest_digest, read_manifest
    from services.verification import opened

    with reported(), opened(_which(which)) as place:
        manifest, digest = read_manifest(place.folder), manifest_digest(place.folder)
    if as_json:
        sys.stdout.write(json.dumps(manifest.model_dump(exclude_none=True), indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return
    rows = [["what", "tag or version", "MB", ""]]
    for what, stored in manifest.stored().items():
        told = stored.license or ""
        if isinstance(stored, PackedModel):
            told = f"{stored.recipe} of {stored.source}"
        elif isinstance(stored, PackedAdapter):
            told = f"rank {stored.rank}" + (f", accuracy {stored.accuracy}" if stored.accuracy is not None else "")
        elif isinstance(stored, PackedIndex):
            told = f"{stored.chunks} chunks of {stored.documents} documents, {stored.embedder}"
        rows.append([what, stored.tag, f"{stored.bytes / 1e6:.1f}", told])
    for kind, versions in (("prompt", manifest.prompts), ("policy", manifest.policies)):
        rows += [[f"{kind} {name}", version, "", ""] for name, version in versions.items()]
    out.print(f"{manifest.tag}  {digest}", markup=False)
    _print(rows)
    out.print(
        f"Python {manifest.python}, {len(manifest.packages)} packages with {manifest.hashes} hashes, {len(manifest.files)} files",
        markup=False,
    )


@app.command("verify")
def bento_verify(
    which: Which = None,
    digest: Annotated[
        str, typer.Option("--digest", help="What the manifest's digest must be: sha256:HEX, from who built it.")
    ] = "",
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Compare every file of a Bento, and every model, adapter and index that it names, with its manifest; 1 where any differs.

    A manifest vouches for the rest. That it is the one that was built, its digest says: --digest, or a signature over it.
    """
    from services.manifest import manifest_digest
    from services.verification import opened, verify

    with reported(), opened(_which(which)) as place:
        found = manifest_digest(place.folder)
        with Bar() as bar:
            problems = verify(place, bar)
    if digest and digest != found:
        problems.insert(0, f"manifest.json has the digest {found}, and {digest} is wanted")
    if as_json:
        sys.stdout.write(json.dumps({"ok": not problems, "digest": found, "problems": problems}, ensure_ascii=False) + "\n")
    else:
        for line in problems:
            err.print(line, markup=False, style="red")
    if problems:
        fail(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}; do not serve it")
    if not as_json:
        out.print(f"ok  {found}", markup=False)


@app.command("diff")
def bento_diff(
    one: Annotated[str, typer.Argument(help="A tag, a version, a Bento's folder, or an exported .bento file.")],
    other: Annotated[str | None, typer.Argument(help="The one to compare it with (default: the Bento of this folder).")] = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Print what changed from one Bento to another: models, adapters, indexes, prompts, policies, packages, files.

    Manifests are compared; whether a Bento is what its manifest says is `ekiben bento verify`'s to tell.
    """
    from services.manifest import changes, read_manifest
    from services.verification import opened

    with reported(), opened(_which(one)) as before, opened(_which(other)) as after:
        found = changes(read_manifest(before.folder), read_manifest(after.folder))
    if as_json:
        sys.stdout.write(json.dumps([change._asdict() for change in found], ensure_ascii=False) + "\n")
        return
    if not found:
        out.print("the manifests are the same; files were not read: `ekiben bento verify` does", markup=False)
    for change in found:
        out.print(f"{change.what}: {change.before or '(none)'} -> {change.after or '(none)'}", markup=False)


@app.command("digest")
def bento_digest(which: Which = None) -> None:
    """Print the digest of a Bento's manifest, sha256:HEX: what to sign, and to give to `ekiben bento verify --digest`."""
    from services.manifest import manifest_digest
    from services.verification import opened

    with reported(), opened(_which(which)) as place:
        sys.stdout.write(manifest_digest(place.folder) + "\n")


@app.command("sbom")
def bento_sbom(
    which: Which = None,
    file: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write (default: print it).")] = None,
) -> None:
    """Write a Bento's bill of materials, CycloneDX 1.6 in JSON: packages with hashes, models, adapters, indexes, licences.

    Licences of packages are those that the packages installed here tell, where they are of the locked version.
    """
    from services.bento import LOCKED
    from services.manifest import locked, manifest_digest, read_manifest
    from services.sbom import installed_license, sbom
    from services.verification import opened

    with reported(), opened(_which(which)) as place:
        manifest = read_manifest(place.folder)
        pins = locked((place.folder / LOCKED).read_text(encoding="utf-8"))
        text = sbom(manifest, manifest_digest(place.folder), pins, installed_license)
    if file is None:
        sys.stdout.write(text)
        return
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        fail(f"{file} cannot be written: {error.strerror}")
    out.print(f"wrote {file}", markup=False)


def _which(told: str | None) -> str:
    """Return what was named, a version as the tag of this bundle's Bento."""
    if told is None or not re.fullmatch("[0-9a-f]{16}", told) or Path(told).exists():
        return told or _here()
    return f"{_here().partition(':')[0]}:{told}"


def _here() -> str:
    from services.bento import tag_here

    return tag_here()


def _print(rows: list[list[str]]) -> None:
    """Print rows in columns, whole also where the terminal is narrow: tags are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        out.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), markup=False)
