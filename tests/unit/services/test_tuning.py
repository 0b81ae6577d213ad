"""A measured layout is kept under what it depends on, and chosen with a margin."""

from datetime import UTC, datetime

import pytest

from services import tuning
from services.bundle import Bundle
from services.engine_process import EngineFailed
from services.layout import Layout, Machine, default_layout
from services.tuning import (
    Candidate,
    Trial,
    Tuned,
    choose,
    compiled_candidate,
    first_candidates,
    layout_here,
    read_tuned,
    tune,
    tuning_key,
    write_tuned,
)

MACHINE = Machine(cpu="x", cores=2, processors=2, node_cores=2, limited=False, memory_gib=16)
JOINED = Layout(processes="joined", threads=2)
FAST = Layout(processes="joined", threads=2, compiled=True)


def bundle(**engine):
    return Bundle.model_validate(
        {
            "model": {"name": "tiny", "source": "pypi:tiny==1"},
            "engine": engine,
            "prompts": {"p": {"path": "p"}},
            "policies": {"s": {"path": "s"}},
            "routes": {"r": {"prompt": "p", "policy": "s"}},
        }
    )


def trial(name, *rates, layout=JOINED, failure=None):
    return Trial(name=name, layout=layout, tokens_per_second=dict(zip((1, 16, 64), rates, strict=False)), failure=failure)


def tuned(key, layout=JOINED):
    return Tuned(key=key, chosen="a", layout=layout, measured_at=datetime(2026, 1, 1, tzinfo=UTC), trials=[trial("a", 1, 2, 3)])


@pytest.fixture(autouse=True)
def _compiler(monkeypatch):
    monkeypatch.setattr(tuning, "compiler_missing", lambda: None)


def test_what_was_kept_is_read_again_beside_what_was_there(tmp_path):
    one, other = (tuning_key(bundle(), "tiny:1", MACHINE, lora=lora) for lora in (True, False))
    write_tuned(tuned(one), tmp_path)
    write_tuned(tuned(other, FAST), tmp_path)
    write_tuned(tuned(one, FAST), tmp_path)

    assert read_tuned(one, tmp_path) == tuned(one, FAST)
    assert read_tuned(other, tmp_path) == tuned(other, FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["layouts.json"]


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "tiny:2"},
        {"lora": True},
        {"machine": Machine(cpu="y", cores=2, processors=2, node_cores=2, limited=False, memory_gib=16)},
        {"machine": Machine(cpu="x", cores=4, processors=4, node_cores=4, limited=False, memory_gib=16)},
        {"machine": Machine(cpu="x", cores=2, processors=2, node_cores=2, limited=False, memory_gib=32)},
        {"bundle": bundle(enforce_eager=True)},
    ],
)
def test_a_choice_holds_only_for_what_it_was_measured_with(tmp_path, changed):
    def key(bundle, model, machine, lora):
        return tuning_key(bundle, model, machine, lora=lora)

    made = {"bundle": bundle(), "model": "tiny:1", "machine": MACHINE, "lora": False}
    write_tuned(tuned(key(**made)), tmp_path)

    assert read_tuned(key(**made), tmp_path) is not None
    assert read_tuned(key(**{**made, **changed}), tmp_path) is None


def test_another_vllm_must_be_measured_anew(tmp_path, monkeypatch):
    write_tuned(tuned(tuning_key(bundle(), "tiny:1", MACHINE, lora=False)), tmp_path)
    monkeypatch.setattr(tuning, "version", lambda _: "9.9")

    assert read_tuned(tuning_key(bundle(), "tiny:1", MACHINE, lora=False), tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"key": 1}]', "{}"])
def test_a_damaged_file_is_as_good_as_none_and_is_written_anew(tmp_path, text):
    (tmp_path / "layouts.json").write_text(text)
    key = tuning_key(bundle(), "tiny:1", MACHINE, lora=False)
    assert read_tuned(key, tmp_path) is None

    write_tuned(tuned(key), tmp_path)
    assert read_tuned(key, tmp_path) == tuned(key)


def test_the_engine_takes_the_measured_layout_and_else_the_safe_one(tmp_path, monkeypatch):
    def here():
        return layout_here(bundle(), "tiny:1", MACHINE, tmp_path, lora=False)

    assert here() == default_layout(MACHINE)
    write_tuned(tuned(tuning_key(bundle(), "tiny:1", MACHINE, lora=False), FAST), tmp_path)
    assert here() == FAST

    monkeypatch.setattr(tuning, "compiler_missing", lambda: "no compiler")
    assert here() == default_layout(MACHINE)


@pytest.mark.parametrize("cores", [1, 2, 4, 8, 16, 64])
def test_the_safe_layout_is_tried_first_and_none_twice(cores):
    machine = Machine(cpu="x", cores=cores, processors=cores, node_cores=cores, limited=False, memory_gib=16)
    layouts = [candidate.layout for candidate in first_candidates(machine)]

    assert layouts[0] == default_layout(machine)
    assert len(set(map(str, layouts))) == len(layouts)


def test_both_threads_of_each_core_are_tried_where_there_are_two():
    machine = Machine(cpu="x", cores=2, processors=4, node_cores=2, limited=False, memory_gib=16)

    assert [c.layout.threads for c in first_candidates(machine) if c.layout.processes == "joined"] == [2, 4, 1]


def test_compiling_is_tried_only_where_it_is_possible():
    best = trial("a", 1)
    assert compiled_candidate(best, bundle(), lora=False).layout == FAST

    assert compiled_candidate(best, bundle(), lora=True) is None
    assert compiled_candidate(best, bundle(enforce_eager=True), lora=False) is None


def test_a_later_layout_must_be_clearly_faster():
    assert choose([trial("safe", 10, 100, 100), trial("same", 10.3, 103, 103)]).name == "safe"
    assert choose([trial("safe", 10, 100, 100), trial("faster", 11, 110, 110)]).name == "faster"
    assert choose([trial("lost", failure="it fell"), trial("stood", 1, 1, 1)]).name == "stood"
    with pytest.raises(EngineFailed, match="it fell"):
        choose([trial("lost", failure="it fell")])


async def test_tuning_goes_from_layout_to_layout_and_compiles_the_best(monkeypatch):
    """Doubles stand for the engines; what is real here is the order and the choice."""
    scores = {"apart": 5.0, "joined": 20.0}

    async def measured(bundle, candidate, model, adapters):
        rate = scores[candidate.layout.processes] + (candidate.layout.threads or 0) + 10 * candidate.layout.compiled
        return trial(candidate.name, rate, rate, rate, layout=candidate.layout)

    monkeypatch.setattr(tuning, "_try", measured)
    key = tuning_key(bundle(), "tiny:1", MACHINE, lora=False)
    events = [event async for event in tune(bundle(), key, MACHINE, model=None, adapters={})]

    assert [isinstance(event, Candidate) for event in events[:-1]] == [True, False] * (len(events) // 2)
    assert events[-1].layout == FAST
    assert events[-1].chosen == "joined, 2 threads, compiled"
    assert len(events[-1].trials) == len(first_candidates(MACHINE)) + 1


def test_others_are_what_is_busy_and_not_ours(monkeypatch):
    monkeypatch.setattr(tuning.psutil.Process, "cpu_affinity", lambda self: [0, 1])
    clock, busy, own = iter([0.0, 10.0]), iter([100.0, 118.0]), iter([5.0, 17.0])
    monkeypatch.setattr(tuning.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(tuning, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(tuning, "_own_seconds", lambda: next(own))

    assert tuning.Others().share() == pytest.approx(0.3)
