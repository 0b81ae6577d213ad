"""Adapters at run time: the engine is brought to the registry; a request never gets another version's answer, or the base's."""

import asyncio
import math
import random
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry

from adapters.manifest import AdapterError
from adapters.registry import Reference
from services.errors import AdapterRefused, EngineRefused, EngineUnavailable, UnknownModel
from services.slots import Slots, smoke
from services.telemetry import Telemetry
from tests.unit.services.conftest import Library

ONE, TWO, THREE, FOUR = (digit * 16 for digit in "1234")
LIVE = {"a": 1.0}
SPLIT = {"a": 90.0, "a@canary": 10.0}


@pytest.fixture(autouse=True)
def stored(library):
    library.put("a", ONE, TWO, THREE, FOUR, labels=["yes", "no"])
    library.put("b", ONE)


@pytest.fixture
async def serving(slots, state_file):
    """Slots that have a@1 live, reconciled by hand."""
    state_file.change(lambda state: state.packed({"a": ONE}))
    await slots.reconcile()
    return slots


async def until(condition, seconds=2.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  what is waited for knows of no event
            await asyncio.sleep(0.005)


def other_replica(state_file, engine, library):
    return Slots(state_file, engine, library.shelf(), Telemetry(CollectorRegistry()), capacity=3)


def live(state_file, name="a", alias="live"):
    return state_file.read().resolve(Reference(name, alias))


async def test_during_a_rollout_boxes_of_two_bentos_each_answer_with_their_own_version(tmp_path, state_file, lora_engine):
    """They share the state; each has in its store what its own Bento brought, and whoever starts makes its own the live one."""

    def box(*versions):
        library = Library(tmp_path / "-".join(versions))
        library.put("a", *versions)
        return other_replica(state_file, type(lora_engine)(), library)

    async def answers(slots, version):
        await until(slots.ready)
        await until(lambda: slots._state == state_file.read())
        for _ in range(20):
            assert slots.choose(LIVE, None).label == f"a@{version}"
            await asyncio.sleep(0.005)

    old, again = box(ONE), box(ONE, THREE)
    async with old.running({"a": ONE}, seconds=0.01):
        await answers(old, ONE)
        new = box(TWO)
        async with new.running({"a": TWO}, seconds=0.01):
            await asyncio.gather(answers(old, ONE), answers(new, TWO))
            assert live(state_file) == TWO
            with pytest.raises(UnknownModel):
                old.choose({f"a@{FOUR}": 1.0}, None)  # a version by its name is that version or none
            async with again.running({"a": ONE}, seconds=0.01):
                await asyncio.gather(answers(old, ONE), answers(new, TWO), answers(again, ONE))
                assert live(state_file) == ONE


# Reconciling


async def test_at_start_the_engine_is_brought_to_what_was_packed(slots, lora_engine, state_file):
    lora_engine.names = {f"a@{FOUR}"}  # left of another state
    async with slots.running({"a": ONE, "b": ONE}, seconds=0.01):
        await until(slots.ready)

        assert lora_engine.names == {f"a@{ONE}", f"b@{ONE}"}
        assert slots.choose(LIVE, None).label == f"a@{ONE}"
    assert live(state_file) == ONE


async def test_what_was_promoted_outlives_a_restart(slots, lora_engine, library, state_file):
    async with slots.running({"a": ONE}, seconds=0.01):
        await until(slots.ready)
        await slots.promote(f"a@{TWO}", "live")
    fresh = other_replica(state_file, lora_engine, library)
    lora_engine.names = {f"a@{ONE}"}  # as the command line of a new engine says
    async with fresh.running({"a": ONE}, seconds=0.01):
        await until(fresh.ready)
        assert fresh.choose(LIVE, None).label == f"a@{TWO}"


async def test_before_the_engine_is_up_nothing_is_ready_and_nothing_answers(slots, lora_engine):
    lora_engine.up = False
    async with slots.running({"a": ONE}, seconds=0.01):
        await asyncio.sleep(0.05)
        assert not slots.ready()
        with pytest.raises(EngineUnavailable, match=f"a@{ONE} is being loaded"):
            slots.choose(LIVE, None)
        lora_engine.up = True
        await until(slots.ready)
        assert slots.choose(LIVE, None).label == f"a@{ONE}"


async def test_an_engine_that_was_lost_is_filled_again(slots, lora_engine):
    async with slots.running({"a": ONE}, seconds=0.01):
        await until(slots.ready)
        await slots.load(f"a@{TWO}", pin=False)
        lora_engine.up, lora_engine.names = False, set()
        await until(lambda: not slots.ready())
        lora_engine.up = True
        await until(slots.ready)
        assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}"}


