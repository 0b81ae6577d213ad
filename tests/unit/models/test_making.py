"""A model's version follows its inputs; a job that fails says why."""

import sys
from dataclasses import replace

import pytest

from models import making
from models.making import ModelError, ModelRecipe, model_version
from models.source import SourceError, fetch


@pytest.fixture
def recipe(tmp_path):
    requirements = tmp_path / "lock.txt"
    requirements.write_text("a==1\n")
    return ModelRecipe("pypi:x==1", None, "w8a8", 0.1, tmp_path, requirements, tmp_path / "venv")


def test_the_version_is_a_function_of_source_recipe_and_tools(recipe):
    first = model_version(recipe)

    assert model_version(recipe) == first
    assert model_version(replace(recipe, source="pypi:x==2")) != first
    assert model_version(replace(recipe, recipe="none")) != first
    recipe.requirements.write_text("a==2\n")
    assert model_version(recipe) != first


def test_the_version_of_a_folder_follows_its_content(recipe, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    mine = replace(recipe, source="path:mine")
    first = model_version(mine)
    (folder / "config.json").write_text("{ }")

    assert model_version(mine) != first


def test_a_job_reports_notes_progress_and_its_error():
    job = 'import json; print(json.dumps({"note": "n"})); print("noise"); print(json.dumps({"progress": [1, 2]}))'
    notes, steps = [], []
    making._run([sys.executable, "-c", job], lambda *p: steps.append(p), notes.append)

    assert (notes, steps) == (["n"], [(1, 2)])
    failing = 'import json; print(json.dumps({"error": "too bad"})); raise SystemExit(1)'
    with pytest.raises(ModelError, match="too bad"):
        making._run([sys.executable, "-c", failing], lambda *_: None, notes.append)
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        making._run([sys.executable, "-c", "1/0"], lambda *_: None, notes.append)


def test_sources_that_give_nothing_say_so(tmp_path):
    with pytest.raises(SourceError, match=r"config\.json"):
        fetch("path:nowhere", tmp_path / "t", root=tmp_path)
    with pytest.raises(SourceError, match="unknown source"):
        fetch("ftp:x", tmp_path / "t", root=tmp_path)


def test_a_hub_source_is_fetched_at_its_commit(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **kw: asked.update(repo=repo, **kw))
    fetch("hf:org/model@" + "a" * 40, tmp_path / "t", root=tmp_path)

    assert (asked["repo"], asked["revision"]) == ("org/model", "a" * 40)
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])
