"""Releases: planned, walked, resumed, recorded, and which one to go back to."""

import json
from dataclasses import replace

import pytest

from services.journal import Done, Journal, Released, ReleaseError
from services.release import Step, Walk, earlier


class Quiet:
    def step(self, text):
        pass

    def advance(self, done, total):
        pass


class World:
    """What steps make and look for: an image and its copy elsewhere."""

    def __init__(self):
        self.ran, self.image, self.pushed, self.fails = [], None, None, ""
        self.told = []

    def steps(self, **inputs):
        return [
            Step("build", "the image", self.build, {"base": "a", **inputs}, lambda done: self.image == done["image"]),
            Step("scan", "it", self.scan),
            Step("push", "the image", self.push, {}, lambda done: self.pushed == done["digest"]),
        ]

    def build(self, results, progress):
        return self._do("build", image="i1")

    def scan(self, results, progress):
        return self._do("scan")

    def push(self, results, progress):
        assert results["image"] == self.image
        return self._do("push", pushed=f"d-{self.image}") | {"digest": f"d-{self.image}"}

    def _do(self, step, **made):
        if self.fails == step:
            raise ReleaseError(f"no {step}")
        self.ran.append(step)
        for name, value in made.items():
            setattr(self, name, value)
        return {"image": made["image"]} if "image" in made else {}


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "box" / "releases.jsonl")


@pytest.fixture
def world():
    return World()


def walk(world, journal, bento="box:1", **inputs):
    world.ran.clear()
    Walk(bento, world.steps(**inputs), journal).run(Quiet(), world.told.append)
    return world.ran


def planned(world, journal, bento="box:1", **inputs):
    return [step.name for step in Walk(bento, world.steps(**inputs), journal).plan() if step.runs]


def test_the_plan_does_nothing_and_says_what_the_walk_then_does(world, journal):
    assert planned(world, journal) == ["build", "scan", "push"]
    assert (world.ran, journal.releases()) == ([], [])
    assert walk(world, journal) == ["build", "scan", "push"]
    assert planned(world, journal) == walk(world, journal) == ["scan"]


def test_a_walk_that_was_interrupted_goes_on_where_it_was(world, journal):
    world.fails = "push"
    with pytest.raises(ReleaseError, match="no push"):
        walk(world, journal)
    world.fails = ""

    assert planned(world, journal) == walk(world, journal) == ["scan", "push"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"base": "b"}, ["build", "scan"]),  # the same image came of it: its copy is there
        ({"bento": "box:2"}, ["build", "scan", "push"]),
    ],
)
def test_other_inputs_do_again_what_follows_from_them(world, journal, change, again):
    walk(world, journal)

    assert walk(world, journal, **change) == again


def test_what_is_there_without_a_record_is_not_made_again(world, journal):
    build, *others = world.steps()
    world.image = "i0"
    again = Walk("box:1", [replace(build, seen=lambda: {"image": "i0"}), *others], journal)

    assert [step.name for step in again.plan() if step.runs] == ["scan", "push"]
    assert again.run(Quiet(), world.told.append)["digest"] == "d-i0"
    assert world.ran == ["scan", "push"]


def test_what_is_not_there_any_more_is_made_again(world, journal):
    walk(world, journal)
    world.pushed = None
    assert planned(world, journal) == ["scan", "push"]
    world.image = None

    assert planned(world, journal) == ["build", "scan", "push"]  # before the image is there, what it will be is not known
    assert walk(world, journal) == ["build", "scan", "push"]


def test_each_step_tells_its_time_and_what_was_left_out(world, journal):
    walk(world, journal)
    walk(world, journal)

    assert [(one.name, one.skipped) for one in world.told[3:]] == [("build", True), ("scan", False), ("push", True)]
    assert all(one.seconds > 0 for one in world.told[:3])


def test_a_line_that_was_cut_off_is_none_and_another_stands_after_it(tmp_path, journal):
    journal.append(Done(bento="box:1", step="build", inputs="x", result={"image": "i"}, seconds=1))
    path = tmp_path / "box" / "releases.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "step", "bento": "box:1", "st')
    journal.append(released("box:1"))

    assert journal.found("box:1", "build", "x").result == {"image": "i"}
    assert [one.bento for one in journal.releases()] == ["box:1"]
    path.write_text(path.read_text() + json.dumps({"kind": "step", "bento": "box:1"}) + "\n")
    with pytest.raises(ReleaseError, match=r"releases.jsonl:4: not a line of this record"):
        journal.releases()


def test_two_releases_at_once_are_kept_apart(journal):
    with journal.held(), pytest.raises(ReleaseError, match="another release is under way"), journal.held():
        pass
    with journal.held():
        pass


def released(bento, kind="release"):
    return Released(bento=bento, kind=kind, schema="0001", options={})


@pytest.mark.parametrize(
    ("history", "wanted", "back"),
    [
        (["box:1", "box:2"], None, "box:1"),
        (["box:1", "box:2", "box:2"], None, "box:1"),
        (["box:1", "box:2", "box:3", "box:2"], None, "box:1"),  # gone back from 3: further back, not forward to 3
        (["box:1", "box:2", "box:3"], "box:1", "box:1"),
        (["box:aa1", "box:ab2", "box:3"], "ab", "box:ab2"),
    ],
)
def test_the_release_to_go_back_to(history, wanted, back):
    stands, target = earlier([released(bento) for bento in history], wanted)

    assert (stands.bento, target.bento) == (history[-1], back)


@pytest.mark.parametrize(
    ("history", "wanted", "told"),
    [
        ([], None, "nothing was released"),
        (["box:1"], None, "is the first release"),
        (["box:1", "box:2"], "box:2", "box:2 is the release that stands"),
        (["box:1", "box:2"], "7", "no release is named '7'"),
        (["box:aa", "box:ab", "box:2"], "a", "more than one release is named 'a'"),
    ],
)
def test_where_there_is_none_to_go_back_to(history, wanted, told):
    with pytest.raises(ReleaseError, match=told):
        earlier([released(bento) for bento in history], wanted)
