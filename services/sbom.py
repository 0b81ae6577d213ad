"""The Bento's bill of materials: CycloneDX 1.6, as JSON. Packages, models, adapters, indexes, with digests and licences.

Written by hand: the library of the field has no model cards (cyclonedx-python-lib 11); the tests validate with it, strictly.
It follows from the Bento alone: the serial number from the manifest's digest, and no time is told.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from services.manifest import Manifest, PackedAdapter, PackedIndex, PackedModel, Pin, Stored

_ALGORITHMS = {"md5": "MD5", "sha1": "SHA-1", "sha256": "SHA-256", "sha384": "SHA-384", "sha512": "SHA-512"}

License = Callable[[str, str], tuple[str, bool] | None]
"""(name, version) of a package -> its licence and whether that is an SPDX expression; None where it is not known."""


def sbom(manifest: Manifest, digest: str, pins: list[Pin], license_of: License) -> str:
    """Return the bill of a Bento: `digest` is the manifest's (`sha256:hex`), `pins` are the packages of its lock."""
    parts = [_stored(what, stored, manifest) for what, stored in manifest.stored().items()]
    parts += [_package(pin, license_of(pin.name, pin.version)) for pin in sorted(pins)]
    about = {
        "type": "application", "bom-ref": manifest.tag, "name": manifest.name, "version": manifest.version,
        "hashes": [{"alg": "SHA-256", "content": digest.partition(":")[2]}],
        "properties": [
            *_properties(python=manifest.python, manifest=digest),
            *_listed("prompt", manifest.prompts), *_listed("policy", manifest.policies),
        ],
    }  # fmt: skip
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {"component": about},
        "components": parts,
        "dependencies": [
            {"ref": manifest.tag, "dependsOn": sorted(part["bom-ref"] for part in parts)},
            *({"ref": one.tag, "dependsOn": [manifest.model.tag]} for one in manifest.adapters.values()),
        ],
    }
    return json.dumps(bill, indent=2, ensure_ascii=False) + "\n"


def _package(pin: Pin, told: tuple[str, bool] | None) -> dict[str, Any]:
    purl = package_url("pypi", re.sub(r"[-_.]+", "-", pin.name).lower(), pin.version)
    part: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": pin.name, "version": pin.version, "purl": purl}
    if told is not None:
        part["licenses"] = _licenses(told[0], expression=told[1])
    hashes = [{"alg": _ALGORITHMS[kind], "content": value} for kind, _, value in (one.partition(":") for one in pin.hashes)]
    if hashes:
        # One of these files is installed; the address is nobody's in particular.
        part["externalReferences"] = [{"type": "distribution", "url": purl, "hashes": hashes}]
    return part


def _stored(what: str, stored: Stored, manifest: Manifest) -> dict[str, Any]:
    name, _, version = stored.tag.partition(":")
    part: dict[str, Any] = {
        "type": "data" if isinstance(stored, PackedIndex) else "machine-learning-model",
        "bom-ref": stored.tag, "name": name, "version": version, "description": what,
    }  # fmt: skip
    if stored.license:
        part["licenses"] = _licenses(stored.license, expression=False)  # model cards write it in lower case
    if isinstance(stored, PackedModel):
        part["pedigree"] = {"ancestors": [_source(stored.source, stored.sha256)]}
        part["properties"] = _properties(source=stored.source, recipe=stored.recipe)
    elif isinstance(stored, PackedAdapter):
        part["pedigree"] = {"ancestors": [_source(stored.base, None)]}
        part["modelCard"] = _card(stored)
        part["properties"] = _properties(base=manifest.model.tag, rank=str(stored.rank))
    elif isinstance(stored, PackedIndex):
        part["properties"] = _properties(embedder=stored.embedder, chunks=str(stored.chunks), rows=stored.rows or "")
    part["components"] = [
        {"type": "file", "bom-ref": f"{stored.tag}/{path}", "name": path, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for path, digest in sorted(stored.files.items())
    ]
    return part


def _card(adapter: PackedAdapter) -> dict[str, Any]:
    card: dict[str, Any] = {"modelParameters": {"datasets": [{"type": "dataset", "name": adapter.dataset}]}}
    if adapter.accuracy is not None:
        card["quantitativeAnalysis"] = {"performanceMetrics": [{"type": "accuracy", "value": str(adapter.accuracy)}]}
    return card


def _source(source: str, sha256: str | None) -> dict[str, Any]:
    """Return what a model was made from; only sources that have a package URL get one."""
    kind, _, rest = source.partition(":")
    name, _, version = rest.partition("@" if kind == "hf" else "==")
    part: dict[str, Any] = {"type": "machine-learning-model", "name": name}
    if version:
        part |= {"version": version, "purl": package_url({"hf": "huggingface"}.get(kind, kind), name, version)}
    if sha256:
        part["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return part


def package_url(kind: str, name: str, version: str) -> str:
    """Return a package URL."""
    return f"pkg:{kind}/{quote(name, safe='/')}@{quote(version, safe='')}"


def _licenses(text: str, *, expression: bool) -> list[dict[str, Any]]:
    return [{"expression": text}] if expression else [{"license": {"name": text}}]


def _properties(**told: str) -> list[dict[str, str]]:
    return [{"name": f"ekiben:{name}", "value": value} for name, value in told.items()]


def _listed(what: str, versions: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": f"ekiben:{what}:{name}", "value": version} for name, version in versions.items()]


def installed_license(name: str, version: str) -> tuple[str, bool] | None:
    """Return the licence that a package tells where this very version is installed here, and whether it is an SPDX expression."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        told = metadata(name)
    except PackageNotFoundError:
        return None
    if told["Version"] != version:
        return None
    if "License-Expression" in told:
        return told["License-Expression"], True
    mark = "License :: OSI Approved ::"
    classified = [one.rpartition(" :: ")[2] for one in told.get_all("Classifier") or [] if one.startswith(mark)]
    written = told["License"].strip().splitlines()[:1] if "License" in told else []
    text = ", ".join(sorted(classified) or written)
    return (text, False) if text and text.upper() != "UNKNOWN" else None
