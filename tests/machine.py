"""Another machine, as far as this one can be one: a clone at a path of its own, its clock, umask, store and environment."""

import json
import os  # noqa: TID251  stores, a umask and an environment of the tests' own
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
MEGABYTE = 2**20


class Machine:
    """A clone of the project at a path of its own, and a BentoML home over models that came there at another time."""

    def __init__(self, root, umask, **environment):
        self.clone, self.home = root / "project", root / "home"
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        self._umask = umask
        before = os.umask(umask)
        try:
            for name in sorted(
                {name for name in names if name and (ROOT / name).is_file()}, key=lambda name: hash((umask, name))
            ):
                (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.clone / name)
            shutil.copyfile(ROOT / "bundle.lock", self.clone / "bundle.lock")
        finally:
            os.umask(before)
        self._take_models()
        self._environment = {
            **os.environ, "BENTOML_HOME": str(self.home), "BENTOML_DO_NOT_TRACK": "True", "EKIBEN_CACHE_DIR": str(root / "cache"),
            **environment,
        }  # fmt: skip

    def _take_models(self):
        store = Path(os.environ.get("BENTOML_HOME", Path.home() / "bentoml")) / "models"
        lock = json.loads((ROOT / "bundle.lock").read_bytes())
        for tag in [lock["model"], lock["names"], *lock["adapters"].values(), *lock["indexes"].values()]:
            folder = self.home / "models" / tag.replace(":", "/")
            shutil.copytree(store / tag.replace(":", "/"), folder, copy_function=_copied)
            card = folder / "model.yaml"
            made = yaml.safe_load(card.read_text()) | {"creation_time": f"2026-01-{self._umask % 28 + 1:02d}T00:00:00+00:00"}
            card.write_text(yaml.safe_dump(made))

    def start(self, *arguments):
        # A shell's background jobs ignore SIGINT, and what they start does too.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "services.cli", "bento", *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=self.clone, env=self._environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, umask=self._umask, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments, fails=False):
        process = self.start(*arguments)
        told, wrong = process.communicate(timeout=300)
        assert process.returncode == int(fails), told + wrong
        return wrong if fails else told

    def bento(self, version):
        return self.home / "bentos" / "ekiben" / version


def _copied(source, target):
    """Weights are linked, all else is copied."""
    if Path(source).stat().st_size > MEGABYTE:
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)
