"""Which versions are served, and what their names stand for; and that no change is lost."""

import json
import multiprocessing
import threading

import pytest

from adapters.manifest import AdapterError
from adapters.registry import LIVE, Loaded, Reference, Registry, RegistryFile

ONE, TWO, THREE, FOUR = ("1" * 16, "2" * 16, "3" * 16, "4" * 16)


def held(state):
    return [one.label for one in state.loaded]


def loaded(state, version, *, name="a", pinned=False, capacity=3, last_used=None):
    new = Loaded(name=name, version=version, pinned=pinned)
    return state.with_loaded(new, capacity=capacity, last_used=last_used or {})


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("a", ("a", LIVE)), ("a@live", ("a", LIVE)), ("a@canary", ("a", "canary")), (f"a.b-c_1@{ONE}", ("a.b-c_1", ONE))],
)
def test_references(text, parsed):
    assert Reference.parse(text) == parsed


@pytest.mark.parametrize("text", ["", "@", "a@", "@live", "A", "a@B", "a b", "a@b@c", "../a", "a/b", "a\n", "a@live\n", "x" * 64])
def test_what_is_no_reference(text):
    with pytest.raises(AdapterError, match="is no adapter: write NAME, NAME@VERSION or NAME@ALIAS"):
        Reference.parse(text)


def test_a_version_stands_for_itself_and_an_alias_for_what_it_was_pointed_to():
    state = Registry().packed({"a": ONE}).pointed("a", TWO, "canary")

    assert state.resolve(Reference("a")) == ONE
    assert state.resolve(Reference("a", "canary")) == TWO
    assert state.resolve(Reference("a", THREE)) == THREE
    assert state.resolve(Reference("a", "none")) is None
    assert state.resolve(Reference("b")) is None


def test_what_is_packed_first_is_loaded_and_live():
    state = Registry().packed({"a": ONE, "b": TWO})

    assert held(state) == [f"a@{ONE}", f"b@{TWO}"]
    assert state.aliases_of("a", ONE) == [LIVE]
    assert state.adapters["a"].history == {}


def test_packing_the_same_again_changes_nothing():
    state = Registry().packed({"a": ONE}).pointed("a", TWO, LIVE)

    assert state.packed({"a": ONE}) is state  # what was promoted since then stays


def test_a_new_version_becomes_live_and_the_old_one_is_remembered():
    state = Registry().packed({"a": ONE}).pointed("a", ONE, "canary").packed({"a": TWO})

    assert state.adapters["a"].aliases == {LIVE: TWO, "canary": ONE}
    assert state.adapters["a"].history == {LIVE: [ONE]}
    assert held(state) == [f"a@{ONE}", f"a@{TWO}"]
    assert held(state.packed({"a": ONE})) == held(state)  # back again: live, and loaded once
    assert state.packed({"a": ONE}).resolve(Reference("a")) == ONE


def test_pointing_and_rolling_back():
    state = Registry().packed({"a": ONE})
    state = state.pointed("a", TWO, LIVE).pointed("a", TWO, LIVE).pointed("a", THREE, LIVE)

    assert state.adapters["a"].history[LIVE] == [ONE, TWO]
    assert state.previous("a", LIVE) == TWO
    state = state.rolled_back("a", LIVE)
    assert (state.resolve(Reference("a")), state.previous("a", LIVE)) == (TWO, ONE)
    state = state.rolled_back("a", LIVE)
    assert state.resolve(Reference("a")) == ONE
    for name, alias in (("a", LIVE), ("a", "none"), ("b", LIVE)):
        with pytest.raises(AdapterError, match=f"{name}@{alias} stood for no other version before; promote one"):
            state.rolled_back(name, alias)


def test_the_last_ten_are_remembered():
    state = Registry().packed({"a": f"{0:016x}"})
    for number in range(1, 15):
        state = state.pointed("a", f"{number:016x}", LIVE)

    assert state.adapters["a"].history[LIVE] == [f"{number:016x}" for number in range(4, 14)]


def test_every_change_is_a_generation_of_its_own():
    state = Registry()
    for change in (lambda s: s.packed({"a": ONE}), lambda s: s.pointed("a", TWO, LIVE), lambda s: s.rolled_back("a", LIVE)):
        after = change(state)
        assert after.generation > state.generation
        state = after


# Slots


def test_there_is_room_up_to_the_capacity():
    state, evicted = loaded(Registry().packed({"a": ONE}), TWO, capacity=2)

    assert (held(state), evicted) == ([f"a@{ONE}", f"a@{TWO}"], [])


def test_the_least_recently_used_makes_room():
    state = Registry().packed({"a": ONE})
    for version in (TWO, THREE):
        state, _ = loaded(state, version)
    after, evicted = loaded(state, FOUR, last_used={f"a@{TWO}": 9.0, f"a@{THREE}": 8.0})

    assert [one.version for one in evicted] == [THREE]
    assert held(after) == [f"a@{ONE}", f"a@{TWO}", f"a@{FOUR}"]
    _, evicted = loaded(state, FOUR, last_used={f"a@{THREE}": 8.0})
    assert [one.version for one in evicted] == [TWO]  # never used


