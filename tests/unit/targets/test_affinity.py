from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.affinity import PrefixAffinity, prefix_blocks, room
from targets.choice import Candidate

REPLICAS = [Candidate(f"replica-{n}") for n in range(4)]


def first(affinity, blocks, replicas=REPLICAS):
    return affinity.order(replicas, blocks)[0].name


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_prompts_share_the_blocks_of_their_common_text(head, one, other):
    left, right = prefix_blocks(head + one, block_characters=4), prefix_blocks(head + other, block_characters=4)
    shared = 0
    while shared < min(len(left), len(right)) and left[shared] == right[shared]:
        shared += 1

    assert shared >= len(head) // 4
    assert len(set(left)) == len(left)
    if (head + one)[: len(left) * 4] != (head + other)[: len(left) * 4]:
        assert left != right


def test_adapters_share_nothing():
    assert not set(prefix_blocks("x" * 5000, "a")) & set(prefix_blocks("x" * 5000, "b"))
    assert not set(prefix_blocks("x" * 5000)) & set(prefix_blocks("x" * 5000, ""))


def test_blocks_are_whole_and_not_too_many():
    assert len(prefix_blocks("x" * 1030, block_characters=512)) == 2
    assert len(prefix_blocks("short")) == 1
    assert len(prefix_blocks("x" * 10_000, block_characters=10, most=7)) == 7


def test_prefixes_spread_over_replicas_and_each_stays_where_it_is():
    one, another = PrefixAffinity(), PrefixAffinity()
    found = Counter()
    for n in range(2000):
        blocks = prefix_blocks(f"conversation {n}")
        found[first(one, blocks)] += 1
        assert first(one, blocks) == first(another, blocks)  # another gateway, which has seen nothing

    assert min(found.values()) > 420


def test_a_replica_that_leaves_moves_only_its_own_prefixes():
    affinity = PrefixAffinity()
    for n in range(500):
        blocks = prefix_blocks(f"conversation {n}")
        before = first(affinity, blocks)
        if before != "replica-2":
            assert first(affinity, blocks, REPLICAS[:2] + REPLICAS[3:]) == before


def test_the_longest_prefix_that_was_sent_wins():
    affinity = PrefixAffinity()
    system, talk = "s" * 512, "t" * 512
    affinity.sent("replica-0", prefix_blocks(system))
    affinity.sent("replica-3", prefix_blocks(system + talk)[1:])

    assert first(affinity, prefix_blocks(system + "u" * 512)) == "replica-0"
    assert first(affinity, prefix_blocks(system + talk + "u" * 512)) == "replica-3"
    affinity.forget("replica-3")
    assert first(affinity, prefix_blocks(system + talk)) == "replica-0"


def test_a_hot_prefix_spreads_and_the_bound_holds():
    affinity = PrefixAffinity(bound=1.25, free=2)
    blocks = prefix_blocks("the same for everybody")
    loads = Counter({replica.name: 0 for replica in REPLICAS})
    for sent in range(1, 201):
        name = first(affinity, blocks, [replace(replica, in_flight=loads[replica.name]) for replica in REPLICAS])
        affinity.sent(name, blocks)
        loads[name] += 1
        assert loads[name] <= max(2, -(-1.25 * sent // 4))
    assert min(loads.values()) > 0


@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0.1, 10)), min_size=1, max_size=6),
    st.floats(1, 3),
    st.integers(0, 5),
    st.text(),
)
def test_there_is_always_room_and_the_first_has_it(replicas, bound, free, prompt):
    candidates = [Candidate(str(n), weight=weight, in_flight=load) for n, (load, weight) in enumerate(replicas)]
    chosen = PrefixAffinity(bound, free).order(candidates, prefix_blocks(prompt))[0]

    assert room(chosen, candidates, bound, free)


def test_a_few_at_once_stay_together():
    affinity = PrefixAffinity(free=4)
    blocks = prefix_blocks("a conversation")
    home = first(affinity, blocks)
    busy = [replace(replica, in_flight=3 if replica.name == home else 0) for replica in REPLICAS]

    assert first(affinity, blocks, busy) == home


def test_the_unhealthy_come_last_even_when_they_hold_the_prefix():
    affinity = PrefixAffinity()
    blocks = prefix_blocks("a conversation")
    affinity.sent("replica-1", blocks)
    replicas = [replace(replica, healthy=replica.name != "replica-1") for replica in REPLICAS]

    assert affinity.order(replicas, blocks)[-1].name == "replica-1"


def test_memory_is_bounded():
    affinity = PrefixAffinity(remembered=10)
    for n in range(100):
        affinity.sent("replica-0", prefix_blocks(f"conversation {n}"))

    assert len(affinity._sent) == 10


@pytest.mark.parametrize("wrong", [{"bound": 0.9}, {"free": -1}, {"remembered": 0}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match="affinity needs"):
        PrefixAffinity(**wrong)
