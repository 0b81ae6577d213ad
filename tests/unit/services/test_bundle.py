"""bundle.yaml: every mistake is found before anything starts, with its line and the remedy."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.bundle import BundleError, json_schema, load_bundle

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "vllm", "bentoml", "presidio_analyzer", "lancedb", "langchain_core", "numpy")


def problems(folder, old, new):
    path = folder / "bundle.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    return caught.value.lines


def test_a_good_one(bundle_folder):
    loaded = load_bundle(bundle_folder / "bundle.yaml")

    assert loaded.bundle.routes["chat"].parameters.max_tokens == 9
    assert loaded.prompts["docs"].needs_passages


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("name: box", "nane: box", 2, "unknown key 'nane'"),
        ('model: {name: tiny, source: "pypi:tiny==1"}', "model: {name: tiny}", 3, "missing key 'source'"),
        ('"pypi:tiny==1"', '"tiny"', 3, "pattern"),
        ("prompt: plain, policy: safe", "prompt: plane, policy: safe", 13, "no prompt named 'plane'; there is: docs, plain"),
        ("policy: open}", "policy: opened}", 14, "no policy named 'opened'"),
        ("collection: papers}", "collection: paper}", 15, "no collection named 'paper'"),
        ("policy: safe, collection: papers}", "policy: safe, adapter: a}", 15, "no adapter named 'a'; there is: none"),
        ("temperature: 0.5", "temperature: hot", 13, "valid number"),
        ("temperature: 0.5", "temprature: 0.5", 13, "unknown key 'temprature'"),
        ("path: plain.yaml", "path: gone.yaml", 5, "does not exist"),
        ("path: papers}", "path: gone}", 11, "is not a folder"),
        ("prompt: docs, policy: safe, collection: papers", "prompt: docs, policy: safe", 15, "uses passages"),
        ("prompt: plain, policy: open", "prompt: plain, policy: open, collection: papers", 14, "would be ignored"),
        ("  chat:", "  Chat Room:", 13, "pattern"),
        ("routes:", "engine: {max_loras: 4, max_cpu_loras: 2}\nroutes:", 12, "below max_loras"),
        ("routes:", "engine: {enable_auto_tool_choice: true}\nroutes:", 12, "needs tool_call_parser"),
        ("routes:", "engine: {tool_call_parser: herms}\nroutes:", 12, "did you mean hermes?"),
        ("routes:", "engine: {reasoning_parser: none-such}\nroutes:", 12, "vLLM has no such parser"),
        (
            "routes:",
            "engine: {enable_chunked_prefill: false}\nroutes:",
            12,
            "needs max_num_batched_tokens of max_model_len or more",
        ),
        ("routes:", "engine: {max_num_batched_tokens: 32}\nroutes:", 12, "below max_num_seqs"),
        ("routes:", "engine: {speculative_config: {method: eagle, num_speculative_tokens: 3}}\nroutes:", 12, "'ngram'"),
        ("routes:", "engine: {speculative_config: {method: ngram}}\nroutes:", 12, "missing key 'num_speculative_tokens'"),
        (
            "routes:",
            "engine: {structured_outputs_config: {backend: outlines, disable_any_whitespace: true}}\nroutes:",
            12,
            "xgrammar",
        ),
        ("  open: {path", "  safe: {path", 8, "stands twice"),
    ],
)
def test_refused(bundle_folder, old, new, line, says):
    found = problems(bundle_folder, old, new)

    assert any(f"bundle.yaml:{line}:" in text and says in text for text in found), found


def test_broken_yaml_names_the_line(bundle_folder):
    [text] = problems(bundle_folder, "routes:", "routes: [")

    assert "not valid YAML" in text


@pytest.mark.parametrize("text", ["", "[]", "just words", "routes: 3"])
def test_something_else_altogether(tmp_path, text):
    path = tmp_path / "bundle.yaml"
    path.write_text(text)
    with pytest.raises(BundleError):
        load_bundle(path)


def test_every_problem_is_reported_at_once(bundle_folder):
    path = bundle_folder / "bundle.yaml"
    path.write_text(path.read_text().replace("policy: open}", "policy: opened}").replace("path: plain.yaml", "path: gone.yaml"))
    with pytest.raises(BundleError) as caught:
        load_bundle(path)

    assert len(caught.value.lines) == 2


def test_an_adapter_for_another_base_is_refused(bundle_folder):
    path = bundle_folder / "bundle.yaml"
    adapter = ROOT / "adapters" / "travel-intents"
    path.write_text(path.read_text() + f"adapters:\n  travel: {{path: {adapter}}}\n")
    with pytest.raises(BundleError, match=r"bundle\.yaml:17: adapters\.travel\.path: .*made for base"):
        load_bundle(path)


def test_no_file(tmp_path):
    with pytest.raises(BundleError, match="no such file"):
        load_bundle(tmp_path / "bundle.yaml")


def test_the_committed_schema_is_that_of_the_code():
    assert json.loads((ROOT / "docs" / "bundle.schema.json").read_text()) == json.loads(json_schema())


def test_check_imports_nothing_heavy():
    code = f"import sys, services.cli; print([m for m in {HEAVY} if m in sys.modules])"
    started = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert out.stdout.strip() == "[]", f"imported in {time.monotonic() - started:.1f} s"


def test_the_pipeline_needs_no_environment_and_no_heavy_package():
    code = f"import sys, services.pipeline; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env={})

    assert out.stdout.strip() == "[]"