async def test_another_replicas_change_is_taken_over(serving, lora_engine, library, state_file):
    theirs = other_replica(state_file, type(lora_engine)(), library)
    await theirs.reconcile()
    await theirs.promote(f"a@{TWO}", "live")
    await theirs.load(f"a@{THREE}", pin=True)
    assert serving.choose(LIVE, None).label == f"a@{ONE}"  # until it looks
    await serving.reconcile()

    assert serving.choose(LIVE, None).label == f"a@{TWO}"
    assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}", f"a@{THREE}"}
    await theirs.unload(f"a@{ONE}")
    await serving.reconcile()
    assert lora_engine.names == {f"a@{TWO}", f"a@{THREE}"}


async def test_what_is_there_is_not_loaded_again(serving, lora_engine):
    before = list(lora_engine.calls)
    await serving.reconcile()

    assert lora_engine.calls == before


async def test_a_version_that_fails_is_tried_once_and_answers_503(slots, state_file, lora_engine, library):
    library.refused[f"a@{ONE}"] = AdapterError("lora_alpha: 0 must be above 0")
    state_file.change(lambda state: state.packed({"a": ONE, "b": ONE}))
    for _ in range(3):
        await slots.reconcile()

    assert lora_engine.loads() == [f"b@{ONE}"]
    assert slots.choose({"b": 1.0}, None).label == f"b@{ONE}"
    for _ in range(3):
        with pytest.raises(EngineUnavailable, match="could not be loaded"):
            slots.choose(LIVE, None)
    assert slots.ready()  # but for what was refused
    [problem] = [slot["problem"] for slot in slots.overview()["slots"] if slot["adapter"] == f"a@{ONE}"]
    assert "lora_alpha" in problem


async def test_a_version_that_cannot_generate_is_tried_once(slots, state_file, lora_engine):
    lora_engine.spoilt[f"a@{ONE}"] = math.nan
    state_file.change(lambda state: state.packed({"a": ONE}))
    for _ in range(3):
        await slots.reconcile()

    assert lora_engine.loads() == [f"a@{ONE}"]
    assert lora_engine.names == set()
    with pytest.raises(EngineUnavailable, match="could not be loaded"):
        slots.choose(LIVE, None)


async def test_a_version_that_failed_may_be_loaded_when_it_is_mended(slots, state_file, library):
    library.refused[f"a@{ONE}"] = AdapterError("broken")
    state_file.change(lambda state: state.packed({"a": ONE}))
    await slots.reconcile()
    library.refused.clear()
    await slots.load(f"a@{ONE}", pin=False)

    assert slots.choose(LIVE, None).label == f"a@{ONE}"
    await slots.reconcile()
    assert slots.choose(LIVE, None).label == f"a@{ONE}"


async def test_a_version_that_is_not_in_the_store(slots, state_file):
    state_file.change(lambda state: state.packed({"a": "f" * 16}))
    await slots.reconcile()
    with pytest.raises(EngineUnavailable, match="could not be loaded"):
        slots.choose(LIVE, None)


