"""bundle.yaml: every mistake is found before anything starts, with its line and the remedy."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.bundle import BundleError, Quantization, json_schema, load_bundle
from services.target import Target

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
        ("policy: open}", "policy: open, adapter: a@B}", 14, "pattern"),
        ("policy: open}", "policy: open, adapter: {a: 0}}", 14, "greater than 0"),
        ("policy: open}", "policy: open, adapter: {a: 1, b@canary: 1}}", 14, "no adapter named 'b@canary'"),
        ("policy: open}", "policy: open, only_labels: true}", 14, "needs an adapter"),
        ("routes:", "engine: {max_loras: 1}\nadapters: {a: {path: a}, b: {path: b}}\nroutes:", 13, "2 adapters, but 1 slots"),
        ("{path: papers}", "{path: papers, store: 'mysql://x'}", 11, "pattern"),
        ("{path: papers}", "{path: papers, store: 'postgresql://u:secret@db/x'}", 11, "would be packed with it"),
        ("{path: papers}", "{path: papers, store: 'postgresql://db/x?password=secret'}", 11, "would be packed with it"),
        ("{path: papers}", "{path: papers, store: 'https://:key@qdrant:6333'}", 11, "would be packed with it"),
        ("temperature: 0.5", "temperature: hot", 13, "valid number"),
        ("temperature: 0.5", "temprature: 0.5", 13, "unknown key 'temprature'"),
        ("path: plain.yaml", "path: gone.yaml", 5, "does not exist"),
        ("path: papers}", "path: gone}", 11, "is neither a folder nor a file"),
        ("path: papers}", "sources: [papers, papers]}", 11, "a source stands twice"),
        ("path: papers}", "path: papers, sources: [papers]}", 11, "either path (one folder or file) or sources"),
        ("path: papers}", "top_k: 2}", 11, "either path (one folder or file) or sources"),
        ("path: papers}", "path: 'https://example.com/a'}", 11, "a URL belongs into sources"),
        ("path: papers}", "sources: ['https://example.com/a']}", 11, "add allow_hosts: [example.com]"),
        ("path: papers}", "sources: ['https://me:pw@example.com/a'], allow_hosts: [example.com]}", 11, "no name or password"),
        ("path: papers}", "path: papers, rerank: best}", 11, "pattern"),
        ("path: papers}", "path: papers, mmr: 1}", 11, "less than 1"),
        ("path: papers}", "path: papers, policy: strict}", 11, "no policy named 'strict'; there is: open, safe"),
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
        (
            "routes:",
            "engine: {speculative_config: {method: draft_model, num_speculative_tokens: 3, model: {source: 'path:no'}}}\nroutes:",
            12,
            "no holds no config.json",
        ),
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


MODEL = 'model: {name: tiny, source: "pypi:tiny==1"'
XEON = Target("cpu", "x86_64", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"}))
LAPTOP = Target("cpu", "x86_64", frozenset({"avx2"}))


def quantized(folder, section, target):
    path = folder / "bundle.yaml"
    path.write_text(path.read_text().replace(MODEL, f"{MODEL}, quantization: {section}"))
    return load_bundle(path, target=target)


@pytest.mark.parametrize(
    ("section", "target", "says"),
    [
        ("{recipe: fp8}", XEON, "bundle.yaml:3: model.quantization.recipe: fp8 is not for this CPU"),
        ("{recipe: w4a16-awq}", LAPTOP, "this one lacks avx512bw"),
        ("{recipe: w2}", XEON, "bundle.yaml:3: model.quantization.recipe: "),
        ("{recipe: w8a8, calibration: a.txt}", XEON, "w8a8 is not fitted on a text"),
        ("{recipe: w4a16-gptq, calibration: gone.txt}", XEON, "bundle.yaml:3: model.quantization.calibration: "),
        ("{recipe: w4a16-gptq, calibration: empty.txt}", XEON, "is empty"),
        ("{recipe: w4a16-gptq, calibration: bad.jsonl}", XEON, "bad.jsonl:2: not a JSON object with a"),
        ("{recipe: w4a16-gptq, max_nll_increase: 0}", XEON, "greater than 0"),
    ],
)
def test_a_quantization_that_cannot_be_made_or_served_is_refused(bundle_folder, section, target, says):
    (bundle_folder / "empty.txt").write_text("\n")
    (bundle_folder / "bad.jsonl").write_text('{"text": "good"}\n{"label": "x"}\n')
    with pytest.raises(BundleError) as caught:
        quantized(bundle_folder, section, target)

    assert any(says in line for line in caught.value.lines), caught.value.lines


def test_a_bundle_for_a_gpu_passes_when_it_is_checked_for_one(bundle_folder, monkeypatch):
    assert quantized(bundle_folder, "{recipe: fp8}", Target("cuda")).bundle.model.quantization.recipe == "fp8"
    monkeypatch.setenv("EKIBEN_DEVICE", "cuda")
    assert load_bundle(bundle_folder / "bundle.yaml")
    monkeypatch.setenv("EKIBEN_DEVICE", "cpu")
    with pytest.raises(BundleError, match="fp8 is not for"):
        load_bundle(bundle_folder / "bundle.yaml")
    monkeypatch.setenv("EKIBEN_ENGINE_URL", "http://elsewhere:1")
    assert load_bundle(bundle_folder / "bundle.yaml")


def test_adapters_are_refused_on_a_base_whose_activations_were_rescaled(bundle_folder):
    path = bundle_folder / "bundle.yaml"
    adapter = ROOT / "adapters" / "travel-intents"
    path.write_text(path.read_text() + f"adapters:\n  travel: {{path: {adapter}}}\n")
    with pytest.raises(BundleError, match="adapters made for the unquantized model answer wrongly on it"):
        quantized(bundle_folder, "{recipe: w4a16-awq}", XEON)


def test_a_calibration_file_that_is_there_passes(bundle_folder):
    (bundle_folder / "mine.jsonl").write_text('{"text": "good"}\n\n{"text": "also", "label": "x"}\n')
    section = quantized(bundle_folder, "{recipe: w4a16-gptq, calibration: mine.jsonl}", XEON).bundle.model.quantization

    assert section.by("w4a16-awq").calibration == Path("mine.jsonl")
    assert section.by("w8a8") == Quantization(recipe="w8a8")


def test_the_bound_is_the_bundles_or_the_recipes_own():
    given = Quantization(recipe="w8a8", max_nll_increase=0.03)

    assert given.allowed_nll_increase == given.by("w8a8").allowed_nll_increase == 0.03
    assert given.by("w4a16-gptq").allowed_nll_increase == Quantization(recipe="w4a16-gptq").allowed_nll_increase > 0.1


def test_no_file(tmp_path):
    with pytest.raises(BundleError, match="no such file"):
        load_bundle(tmp_path / "bundle.yaml")


@pytest.mark.parametrize("url", ["postgresql://u:${PASSWORD}@db/x", "postgresql://u@db/x?host=/tmp", "https://:${KEY}@q:6333"])
def test_a_server_whose_password_is_elsewhere(bundle_folder, url):
    path = bundle_folder / "bundle.yaml"
    path.write_text(path.read_text().replace("{path: papers}", f"{{path: papers, store: '{url}'}}"))

    assert load_bundle(path).bundle.collections["papers"].store == url


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


@pytest.mark.parametrize(("text", "anonymous"), [("", False), ("false", False), ("true", True), ("loopback", "loopback")])
def test_nobody_is_let_in_without_a_key_unless_it_is_said(bundle_folder, text, anonymous):
    path = bundle_folder / "bundle.yaml"
    if text:
        path.write_text(path.read_text() + f"callers: {{anonymous: {text}}}\n")

    assert load_bundle(path).bundle.callers.anonymous == anonymous


@pytest.mark.parametrize("text", ["sometimes", "null", "[]", "127.0.0.1"])
def test_who_may_come_without_a_key_is_said_clearly(bundle_folder, text):
    path = bundle_folder / "bundle.yaml"
    path.write_text(path.read_text() + f"callers: {{anonymous: {text}}}\n")
    with pytest.raises(BundleError, match=r"callers\.anonymous"):
        load_bundle(path)
