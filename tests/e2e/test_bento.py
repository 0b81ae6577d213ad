"""The Bento: what is in it, that its version follows from its content, and that it serves elsewhere what it served here."""

import os  # noqa: TID251  a second BentoML folder, for the other machine
import subprocess
import sys
import tarfile
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

REQUEST = {"model": "travel-intents", "messages": [{"role": "user", "content": "book me a hotel room in boston for tonight"}]}
ASK = {"model": "handbook", "messages": [{"role": "user", "content": "What does an ekiben cost?"}]}


def bentoml(home, *arguments, cwd=ROOT):
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def version(home, ekiben):
    """Build with a secret lying about, which must not travel."""
    secret = ROOT / ".env"
    existed = secret.exists()
    if not existed:
        secret.write_text("EKIBEN_SECRET=do-not-pack\n")
    try:
        ekiben("bento", "build", BENTOML_HOME=str(home))
    finally:
        if not existed:
            secret.unlink()
    return ekiben("bento", "version").strip()


@pytest.fixture(scope="module")
def bento(home, version):
    return home / "bentos" / "ekiben" / version


def test_building_again_finds_the_same_version_and_does_nothing(home, version, ekiben):
    again = ekiben("bento", "build", BENTOML_HOME=str(home))

    assert f"ekiben:{version}" in again
    assert [p.name for p in (home / "bentos" / "ekiben").iterdir() if p.is_dir()] == [version]


def test_nothing_leaks_in(bento):
    packed = [p.relative_to(bento / "src") for p in (bento / "src").rglob("*") if p.is_file()]
    whitelist = {"bundle.yaml", "bundle.lock", "bentofile.yaml", "uv.toml", "requirements"}
    whitelist |= {"services", "models", "adapters", "guards", "prompts", "rag", "accounts", "cache", "targets", "deploy"}

    assert {p.parts[0] for p in packed} == whitelist
    assert {p.suffix for p in packed} == {".py", ".yaml", ".lock", ".txt", ".toml", ".npz"}
    assert {p.as_posix() for p in packed if p.suffix == ".npz"} == {"guards/classifier/weights.npz", "targets/complexity.npz"}
    assert not any(part.startswith(".") or part == "__pycache__" for p in packed for part in p.parts)
    assert not any(b"do-not-pack" in p.read_bytes() for p in bento.rglob("*") if p.is_file())
    assert not any(str(ROOT).encode() in p.read_bytes() for p in (bento / "src").rglob("*") if p.is_file())


def test_it_names_its_models(bento):
    described = yaml.safe_load((bento / "bento.yaml").read_text())
    tags = {model["tag"].split(":")[0] for service in described["services"] for model in service["models"]}

    assert tags == {
        "smollm2-135m-instruct",
        "ekiben-adapter-banking-intents",
        "ekiben-adapter-travel-intents",
        "ekiben-index-handbook",
        "ekiben-names",
    }


def test_exported_and_imported_elsewhere_it_answers_the_same(home, version, serve, tmp_path):
    """Another folder, another BentoML home: all that it needs is in the file."""
    archive, elsewhere = tmp_path / "box.bento", tmp_path / "home"
    bentoml(home, "export", f"ekiben:{version}", archive)
    with tarfile.open(archive) as content:
        names = content.getnames()
    assert sum(name.endswith(".safetensors") for name in names) == 3  # the model and two adapters
    (tmp_path / "cwd").mkdir()
    bentoml(elsewhere, "import", archive, cwd=tmp_path / "cwd")
    box = serve(f"ekiben:{version}", tmp_path / "cwd", elsewhere, tmp_path / "serve.log", {"PYTHONSAFEPATH": "1"}).wait_ready()
    try:
        answer = httpx.post(f"{box.url}/v1/chat/completions", json=REQUEST, timeout=120).json()
        cited = httpx.post(f"{box.url}/v1/chat/completions", json=ASK, timeout=120).json()
    finally:
        box.stop()

    assert f"--model {elsewhere}/models/" in box.log.read_text()
    assert answer["choices"][0]["message"]["content"] == "book_hotel"
    assert answer["ekiben"]["adapter"].startswith("ekiben-adapter-travel-intents:")
    assert "11 euros" in cited["choices"][0]["message"]["content"]
    assert cited["ekiben"]["sources"][0]["source"] == "on-board.html"