async def test_a_version_whose_manifest_is_broken_does_not_stop_the_others(slots, state_file, library):
    (library.root / f"a@{ONE}" / "ekiben.json").write_text("{")
    state_file.change(lambda state: state.packed({"a": ONE, "b": ONE}))
    with suppress(AdapterError):
        await slots.reconcile()

    assert slots.choose({"b": 1.0}, None).label == f"b@{ONE}"


async def test_an_engine_that_is_lost_while_a_version_is_tried_is_not_the_versions_fault(
    slots, state_file, lora_engine, monkeypatch
):
    async def lost(_path, _payload):
        lora_engine.up = False
        raise EngineUnavailable("The engine was lost before it had answered.")

    monkeypatch.setattr(lora_engine, "complete", lost)
    state_file.change(lambda state: state.packed({"a": ONE}))
    with suppress(EngineUnavailable):
        await slots.reconcile()
    monkeypatch.undo()
    lora_engine.up, lora_engine.names = True, set()  # a new engine
    await slots.reconcile()

    assert slots.choose(LIVE, None).label == f"a@{ONE}"


@pytest.mark.parametrize("said", [EngineUnavailable("The engine failed."), EngineRefused("no such model", status=404)])
async def test_an_engine_that_was_started_anew_while_a_version_is_tried(slots, state_file, lora_engine, monkeypatch, said):
    async def anew(_path, _payload):
        lora_engine.names = set()
        raise said

    monkeypatch.setattr(lora_engine, "complete", anew)
    state_file.change(lambda state: state.packed({"a": ONE}))
    await slots.reconcile()
    monkeypatch.undo()
    await slots.reconcile()

    assert slots.choose(LIVE, None).label == f"a@{ONE}"


async def test_a_version_that_the_engine_fails_on_does_not_stop_the_others(slots, state_file, lora_engine):
    lora_engine.refused[f"a@{ONE}"] = EngineUnavailable("The engine failed on this request.")
    state_file.change(lambda state: state.packed({"b": ONE, "a": ONE}))
    for _ in range(3):
        with suppress(EngineUnavailable):
            await slots.reconcile()

    assert slots.choose({"b": 1.0}, None).label == f"b@{ONE}"


async def test_what_the_engine_has_answers_while_another_is_being_loaded(slots, state_file, lora_engine):
    lora_engine.names, lora_engine.hangs = {f"a@{ONE}"}, {f"b@{ONE}"}
    state_file.change(lambda state: state.packed({"a": ONE, "b": ONE}))
    reconciling = asyncio.create_task(slots.reconcile())
    await until(lora_engine.loads)
    try:
        assert slots.choose(LIVE, None).label == f"a@{ONE}"
    finally:
        reconciling.cancel()


async def test_an_unforeseen_error_does_not_end_the_keeping(slots, lora_engine, library):
    library.refused[f"a@{ONE}"] = ZeroDivisionError()
    async with slots.running({"a": ONE, "b": ONE}, seconds=0.01):
        await asyncio.sleep(0.05)
        library.refused.clear()
        await until(slots.ready, 0.5)
    assert f"b@{ONE}" in lora_engine.names


async def test_packing_anew_does_not_fill_more_slots_than_there_are(lora_engine, state_file, library, registry):
    small = Slots(state_file, lora_engine, library.shelf(), Telemetry(registry), capacity=1)
    for version in (ONE, TWO):
        async with small.running({"a": version}, seconds=0.01):
            await until(small.ready)

    assert lora_engine.names == {f"a@{TWO}"}


async def test_watchers_hear_of_other_versions(slots, state_file):
    heard = []
    slots.watch(lambda: heard.append(slots.tags(LIVE)))
    state_file.change(lambda state: state.packed({"a": ONE}))
    await slots.reconcile()
    await slots.reconcile()
    await slots.promote(f"a@{TWO}", "live")

    assert heard[0] == [f"box-adapter-a:{ONE}"]
    assert heard[-1] == [f"box-adapter-a:{TWO}"]
    assert len(heard) == 3  # packed, loaded, pointed


