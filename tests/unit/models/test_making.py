"""A model's version follows its inputs; a job that fails says why."""

import sys
from dataclasses import replace
from pathlib import Path

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


def test_the_version_follows_the_text_that_the_weights_are_fitted_on(recipe, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("One text.")
    fitted = replace(recipe, recipe="w4a16-gptq", calibrated=True)
    own, given = model_version(fitted), model_version(replace(fitted, calibration=mine))
    mine.write_text("Another text.")

    assert (
        len({own, given, model_version(replace(fitted, calibration=mine)), model_version(replace(fitted, calibrated=False))}) == 4
    )


def test_a_recipe_that_fits_nothing_is_not_made_anew_for_another_calibration_text(recipe, tmp_path, monkeypatch):
    first = model_version(recipe)
    (tmp_path / "openings.txt").write_text("others")
    monkeypatch.setattr(making, "OPENINGS", tmp_path / "openings.txt")

    assert model_version(recipe) == first


@pytest.mark.parametrize(
    ("calibrated", "calibration", "expected"),
    [
        (False, None, []),
        (True, None, ["--openings", str(making.OPENINGS)]),
        (True, "mine.txt", ["--calibration", "mine.txt"]),
    ],
)
def test_the_job_is_told_what_to_calibrate_on(recipe, tmp_path, monkeypatch, calibrated, calibration, expected):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    commands = []
    monkeypatch.setattr(making, "_environment", lambda *_: Path("python"))
    monkeypatch.setattr(making, "_run", lambda command, *_: commands.append(command))
    asked = replace(recipe, source="path:mine", calibrated=calibrated, calibration=calibration and Path(calibration))
    making.make_model(asked, tmp_path / "out", lambda *_: None, lambda _: None)

    [command] = commands
    assert command[command.index("--max-nll-increase") + 2 :] == expected


def test_we_do_not_calibrate_on_the_judges_text():
    lines = [set(path.read_text().splitlines()) - {""} for path in (making.OPENINGS, making.TEXTS)]

    assert not lines[0] & lines[1]


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
