"""`ekiben model tune`: it measures once, says what it chose, and refuses what it cannot tune. No engine is started here."""

import json

import pytest
from typer.testing import CliRunner

from services import engine, store, tuning
from services.cli import app
from services.lock import Lock


@pytest.fixture
def tune(bundle_folder, tmp_path, monkeypatch):
    trials = []

    async def measured(bundle, candidate, model, adapters):
        trials.append(candidate.name)
        if candidate.layout.processes == "apart":
            return tuning.Trial(name=candidate.name, layout=candidate.layout, failure="it fell\nand said why")
        rates = dict.fromkeys(tuning.STREAMS, 10.0 + 90 * candidate.layout.compiled)
        waits = dict.fromkeys(tuning.STREAMS, 0.25)
        return tuning.Trial(
            name=candidate.name, layout=candidate.layout, tokens_per_second=rates, ttft_p50_seconds=waits, others=0.5
        )

    monkeypatch.setattr(tuning, "_try", measured)
    monkeypatch.setattr(tuning, "compiler_missing", lambda: None)
    monkeypatch.setattr(store, "stored_path", lambda tag: tmp_path / tag)
    monkeypatch.setattr(engine, "missing_libraries", lambda device: None)
    monkeypatch.setenv("EKIBEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("EKIBEN_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")
    Lock(name="box", model="tiny:1", adapters={}, indexes={}).write(bundle_folder / "bundle.lock")

    def run(*options):
        done = CliRunner().invoke(app, ["model", "tune", "--bundle", str(bundle_folder / "bundle.yaml"), *options])
        return done, trials

    return run


def test_it_measures_once_and_then_knows(tune):
    done, trials = tune()
    assert done.exit_code == 0, done.output
    assert "compiled *" in done.output
    assert "failed" in done.output
    assert "250" in done.output
    assert "other programs were busy" in done.output
    count = len(trials)

    again, trials = tune("--json")
    assert len(trials) == count
    assert json.loads(again.stdout)["layout"]["compiled"] is True
    _, trials = tune("--force")
    assert len(trials) == 2 * count


def test_a_gpu_is_not_tuned(tune, monkeypatch):
    monkeypatch.setenv("EKIBEN_DEVICE", "cuda")
    done, trials = tune()

    assert done.exit_code == 1
    assert "nothing to tune" in done.output
    assert not trials


def test_when_no_engine_starts_the_reason_is_told(tune, monkeypatch):
    async def failed(bundle, candidate, model, adapters):
        return tuning.Trial(name=candidate.name, layout=candidate.layout, failure="no memory")

    monkeypatch.setattr(tuning, "_try", failed)
    done, _ = tune()

    assert done.exit_code == 1
    assert "no memory" in done.output


def test_an_unpacked_bundle_is_told_what_to_do(tune, bundle_folder):
    (bundle_folder / "bundle.lock").unlink()
    done, _ = tune()

    assert done.exit_code == 1
    assert "ekiben pack" in done.output