async def test_watchers_hear_of_a_bundle_without_adapters(slots):
    heard = []
    slots.watch(lambda: heard.append(1))
    async with slots.running({}, seconds=0.01):
        await asyncio.sleep(0.03)

    assert heard == [1]


async def test_metrics_of_the_slots(serving, registry, lora_engine):
    await serving.load(f"a@{TWO}", pin=True)
    lora_engine.refused[f"a@{THREE}"] = EngineRefused("bad rank", status=400)
    with pytest.raises(AdapterRefused, match="bad rank"):
        await serving.load(f"a@{THREE}", pin=False)

    value = registry.get_sample_value
    assert value("llm_adapter_slots") == 3
    assert value("llm_adapter_slots_pinned") == 1
    assert value("llm_adapter_versions_loaded", {"adapter": "a"}) == 2
    assert value("llm_adapter_load_duration_seconds_count", {"adapter": "a", "outcome": "ok"}) == 2
    assert value("llm_adapter_load_duration_seconds_count", {"adapter": "a", "outcome": "refused"}) == 1


# Choosing


async def split(serving, state_file):
    await serving.promote(f"a@{TWO}", "canary")
    assert live(state_file, alias="canary") == TWO


async def test_shares_are_kept(serving, state_file):
    await split(serving, state_file)
    random.seed(7)
    drawn = [serving.choose(SPLIT, None).label for _ in range(4000)]

    assert set(drawn) == {f"a@{ONE}", f"a@{TWO}"}
    assert drawn.count(f"a@{TWO}") / len(drawn) == pytest.approx(0.1, abs=0.015)  # three standard deviations
    keyed = [serving.choose(SPLIT, f"user{n}").label for n in range(4000)]
    assert keyed.count(f"a@{TWO}") / len(keyed) == pytest.approx(0.1, abs=0.015)


async def test_one_key_keeps_to_one_version_on_every_replica(serving, state_file, lora_engine, library):
    await split(serving, state_file)
    theirs = other_replica(state_file, lora_engine, library)
    await theirs.reconcile()
    for n in range(50):
        chosen = {slots.choose(SPLIT, f"user{n}").label for slots in (serving, theirs) for _ in range(5)}
        assert len(chosen) == 1


async def test_raising_a_canarys_share_moves_users_in_one_direction_only(serving, state_file):
    await split(serving, state_file)
    few = {n for n in range(500) if serving.choose(SPLIT, f"user{n}").label == f"a@{TWO}"}
    many = {n for n in range(500) if serving.choose({"a": 50.0, "a@canary": 50.0}, f"user{n}").label == f"a@{TWO}"}

    assert few < many


async def test_an_alias_that_is_not_set_leaves_its_share_to_the_others(serving):
    assert {serving.choose({"a": 1.0, "a@canary": 99.0}, f"u{n}").label for n in range(100)} == {f"a@{ONE}"}


async def test_a_version_that_is_not_loaded_leaves_its_share_to_the_others(serving):
    shares = {f"a@{FOUR}": 99.0, "a": 1.0}

    assert {serving.choose(shares, f"u{n}").label for n in range(100)} == {f"a@{ONE}"}


@pytest.mark.parametrize("shares", [{"a@canary": 1.0}, {f"a@{FOUR}": 1.0}, {"c": 1.0}, {}])
async def test_what_is_not_loaded_is_an_unknown_model(serving, shares):
    with pytest.raises(UnknownModel, match="No adapter of this model is loaded"):
        serving.choose(shares, None)


async def test_what_is_served_brings_its_tag_and_its_labels(serving):
    served = serving.choose(LIVE, None)

    assert (served.tag, served.labels) == (f"box-adapter-a:{ONE}", ("yes", "no"))


