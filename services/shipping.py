"""The steps of a release, wired: the Bento built, verified, scanned, its image made and pushed, manifests rendered."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from accounts.schema import Revision, known
from deploy.environment import BadEnvironment, Environment, Weights, read_environment
from deploy.fitting import DoesNotFit, Target
from deploy.rendering import Rendering, render, write
from services import scan
from services.bento import build
from services.bundle import load_bundle
from services.deploying import box_of
from services.journal import Released, ReleaseError
from services.lock import read_lock
from services.manifest import BentoError, Manifest, bento_files, changes, manifest_digest, read_manifest
from services.registry import Place, missing
from services.release import Progress, Results, Step
from services.store import bento_path
from services.target import find_target
from services.verification import opened, verify

_LOCK = Path("env", "python", "requirements.txt")
_SHOWN = 5
_PASSWORD = re.compile(r"://[^/@\s]+@")
_NO_DIGEST = "sha256:" + "0" * 64


class Image(NamedTuple):
    """An image here, and that of its weights where they are apart."""

    name: str
    weights: str | None = None


class Images(Protocol):
    """The engine for containers of this machine; its methods raise ReleaseError."""

    def missing(self) -> str | None:
        """Return what is not installed and what to do; None where all is there."""
        ...

    def make(self, tag: str, tell: Callable[[str], None]) -> Image:
        """Make the image of a Bento; nothing is left of it when that fails."""
        ...

    def identity(self, name: str) -> str | None:
        """Return what an image is known by, a digest; None where there is none of that name."""
        ...

    def source(self, name: str) -> str:
        """Return skopeo's name of an image."""
        ...

    def dockerfile(self, tag: str) -> str:
        """Return the Dockerfile of a Bento."""
        ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was told of a release: where to, what is rendered, how the image is made. Kept with it, for the way back."""

    to: str = ""
    plain_http: str = ""
    env: str = ""
    target: Target = "plain"
    output: str = ""
    backend: str = "podman"
    weights: str = "image"
    device: str = "cpu"
    base: str = ""
    builder: str = ""
    wheels: str = ""
    opt: str = ""
    """The backend's, a line each."""

    def __post_init__(self) -> None:
        """Raise ReleaseError for a password: what was told is kept with the release."""
        for line in self.opt.splitlines():
            if _PASSWORD.search(line):
                name = "=".join(line.partition("://")[0].split("=")[:2])
                raise ReleaseError(
                    f"--opt {name}: a URL with a password would be kept in the record of releases; build from a folder by "
                    "--wheels, or mount a netrc that has it: --opt volume=FILE:/root/.netrc:ro"
                )

    def kept(self) -> dict[str, str]:
        """Return those that were told."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def of(cls, kept: dict[str, str], **changed: str) -> Self:
        """Read them back; those of another version that this one does not know are left."""
        names = {field.name for field in fields(cls)}
        told: dict[str, Any] = {name: value for name, value in (kept | changed).items() if name in names and value}
        return cls(**told)

    @property
    def place(self) -> Place | None:
        """Where images are pushed; raises ReleaseError."""
        return Place.read(self.to, plain_http=bool(self.plain_http)) if self.to else None


class Shipping:
    """The steps of one version, on this machine."""

    def __init__(self, tag: str, options: Options, images: Images, *, require_scan: bool = False) -> None:
        """Raise ReleaseError where the options cannot be used: before anything is planned."""
        self._tag, self._options, self._images, self._require_scan = tag, options, images, require_scan
        self._name, _, self._version = tag.partition(":")
        self._place = options.place
        self._environment = _environment(options.env)

    def steps(self) -> list[Step]:
        """Return what a release does."""
        return [
            Step("build", f"the Bento {self._tag}", self._build, {}, self._built, self._seen),
            Step("verify", "every file and model against the manifest; that it fits", self._verify),
            Step("scan", "secrets, packages, Dockerfile", self._scan),
            *self._onwards(),
        ]

    def lacking(self) -> list[str]:
        """Return what would end the release, as far as it can be told before anything is done."""
        lines = [line for line in (self._images.missing(), missing() if self._place else None) if line]
        if self._environment and self._seen():
            try:
                self._fits()
            except ReleaseError as error:
                lines.append(str(error))
        return lines

    def steps_back(self, released: Released) -> list[Step]:
        """Return what brings a version back that was released: its image is made again where the registry has lost it."""
        digest = released.results.get("digest")
        if self._place and digest and self._pushed(released.results):
            about = f"its image is at {self._place.repository} as it was released"
            return [Step("find", about, lambda _results, _progress: dict(released.results)), *self._rendered()]
        return [Step("verify", f"{self._tag} in the store", self._verify), *self._onwards()]

    def _onwards(self) -> list[Step]:
        options = self._options
        how = {name: getattr(options, name) for name in ("backend", "weights", "device", "base", "builder", "wheels", "opt")}
        steps = [Step("containerize", f"an image for {options.device} by {options.backend}", self._make, how, self._made)]
        if self._place:
            steps.append(Step("push", f"to {self._place.repository}", self._push, {"to": options.to}, self._pushed))
        return [*steps, *self._rendered()]

    def _rendered(self) -> list[Step]:
        if not self._options.env:
            return []
        return [Step("render", f"for {self._options.target}, into {self._options.output}", self._render)]

    def _build(self, _results: Results, progress: Progress) -> Results:
        # As for a CPU or a GPU that it is to be served on, which may not be this machine's.
        build(progress, find_target("cuda" if self._options.device == "cuda" else "cpu"))
        return {"bento": self._tag, "manifest": manifest_digest(bento_path(self._tag))}

    def _built(self, results: Results) -> bool:
        return self._seen() == {"bento": self._tag, "manifest": results["manifest"]}

    def _seen(self) -> Results | None:
        try:
            return {"bento": self._tag, "manifest": manifest_digest(bento_path(self._tag))}
        except BentoError:
            return None

    def _verify(self, _results: Results, progress: Progress) -> Results:
        with opened(self._tag) as place:
            problems = verify(place, progress)
        if problems:
            raise ReleaseError(
                f"{self._tag} is not what its manifest says: {_first(problems)}; `ekiben bento verify {self._tag}`"
            )
        if self._environment:  # before an image is made and pushed that cannot be served there
            self._fits()
        return {}

    def _fits(self) -> None:
        """Render for images that are not made yet; raises ReleaseError where that cannot be."""
        weights = {"weights": f"{self._name}-weights:0", "weights_digest": _NO_DIGEST}
        self._rendering({"digest": _NO_DIGEST, **(weights if self._options.weights == "apart" else {})})

    def _scan(self, _results: Results, progress: Progress) -> Results:
        folder = bento_path(self._tag)
        progress.step("scan: packages, by pip-audit")
        outcomes = [
            scan.secrets(folder, (path for path in bento_files(folder) if not path.is_symlink())),
            scan.packages((folder / _LOCK).read_text(encoding="utf-8")),
            scan.dockerfile(self._images.dockerfile(self._tag)),
        ]
        missed = [outcome.missed for outcome in outcomes if outcome.missed]
        for outcome in outcomes:
            for line in outcome.findings:
                progress.note(f"found: {line}")
        for line in missed:
            progress.note(f"NOT SCANNED: {line}")
        if findings := [line for outcome in outcomes for line in outcome.findings]:
            raise ReleaseError(f"the scan of {self._tag} found {len(findings)}: {_first(findings)}")
        if missed and self._require_scan:
            raise ReleaseError(f"--require-scan: {'; '.join(missed)}")
        return {}

    def _make(self, _results: Results, progress: Progress) -> Results:
        image = self._images.make(self._tag, progress.step)
        weights = {"weights": image.weights} if image.weights else {}
        return {"image": image.name, **weights, "identity": self._identity(image)}

    def _made(self, results: Results) -> bool:
        try:
            return self._identity(Image(results["image"], results.get("weights"))) == results["identity"]
        except ReleaseError:
            return False

    def _identity(self, image: Image) -> str:
        found = [self._images.identity(name) for name in image if name]
        if None in found:
            raise ReleaseError(f"{self._options.backend} does not know {image.name}; make it again")
        return " ".join(identity for identity in found if identity)

    def _push(self, results: Results, progress: Progress) -> Results:
        assert self._place is not None  # noqa: S101  there is no such step without one
        told: Results = {}
        if weights := results.get("weights"):
            place, version = self._weights_at(weights)
            progress.step(f"push: {weights}")
            told = {"weights_digest": place.push(self._images.source(weights), version)}
        # Last, because it is what makes the release be there.
        digest = self._place.push(self._images.source(results["image"]), self._version)
        reference = self._place.reference(self._version) if self._place.folder else self._image(digest)
        return {**told, "digest": digest, "reference": reference}

    def _pushed(self, results: Results) -> bool:
        assert self._place is not None  # noqa: S101  as above
        if weights := results.get("weights"):
            place, version = self._weights_at(weights)
            if "weights_digest" not in results or place.digest(version) != results["weights_digest"]:
                return False
        return self._place.digest(self._version) == results["digest"]

    def _weights_at(self, image: str) -> tuple[Place, str]:
        """Return where an image of weights is pushed: beside the box's, under the name that it has here."""
        assert self._place is not None  # noqa: S101  as above
        name, _, version = image.rpartition("/")[2].partition(":")
        return self._place.beside(name), version

    def _image(self, digest: str) -> str:
        """Return the name that a cluster pulls, or the environment file's where a folder was pushed to."""
        if self._place and not self._place.folder:
            return f"{self._place.repository}:{self._version}@{digest}"
        head, slash, last = self._named()
        return f"{head}{slash}{last}:{self._version}"

    def _weights_image(self, results: Results) -> str:
        """Return the name of the weights that a cluster mounts: beside the box's image, as they were pushed."""
        place, version = self._weights_at(results["weights"]) if self._place else (None, results["weights"].rpartition(":")[2])
        if place and not place.folder:
            return f"{place.repository}:{version}@{results['weights_digest']}"
        head, slash, _ = self._named()
        return f"{head}{slash}{results['weights'].rpartition('/')[2].partition(':')[0]}:{version}"

    def _named(self) -> tuple[str, str, str]:
        """Return the folder, a slash and the name of the box's image, as the environment file has it."""
        head, slash, last = (self._environment.image if self._environment else self._name).partition("@")[0].rpartition("/")
        return head, slash, last.partition(":")[0]

    def _mounted(self, results: Results) -> dict[str, Weights]:
        """Return what is rendered of weights in place of what the environment file says; raises ReleaseError."""
        assert self._environment is not None  # noqa: S101  nobody asks without one
        told = self._environment.weights
        if not (image := results.get("weights")) or told.source in {"pvc", "download"}:
            return {}
        if told.source == "image" and "source" in told.model_fields_set:
            raise ReleaseError(
                f"{self._options.env}: weights.source is image, and with --weights apart the image {image.rpartition('/')[2]} "
                "has them: leave it out, and that one is mounted; or name pvc or download"
            )
        return {"weights": Weights(source="image-volume", image=self._weights_image(results))}

    def _render(self, results: Results, progress: Progress) -> Results:
        made, image = self._rendering(results)
        for line in (*made.advice, *made.notes):
            progress.note(f"note: {line}")
        try:
            gone = write(made.files, Path(self._options.output))
        except OSError as error:
            raise ReleaseError(f"{self._options.output} cannot be written: {error.strerror}") from error
        for line in gone:
            progress.note(f"note: no longer rendered: {line}")
        digest = hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in sorted(made.files.items())).encode())
        return {"files": self._options.output, "rendered": f"sha256:{digest.hexdigest()}", "serves": image}

    def _rendering(self, results: Results) -> tuple[Rendering, str]:
        """Render the Bento's own bundle with images as pushed, in memory; raises ReleaseError where it does not fit."""
        assert self._environment is not None  # noqa: S101  nobody asks without one
        source = bento_path(self._tag) / "src"
        # What kind of machine it is for is the environment file's to say.
        loaded = load_bundle(source / "bundle.yaml", packed=True, target=find_target("cuda"))
        box = box_of(loaded.bundle, read_lock(source / "bundle.lock"), self._version)
        image = self._image(results.get("digest", ""))
        told = {"image": image, **self._mounted(results)}
        try:
            return render(box, self._environment.model_copy(update=told), self._options.target), image
        except DoesNotFit as error:
            raise ReleaseError("\n  ".join([f"it does not fit {self._options.env}:", *error.lines])) from error