def test_what_is_pinned_or_has_an_alias_never_makes_room():
    state = Registry().packed({"a": ONE}).pointed("a", TWO, "canary")
    state, _ = loaded(state, TWO)
    state, _ = loaded(state, THREE, pinned=True)
    with pytest.raises(AdapterError, match=r"all 3 slots hold .* pinned or stand behind an alias; unload one, or raise "
                       r"engine\.max_cpu_loras"):  # fmt: skip
        loaded(state, FOUR)
    after, evicted = loaded(state.without_alias("a", "canary"), FOUR, last_used={f"a@{TWO}": 99.0})
    assert [one.version for one in evicted] == [TWO]
    assert held(after) == [f"a@{ONE}", f"a@{THREE}", f"a@{FOUR}"]


def test_loading_what_is_loaded_takes_no_other_slot_and_may_pin_it():
    state, _ = loaded(Registry().packed({"a": ONE}), TWO, capacity=2)
    state, evicted = loaded(state, TWO, capacity=2, pinned=True)

    assert evicted == []
    assert [one.pinned for one in state.loaded] == [False, True]


def test_unloading():
    state, _ = loaded(Registry().packed({"a": ONE}), TWO, pinned=True)

    assert held(state.unloaded("a", TWO)) == [f"a@{ONE}"]
    with pytest.raises(AdapterError, match=f"a@{THREE} is not loaded"):
        state.unloaded("a", THREE)
    with pytest.raises(AdapterError, match=f"a@{ONE} is canary, live: promote another version first"):
        state.pointed("a", ONE, "canary").unloaded("a", ONE)


def test_taking_an_alias_away():
    state = Registry().packed({"a": ONE}).pointed("a", TWO, "canary")

    assert state.without_alias("a", "canary").resolve(Reference("a", "canary")) is None
    with pytest.raises(AdapterError, match="a@live cannot be taken away"):
        state.without_alias("a", LIVE)
    for name, alias in (("a", "none"), ("b", "canary")):
        with pytest.raises(AdapterError, match="is not set"):
            state.without_alias(name, alias)


# The file


@pytest.fixture
def file(tmp_path):
    return RegistryFile(tmp_path / "box" / "adapters.json")


def test_no_file_is_an_empty_state(file):
    assert file.read() == Registry()


def test_what_was_changed_is_read(file):
    after = file.change(lambda state: state.packed({"a": ONE}).pointed("a", TWO, "canary"))

    assert file.read() == after
    assert RegistryFile(file.path).read().resolve(Reference("a", "canary")) == TWO


def test_a_change_that_fails_or_changes_nothing_leaves_the_file_alone(file):
    file.change(lambda state: state.packed({"a": ONE}))
    before = (file.path.read_bytes(), file.path.stat().st_mtime_ns, file.path.stat().st_ino)
    with pytest.raises(AdapterError):
        file.change(lambda state: state.unloaded("a", ONE))
    file.change(lambda state: state)

    assert (file.path.read_bytes(), file.path.stat().st_mtime_ns, file.path.stat().st_ino) == before


def test_a_reader_never_sees_half_a_change(file):
    file.change(lambda state: state.packed({"a": ONE}))
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            seen.append(file.read().generation)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(60):
            file.change(lambda state, n=number: state.pointed("a", f"{n:016x}", f"alias{n}"))
    finally:
        done.set()
        reader.join()

    assert seen == sorted(seen)
    assert len(set(seen)) > 1


def add_aliases(path, letter):
    for number in range(20):
        RegistryFile(path).change(lambda state, n=number: state.pointed("a", ONE, f"{letter}{n}"))


@pytest.mark.parametrize("kind", [threading.Thread, multiprocessing.get_context("spawn").Process])
def test_changes_at_once_lose_nothing(file, kind):
    file.change(lambda state: state.packed({"a": ONE}))
    workers = [kind(target=add_aliases, args=(file.path, letter)) for letter in "xy"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    names = file.read().adapters["a"].aliases
    assert set(names) == {LIVE, *(f"{letter}{n}" for letter in "xy" for n in range(20))}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"generation": "x"}', '{"slots": []}', '{"loaded": [{"name": "a"}]}'])
def test_a_file_that_cannot_be_read_says_what_to_do(file, content):
    file.path.parent.mkdir()
    file.path.write_text(content)
    for act in (file.read, lambda: file.change(lambda state: state.packed({"a": ONE}))):
        with pytest.raises(AdapterError, match=r"adapters\.json cannot be read; move it away to begin anew"):
            act()
    assert file.path.read_text() == content


@pytest.mark.parametrize("version", [f"../../{ONE}", f"{ONE}x", f"{ONE}/.."])
def test_what_is_no_version_is_not_read_from_the_file(file, version):
    file.path.parent.mkdir()
    file.path.write_text(json.dumps({"loaded": [{"name": "a", "version": version}]}))
    with pytest.raises(AdapterError):
        file.read()