async def test_describing_a_route(serving, state_file):
    await split(serving, state_file)

    assert serving.describe({**SPLIT, "a@none": 5.0}) == [
        {"reference": "a", "share": 90.0, "version": ONE, "tag": f"box-adapter-a:{ONE}", "loaded": True, "pinned": False},
        {"reference": "a@canary", "share": 10.0, "version": TWO, "tag": f"box-adapter-a:{TWO}", "loaded": True, "pinned": False},
        {"reference": "a@none", "share": 5.0, "version": None, "tag": None, "loaded": False, "pinned": False},
    ]
    assert serving.tags(SPLIT) == [f"box-adapter-a:{ONE}", f"box-adapter-a:{TWO}"]


# Changing


async def test_loading_beside_what_runs(serving, lora_engine, state_file):
    assert await serving.load(f"a@{TWO}", pin=False) == f"a@{TWO}"

    assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}"}
    assert lora_engine.calls[-2:] == [("load", f"a@{TWO}"), ("complete", f"a@{TWO}")]  # it has said a few words
    assert serving.choose({f"a@{TWO}": 1.0}, None).label == f"a@{TWO}"
    assert live(state_file) == ONE


async def test_loading_again_pins_or_frees_without_troubling_the_engine(serving, lora_engine, state_file):
    await serving.load(f"a@{TWO}", pin=False)
    before = list(lora_engine.calls)
    for pin in (True, False):
        await serving.load(f"a@{TWO}", pin=pin)
        assert [one.pinned for one in state_file.read().loaded] == [False, pin]
    assert lora_engine.calls == before


async def fill(slots):
    """Take all three slots: a@1 live, a@2 and a@3 free, a@2 used last."""
    await slots.load(f"a@{TWO}", pin=False)
    await slots.load(f"a@{THREE}", pin=False)
    slots.choose({f"a@{THREE}": 1.0}, None)
    await asyncio.sleep(0.002)
    slots.choose({f"a@{TWO}": 1.0}, None)


async def test_the_least_recently_used_makes_room(serving, lora_engine, registry):
    await fill(serving)
    await serving.load(f"a@{FOUR}", pin=False)

    assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}", f"a@{FOUR}"}
    assert lora_engine.calls.index(("unload", f"a@{THREE}")) < lora_engine.calls.index(("load", f"a@{FOUR}"))
    assert registry.get_sample_value("llm_adapter_evictions_total", {"adapter": "a"}) == 1
    with pytest.raises(UnknownModel):
        serving.choose({f"a@{THREE}": 1.0}, None)


async def test_what_is_pinned_or_has_an_alias_makes_no_room(serving, lora_engine, state_file):
    await serving.load(f"a@{TWO}", pin=True)
    await serving.promote(f"a@{THREE}", "canary")
    before, calls = state_file.read(), list(lora_engine.calls)
    with pytest.raises(AdapterRefused, match="all 3 slots hold adapters that are pinned or stand behind an alias"):
        await serving.load(f"a@{FOUR}", pin=False)

    assert state_file.read() == before
    assert lora_engine.calls == calls  # it was not troubled


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [(math.nan, "no finite probabilities"), (math.inf, "no finite"), (EngineRefused("rank", status=400), "cannot generate")],
)
async def test_a_version_that_cannot_generate_is_taken_out_again(serving, lora_engine, state_file, spoilt, says):
    lora_engine.spoilt[f"a@{TWO}"] = spoilt
    before = state_file.read()
    for change in (serving.load(f"a@{TWO}", pin=False), serving.promote(f"a@{TWO}", "live")):
        with pytest.raises(AdapterRefused, match=says):
            await change

    assert lora_engine.names == {f"a@{ONE}"}
    assert state_file.read() == before
    assert serving.choose(LIVE, None).label == f"a@{ONE}"


async def test_what_had_made_room_for_a_version_that_failed_comes_back(serving, lora_engine, state_file):
    await fill(serving)
    before = state_file.read()
    lora_engine.spoilt[f"a@{FOUR}"] = math.nan
    with pytest.raises(AdapterRefused):
        await serving.load(f"a@{FOUR}", pin=False)
    assert state_file.read() == before
    await serving.reconcile()

    assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}", f"a@{THREE}"}