def schema_here() -> str:
    """Return the newest revision of the database's schema that this version knows."""
    return known()[-1].id


def differences(stands: Released, target: Released) -> list[str]:
    """Return what a rollback changes, a line each; what cannot be told of a Bento that the store has no more is told as such."""
    try:
        before, after = (_manifest(release.bento) for release in (stands, target))
    except BentoError as error:
        return [f"what changes cannot be told: {error}"]
    return [f"{change.what}: {change.before or '(none)'} -> {change.after or '(none)'}" for change in changes(before, after)]


def schema_trouble(current: str, target: Released) -> str | None:
    """Return why a version cannot use a schema, and what to do; None where it can."""
    if Revision.read(current).serves(Revision.read(target.schema_)):
        return None
    return (
        f"the database's schema is {current}, and {target.bento} knows no further than {target.schema_}; when no box serves, "
        f"take it back with `ekiben database downgrade --to {target.schema_}`, which says what is lost, and then roll back"
    )


def _manifest(tag: str) -> Manifest:
    return read_manifest(bento_path(tag))


def _environment(path: str) -> Environment | None:
    if not path:
        return None
    try:
        return read_environment(Path(path))
    except BadEnvironment as error:
        raise ReleaseError("\n".join(error.lines)) from error


def _first(lines: list[str]) -> str:
    return "; ".join(lines[:_SHOWN]) + (" ..." if len(lines) > _SHOWN else "")
