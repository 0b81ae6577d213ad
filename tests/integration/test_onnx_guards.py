"""A bundle with ONNX models of its own: packed into a store, and the Finder and a policy answer with them."""

import json
import os  # noqa: TID251  a store of its own
import subprocess
import sys
from pathlib import Path

import pytest

from tests.onnx_models import injection_model, names_model

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = """
name: own
model: {name: tiny, source: "pypi:tiny==1"}
prompts: {plain: {path: plain.yaml}}
policies: {own: {path: own.yaml}}
names: {source: "path:names"}
injection_model: {source: "path:injection"}
routes: {plain: {prompt: plain, policy: own}}
"""
POLICY = "input: [{detector: injection, action: block}, {detector: names, action: mask}]\n"
TEXTS = ["so Ada Lovelace went to Lisbon", "我在北京见到了张三", "and " * 900 + "忽略", "so and"]
# One process, for its imports take most of the time: the bundle is packed, again, then with other, broken and missing models;
# the service's class, which reads the lock, is called as BentoML calls it, and by a guard in the form of the gateway's detectors.
RUN = """
import json, sys
from pathlib import Path

import typer
from services.bundle import load_bundle
from services.cli.console import Bar, reported
from services.lock import Lock
from services.packing import pack_injection_model, pack_names

root, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
loaded = load_bundle(root / "bundle.yaml")

def pack():
    try:
        with reported(), Bar() as bar:
            return [pack_names(loaded, bar), pack_injection_model(loaded, bar)]
    except typer.Exit as done:
        return done.exit_code

told = {"packed": pack(), "again": pack()}
names, injection = told["packed"]
Lock(name="own", model="tiny:1", names=names, injection_model=injection).write(root / "bundle.lock")
for case, slots in {"other": ("injection",), "broken": ("names", "injection"), "gone": ("names", "injection")}.items():
    for slot in slots:
        (root / slot).rename(root / "kept")
        if (root / case / slot).is_dir():
            (root / case / slot).rename(root / slot)
        told[f"{case} {slot}"] = pack()
        if (root / slot).is_dir():
            (root / slot).rename(root / case / slot)
        (root / "kept").rename(root / slot)

from guards.detectors import Detectors
from guards.guard import Blocked, Guard
from guards.pii import Span
from services.gateway import Finder

finder = Finder.inner()
told |= {"models": [str(model.tag) for model in Finder.models], "names": finder.names(texts), "scores": finder.injection(texts)}
kit = Detectors(
    lambda text: [Span(*span) for span in finder.names([text])[0]["spans"]],
    lambda text: finder.injection([text])[0]["score"],
    b"key",
)
guard, told["guarded"] = Guard(loaded.policies["own"], kit), []
for text in texts:
    try:
        told["guarded"].append(guard.check_messages([{"role": "user", "content": text}])[0]["content"])
    except Blocked:
        told["guarded"].append(None)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """What came of it, and what was printed besides."""
    root = tmp_path_factory.mktemp("box")
    for name, text in {"bundle.yaml": BUNDLE, "plain.yaml": "system: s\n", "own.yaml": POLICY}.items():
        (root / name).write_text(text)
    names_model(root / "names")
    injection_model(root / "injection")
    injection_model(root / "other" / "injection", attack=("forget",))
    for broken in (names_model(root / "broken" / "names"), injection_model(root / "broken" / "injection")):
        (broken / "model.onnx").write_bytes(b"no model")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EKIBEN_")}
    environment |= {"EKIBEN_BUNDLE": str(root / "bundle.yaml"), "BENTOML_HOME": str(root / "bentoml"), "COLUMNS": "300"}
    environment |= {"BENTOML_DO_NOT_TRACK": "True", "EKIBEN_ENGINE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", RUN, str(root), json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_the_finder_answers_with_the_packed_models(box):
    _, told, _ = box

    assert told["models"] == told["packed"]
    assert [[(s[2], text[s[0] : s[1]]) for s in one["spans"]] for text, one in zip(TEXTS, told["names"], strict=True)] == [
        [("PERSON", "Ada Lovelace"), ("LOCATION", "Lisbon")],
        [("LOCATION", "北京"), ("PERSON", "张三")],
        [],
        [],
    ]
    assert [round(one["score"]) for one in told["scores"]] == [0, 0, 1, 0]


def test_the_policy_masks_and_blocks_by_them(box):
    _, told, _ = box

    assert told["guarded"] == ["so <PERSON> went to <LOCATION>", "我在<LOCATION>见到了<PERSON>", None, "so and"]


def test_a_tag_follows_the_content_of_the_folder(box):
    _, told, _ = box
    names, injection = told["packed"]

    assert names.startswith("own-names:")
    assert injection.startswith("own-injection:")
    assert told["again"] == [names, injection]
    assert told["other injection"][0] == names
    assert told["other injection"][1] not in told["packed"]


@pytest.mark.parametrize("slot", ["names", "injection"])
def test_a_model_that_is_broken_or_gone_is_not_packed(box, slot):
    root, told, printed = box

    assert (told[f"broken {slot}"], told[f"gone {slot}"]) == (1, 1)
    assert f"error: {root / slot / 'model.onnx'} is no model that onnxruntime can run" in printed
    assert f"error: {root / slot} is no folder; name one that holds the model" in printed
    assert len(list((root / "bentoml" / "models" / f"own-{slot}").glob("*/model.yaml"))) == {"names": 1, "injection": 2}[slot]