@pytest.mark.parametrize("version", [FOUR, "f" * 16])
async def test_what_the_gate_refuses_costs_no_other_its_place(serving, lora_engine, library, version):
    await fill(serving)
    library.refused[f"a@{FOUR}"] = AdapterError("refused")
    with pytest.raises(AdapterRefused):
        await serving.load(f"a@{version}", pin=False)

    assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}", f"a@{THREE}"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"c@{ONE}", "the bundle has no adapter named 'c', so no route could use it; there is: a"),
        ("a@canary", "a@canary stands for no version; write NAME@VERSION"),
        (f"a@{'f' * 16}", "is not in the model store; `ekiben adapter add` puts it there"),
        ("A", "is no adapter: write NAME"),
    ],
)
async def test_what_cannot_be_loaded(serving, lora_engine, text, says):
    before = set(lora_engine.names)
    with pytest.raises(AdapterRefused, match=says):
        await serving.load(text, pin=False)

    assert lora_engine.names == before


async def test_promoting_and_rolling_back(serving, lora_engine, state_file):
    assert await serving.promote(f"a@{TWO}", "live") == f"a@{TWO}"
    assert serving.choose(LIVE, None).label == f"a@{TWO}"
    assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}"}  # what it is answering it finishes
    await serving.unload(f"a@{ONE}")
    assert await serving.roll_back("a", "live") == f"a@{ONE}"  # loads it again

    assert serving.choose(LIVE, None).label == f"a@{ONE}"
    assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}"}
    with pytest.raises(AdapterRefused, match="stood for no other version before"):
        await serving.roll_back("a", "live")


async def test_promoting_an_alias(serving):
    await serving.promote(f"a@{TWO}", "canary")

    assert await serving.promote("a@canary", "live") == f"a@{TWO}"
    assert serving.choose(LIVE, None).label == f"a@{TWO}"


async def test_promoting_keeps_a_pin(serving, state_file):
    await serving.load(f"a@{TWO}", pin=True)
    await serving.promote(f"a@{TWO}", "live")

    assert {one.version: one.pinned for one in state_file.read().loaded} == {ONE: False, TWO: True}


async def test_unloading(serving, lora_engine):
    await serving.load(f"a@{TWO}", pin=False)
    assert await serving.unload(f"a@{TWO}") == f"a@{TWO}"

    assert lora_engine.names == {f"a@{ONE}"}
    with pytest.raises(UnknownModel):
        serving.choose({f"a@{TWO}": 1.0}, None)
    with pytest.raises(AdapterRefused, match="is not loaded"):
        await serving.unload(f"a@{TWO}")
    with pytest.raises(AdapterRefused, match=f"a@{ONE} is live: promote another version first"):
        await serving.unload("a")
    assert lora_engine.names == {f"a@{ONE}"}


async def test_changes_at_once_come_one_after_another(serving, lora_engine, state_file, library):
    library.put("a", *(f"{n:016x}" for n in range(8)))
    changes = [serving.promote(f"a@{n:016x}", "live") for n in range(8)]
    done = await asyncio.gather(*changes)

    assert lora_engine.most_at_once == 1
    state = state_file.read()
    assert [f"a@{v}" for v in [*state.adapters["a"].history["live"][1:], live(state_file)]] == list(done)
    assert lora_engine.names == {one.label for one in state.loaded}
    assert len(lora_engine.names) == 3


async def test_keeping_waits_for_a_change(slots, lora_engine):
    async with slots.running({"a": ONE}, seconds=0.001):
        await until(slots.ready)
        for version in (TWO, THREE):
            await slots.load(f"a@{version}", pin=False)
        await asyncio.sleep(0.02)

        assert lora_engine.loads() == [f"a@{ONE}", f"a@{TWO}", f"a@{THREE}"]  # none was taken for left over
        assert lora_engine.most_at_once == 1


