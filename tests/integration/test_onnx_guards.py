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
PACK = """
import sys
from pathlib import Path
from services.bundle import load_bundle
from services.cli.console import Bar, reported
from services.lock import Lock
from services.packing import pack_injection_model, pack_names

root = Path(sys.argv[1])
loaded = load_bundle(root / "bundle.yaml")
with reported(), Bar() as bar:
    names, injection = pack_names(loaded, bar), pack_injection_model(loaded, bar)
    Lock(name="own", model="tiny:1", names=names, injection_model=injection).write(root / "bundle.lock")
"""
# The service's class is called as BentoML calls it; the guard asks it in the form in which the gateway's detectors do.
ANSWER = """
import json, sys
from guards.detectors import Detectors
from guards.guard import Blocked, Guard
from guards.pii import Span
from services.bundle import load_bundle
from services.gateway import Finder, settings

finder = Finder.inner()
texts = json.loads(sys.argv[1])
models = [str(model.tag) for model in Finder.models]
kit = Detectors(
    lambda text: [Span(*span) for span in finder.names([text])[0]["spans"]],
    lambda text: finder.injection([text])[0]["score"],
    b"key",
)
guard = Guard(load_bundle(settings.bundle, packed=True).policies["own"], kit)
seen = []
for text in texts:
    try:
        seen.append(guard.check_messages([{"role": "user", "content": text}]).messages[0]["content"])
    except Blocked:
        seen.append(None)
print(json.dumps([models, finder.names(texts), finder.injection(texts), seen]))
"""


@pytest.fixture
def box(tmp_path):
    for name, text in {"bundle.yaml": BUNDLE, "plain.yaml": "system: s\n", "own.yaml": POLICY}.items():
        (tmp_path / name).write_text(text)
    names_model(tmp_path / "names")
    injection_model(tmp_path / "injection")
    return tmp_path


@pytest.fixture
def run(box):
    def run(code, *arguments):
        environment = {
            **os.environ, "EKIBEN_BUNDLE": str(box / "bundle.yaml"), "BENTOML_HOME": str(box / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True", "COLUMNS": "300",
        }  # fmt: skip
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


def test_packed_models_answer_in_the_finder_and_under_the_policy(box, run):
    packed = run(PACK, str(box))
    assert packed.returncode == 0, packed.stderr
    lock = json.loads((box / "bundle.lock").read_text())
    again = run(PACK, str(box))
    assert f"{lock['names']} is in the store" in again.stdout + again.stderr
    assert json.loads((box / "bundle.lock").read_text()) == lock
    texts = ["so Ada Lovelace went to Lisbon", "我在北京见到了张三", "and " * 900 + "忽略", "so and"]
    done = run(ANSWER, json.dumps(texts))
    assert done.returncode == 0, done.stderr
    models, names, scores, seen = json.loads(done.stdout.splitlines()[-1])

    assert models == [lock["names"], lock["injection_model"]]
    assert [[(s[2], text[s[0] : s[1]]) for s in one["spans"]] for text, one in zip(texts, names, strict=True)] == [
        [("PERSON", "Ada Lovelace"), ("LOCATION", "Lisbon")],
        [("LOCATION", "北京"), ("PERSON", "张三")],
        [],
        [],
    ]
    assert [round(one["score"]) for one in scores] == [0, 0, 1, 0]
    assert seen == ["so <PERSON> went to <LOCATION>", "我在<LOCATION>见到了<PERSON>", None, "so and"]


@pytest.mark.parametrize("slot", ["names", "injection"])
def test_a_broken_model_is_not_packed(box, run, slot):
    (box / slot / "model.onnx").write_bytes(b"no model")
    done = run(PACK, str(box))

    assert done.returncode == 1
    assert f"error: {box / slot / 'model.onnx'} is no model that onnxruntime can run" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((box / "bentoml").glob(f"models/own-{slot}/*/model.yaml"))
