"""Images without an engine for containers: folders of the OCI layout, and `ekiben` over an engine that makes such.

`python -m tests.images` is `ekiben`, asked over its standard input, whose engine for containers keeps images in $TEST_IMAGES.
"""

import hashlib
import json
import os  # noqa: TID251  the folder of this engine
import shutil
import sys
import tarfile
import traceback
from io import BytesIO
from pathlib import Path

from services import imaging
from services.shipping import Image
from services.store import bento_path


def image(folder, *layers):
    """An image of the OCI layout with a file in each layer, and skopeo's name of it."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content, kind):
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    made = []
    for number, content in enumerate(layers):
        packed = BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            told = tarfile.TarInfo(f"file{number}")
            told.size = len(content)
            archive.addfile(told, BytesIO(content))
        made.append(blob(packed.getvalue(), "layer.v1.tar"))
    roots = {"type": "layers", "diff_ids": [layer["digest"] for layer in made]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": roots, "config": {}}
    told = blob(json.dumps(config).encode(), "config.v1+json")
    media = "application/vnd.oci.image.manifest.v1+json"
    manifest = blob(
        json.dumps({"schemaVersion": 2, "mediaType": media, "config": told, "layers": made}).encode(), "manifest.v1+json"
    )
    named = {**manifest, "annotations": {"org.opencontainers.image.ref.name": "v"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{folder}:v"


class Engine:
    """An engine whose image of a Bento has the Bento's code in a layer."""

    def __init__(self, _options):
        self._folder = Path(os.environ["TEST_IMAGES"])

    def missing(self):
        return None

    def make(self, tag, tell):
        tell("layers")
        place = self._folder / tag.replace(":", "-")
        shutil.rmtree(place, ignore_errors=True)
        code = b"".join(path.read_bytes() for path in sorted((bento_path(tag) / "src" / "prompts").rglob("*.yaml")))
        image(place, b"system" * 1000, code)
        return Image(tag)

    def dockerfile(self, _tag):
        return "FROM scratch\n"

    def identity(self, name):
        index = self._folder / name.replace(":", "-") / "index.json"
        return hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else None

    def source(self, name):
        return f"oci:{self._folder / name.replace(':', '-')}:v"


def main():
    """Answer commands, a line of JSON each: what is imported, is imported once."""
    from typer.testing import CliRunner

    from services.cli import app

    imaging.Engine = Engine
    for line in sys.stdin:
        told = json.loads(line)
        done = CliRunner(env=told["environment"]).invoke(app, told["arguments"])
        if done.exception and not isinstance(done.exception, SystemExit):
            traceback.print_exception(done.exception)
        answer = {"code": done.exit_code, "stdout": done.stdout, "stderr": done.stderr}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