@pytest.mark.parametrize("change", ["load", "promote"])
async def test_a_load_that_takes_too_long_changes_nothing(serving, lora_engine, state_file, registry, monkeypatch, change):
    monkeypatch.setattr("services.slots.CHANGE_SECONDS", 0.05)
    lora_engine.hangs.add(f"a@{TWO}")
    before = state_file.read()
    with pytest.raises(EngineUnavailable, match=r"was not loaded in 0 s; the engine is busy, try again"):
        await (serving.load(f"a@{TWO}", pin=False) if change == "load" else serving.promote(f"a@{TWO}", "live"))

    assert state_file.read() == before
    assert serving.choose(LIVE, None).label == f"a@{ONE}"
    assert registry.get_sample_value("llm_adapter_load_duration_seconds_count", {"adapter": "a", "outcome": "error"}) == 1
    lora_engine.hangs.clear()
    await serving.load(f"a@{TWO}", pin=False)  # nothing is stuck


async def test_a_trial_that_takes_too_long_is_taken_out_again(serving, lora_engine, monkeypatch):
    monkeypatch.setattr("services.slots.CHANGE_SECONDS", 0.05)

    async def hang(*_args):
        await asyncio.sleep(60)

    monkeypatch.setattr(lora_engine, "complete", hang)
    with pytest.raises(EngineUnavailable):
        await serving.load(f"a@{TWO}", pin=False)

    assert lora_engine.names == {f"a@{ONE}"}


async def test_no_engine_no_change(serving, lora_engine, state_file):
    lora_engine.up, before = False, state_file.read()
    with pytest.raises(EngineUnavailable):
        await serving.load(f"a@{TWO}", pin=False)

    assert state_file.read() == before


async def test_a_registry_that_cannot_be_read_is_a_refusal(serving, state_file):
    state_file.path.write_text("{")
    with pytest.raises(AdapterRefused, match="move it away to begin anew"):
        await serving.load(f"a@{TWO}", pin=False)


async def test_the_overview(serving):
    await serving.promote(f"a@{TWO}", "canary")
    serving.choose({"a@canary": 1.0}, None)
    overview = serving.overview()

    assert overview["capacity"] == 3
    assert [slot["adapter"] for slot in overview["slots"]] == [f"a@{TWO}", f"a@{ONE}"]  # used last first
    assert [slot["aliases"] for slot in overview["slots"]] == [["canary"], ["live"]]
    assert all(slot["ready"] and slot["problem"] is None for slot in overview["slots"])
    assert overview["adapters"]["a"]["aliases"] == {"live": ONE, "canary": TWO}


@pytest.mark.parametrize(
    "body",
    [{}, {"choices": []}, {"choices": [{"logprobs": None}]}, {"choices": [{"logprobs": {"token_logprobs": []}}]},
     {"choices": [{"logprobs": {"token_logprobs": [-0.1, None]}}]}],
)  # fmt: skip
async def test_what_says_nothing_is_refused(body):
    class Mute:
        async def complete(self, _path, _payload):
            return body

    with pytest.raises(AdapterError, match="m: was loaded, but"):
        await smoke(Mute(), "m")


# An engine that sleeps


@pytest.fixture
def sleeping(state_file, lora_engine, library, registry):
    state_file.change(lambda state: state.packed({"a": ONE}))
    return Slots(state_file, lora_engine, library.shelf(), Telemetry(registry), capacity=3, wake_seconds=5)


async def test_an_engine_that_sleeps_is_asked_nothing_and_everything_is_served(sleeping, lora_engine, state_file):
    lora_engine.up = False
    async with sleeping.running({"a": ONE}, seconds=0.001):
        await until(sleeping.ready)
        await asyncio.sleep(0.02)

        assert sleeping.choose(LIVE, None).labels == ("yes", "no")
        assert sleeping.describe(LIVE)[0]["loaded"]
    assert lora_engine.calls == []


async def test_of_requests_at_once_one_brings_what_is_missing(sleeping, lora_engine, state_file):
    await sleeping.reconcile()
    await sleeping.promote(f"a@{TWO}", "live")
    await sleeping.load(f"a@{THREE}", pin=False)
    lora_engine.names, lora_engine.calls = {f"a@{ONE}", f"a@{FOUR}"}, []  # started anew; another replica's
    brought = await asyncio.gather(*(sleeping.bring(f"a@{TWO}") for _ in range(5)))

    assert brought == [True] * 5
    assert sorted(lora_engine.loads()) == [f"a@{TWO}", f"a@{THREE}"]
    assert lora_engine.names == {f"a@{ONE}", f"a@{TWO}", f"a@{THREE}"}
    assert not await sleeping.bring("tiny")


async def test_while_one_is_brought_the_others_are_not_refused(sleeping, lora_engine):
    await sleeping.reconcile()
    await sleeping.promote(f"a@{TWO}", "canary")
    lora_engine.names, lora_engine.hangs = {f"a@{ONE}"}, {f"a@{TWO}"}
    bringing = asyncio.create_task(sleeping.bring(f"a@{TWO}"))
    await until(lambda: lora_engine.at_once == 1)

    assert sleeping.choose({"a@canary": 1.0}, None).label == f"a@{TWO}"
    bringing.cancel()
    with suppress(asyncio.CancelledError):
        await bringing


async def test_what_the_engine_does_not_take_is_not_tried_for_every_request(sleeping, lora_engine):
    await sleeping.reconcile()
    await sleeping.promote(f"a@{TWO}", "canary")
    lora_engine.names, lora_engine.calls = {f"a@{ONE}"}, []
    lora_engine.refused[f"a@{TWO}"] = EngineRefused("rank 64", status=400)
    for _ in range(3):
        with pytest.raises(EngineUnavailable, match="could not be loaded") as caught:
            await sleeping.bring(f"a@{TWO}")
        assert "rank" not in str(caught.value)

    assert lora_engine.loads() == [f"a@{TWO}"]
    with pytest.raises(EngineUnavailable, match="could not be loaded"):
        sleeping.choose({"a@canary": 1.0}, None)
    assert sleeping.choose(LIVE, None).label == f"a@{ONE}"


async def test_an_engine_that_is_lost_while_it_is_brought_to_the_registry(sleeping, lora_engine):
    await sleeping.reconcile()
    lora_engine.up = False
    with pytest.raises(EngineUnavailable):
        await sleeping.bring(f"a@{ONE}")
    lora_engine.up = True

    assert await sleeping.bring(f"a@{ONE}")  # nothing is held against the version


async def test_while_a_version_is_brought_and_when_that_was_cut_short_it_is_ready(sleeping, lora_engine):
    await sleeping.reconcile()
    await sleeping.promote(f"a@{TWO}", "canary")
    lora_engine.names, lora_engine.hangs = set(), {f"a@{ONE}", f"a@{TWO}"}
    bringing = asyncio.create_task(sleeping.bring(f"a@{TWO}"))
    await until(lambda: lora_engine.at_once == 1)
    assert sleeping.ready()
    bringing.cancel()
    with suppress(asyncio.CancelledError):
        await bringing

    assert all(one["loaded"] for one in sleeping.describe({"a": 1.0, "a@canary": 1.0}))


async def test_letting_a_version_go_wakes_nobody(sleeping, lora_engine, state_file):
    await sleeping.reconcile()
    await sleeping.load(f"a@{TWO}", pin=False)
    lora_engine.calls = []
    await sleeping.unload(f"a@{TWO}")

    assert lora_engine.calls == []
    assert f"a@{TWO}" not in [one.label for one in state_file.read().loaded]
